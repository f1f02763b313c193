"""Several captions of one image, as the one text that stands in a row of token grids."""

from collections.abc import Iterable

SEPARATOR = "\x1e"  # ASCII's record separator


def join_captions(captions: Iterable[str]) -> str:
    """Several captions of one image as one text; "" of none."""
    return SEPARATOR.join(caption.replace(SEPARATOR, " ") for caption in captions)


def split_captions(text: str) -> tuple[str, ...]:
    """The captions of a text, at least one."""
    return tuple(text.split(SEPARATOR))
