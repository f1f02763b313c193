"""Errors that a user can mend, warnings, and safe text for both. The commands print each as one line."""

import warnings
from collections.abc import Iterable


class VqtoolError(Exception):
    """Something the user can mend: says what was given, what was expected and what to do."""


class FormatError(VqtoolError):
    """One file is bad: cut short, corrupt, or of another kind than expected."""


class NotFiniteError(VqtoolError, ValueError):
    """Numbers are NaN or infinite where probabilities are needed: a network with damaged weights."""


class MismatchError(VqtoolError):
    """Two files are good but do not fit together."""


class VqtoolWarning(UserWarning):
    """Something a user should know that stops nothing, such as what is left out and why."""


def warn(text: str) -> None:
    """Issue a `VqtoolWarning`; names from files are escaped as by `printable`."""
    warnings.warn(printable(text), VqtoolWarning, stacklevel=3)


def printable(text: str) -> str:
    """Text on one line that cannot control a terminal: escape sequences, line breaks and the like are shown escaped.

    Whatever comes out of a file (names, labels, captions, values) passes here before it is printed.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def count_text(num: int | float | str, noun: str) -> str:
    """A number of things as people write it: (1, "grid") -> "1 grid", (3, "grid") -> "3 grids".

    Args:
        num: as it is to be shown, if it is text.
        noun: one of them; its plural has an s.
    """
    return f"{num} {noun}{'' if str(num) == '1' else 's'}"


def size_text(sides: Iterable[int]) -> str:
    """Sides as people write them: (48, 80) -> "48x80"."""
    return "x".join(map(str, sides))
