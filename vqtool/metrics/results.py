"""Results of `vqtool eval` beside each other, if they compare: the work of `eval compare`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqtool.errors import FormatError, MismatchError, VqtoolError, warn
from vqtool.metrics.card import Card, first_difference
from vqtool.trust import read_json

_NOTHING = "none: an earlier version of vqtool wrote it"
_FOUND = ("std", "num_identical", "reference", "others")  # settings that are results


@dataclass(frozen=True)
class Result:
    """The JSON file of one evaluation."""

    name: str
    scores: dict[str, float | None]
    errors: dict[str, float | None]
    settings: dict[str, dict[str, Any]]
    card: Card | None


@dataclass(frozen=True)
class Comparison:
    """Results that were found to compare, or were forced to."""

    results: Sequence[Result]
    difference: str | None  # of their cards; None if there is none that matters

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The names of the columns, and a row a score: of each result, then the last less the first, and its error."""
        names = list(dict.fromkeys(name for each in self.results for name in each.scores))
        head = ["score", *(each.name for each in self.results), "difference", "± error"]
        return head, [self._row(name) for name in names]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "difference_of_cards": self.difference,
            "results": {each.name: {"scores": each.scores, "standard_errors": each.errors} for each in self.results},
        }

    def _row(self, name: str) -> list[str]:
        values = [each.scores.get(name) for each in self.results]
        errors = [each.errors.get(name) for each in (self.results[0], self.results[-1])]
        first, last = values[0], values[-1]
        gap = "" if first is None or last is None else f"{last - first:+.4g}"
        error = "" if None in errors or not gap else f"{math.hypot(*(e or 0.0 for e in errors)):.4g}"
        return [name, *("" if value is None else f"{value:.5g}" for value in values), gap, error]


def compare_results(files: Sequence[str | Path], *, force: bool = False) -> Comparison:
    """Put results of `evaluate`, in JSON files, beside each other.

    Args:
        files: at least two.
        force: also those that do not compare, with a warning.

    Raises:
        VqtoolError: fewer than two files.
        FormatError: a file is no such result.
        MismatchError: two cards differ in a line that matters, or two scores in their settings; names it.
    """
    if len(files) < 2:
        raise VqtoolError("two results or more are compared: give the files of both")
    results = [read_result(path) for path in files]
    difference = None
    for other in results[1:]:
        found = _difference(results[0], other)
        if found and not force:
            raise MismatchError(
                f"{results[0].name} and {other.name} do not compare: {found}; `force` shows them all the same"
            )
        if found:
            warn(f"{results[0].name} and {other.name} do not compare: {found}")
        difference = difference or found
    _tell_versions(results)
    return Comparison(results, difference)


def read_result(path: str | Path) -> Result:
    """The result in a JSON file.

    Raises:
        FormatError: it is none.
    """
    record = read_json(Path(path))
    scores, errors, settings = (record.get(name, {}) for name in ("scores", "standard_errors", "settings"))
    numbers = all(
        isinstance(part, dict) and all(value is None or isinstance(value, int | float) for value in part.values())
        for part in (scores, errors)
    )
    if not scores or not numbers or not isinstance(settings, dict):
        raise FormatError(f"{path}: not a result of `vqtool eval`: it has no scores")
    card = Card.parse(record["card"], str(path)) if "card" in record else None
    return Result(str(path), scores, errors, settings, card)


def _difference(a: Result, b: Result) -> str | None:
    if a.card is None or b.card is None:
        return f"card of {(a if a.card is None else b).name}: {_NOTHING}"
    if found := first_difference(a.card, b.card):
        return found
    for name in a.settings.keys() & b.settings.keys():
        ours, theirs = ({k: v for k, v in each.settings[name].items() if k not in _FOUND} for each in (a, b))
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                return f"{key} of {name}: {ours.get(key)} and {theirs.get(key)}"
    return None


def _tell_versions(results: Sequence[Result]) -> None:
    versions = dict.fromkeys(each.card.vqtool for each in results if each.card is not None)
    if len(versions) > 1:
        warn(f"results of versions {', '.join(versions)} of vqtool: CHANGELOG.md says which numbers changed")
