"""What `vqtool eval` says: scores with all they depend on; and which images it takes of many."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtool import rng
from vqtool.metrics.card import Card
from vqtool.metrics.exhibits import Exhibit
from vqtool.metrics.score import Score

MAX_IMAGES = 10_000


@dataclass(frozen=True)
class ClassScores:
    """The scores of the pictures of one class."""

    num: int  # a side
    scores: list[Score]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; numbers that are not finite become None."""
        return {"num_images": self.num, **_numbers(self.scores)}


@dataclass(frozen=True)
class Report:
    """Scores and what they depend on."""

    headline: str  # what was measured, for people
    scores: list[Score]
    about: dict[str, Any]  # JSON-able: numbers of images, size, network, seed, ...
    warnings: list[str] = field(default_factory=list)
    card: Card | None = None
    per_class: dict[str, ClassScores] = field(default_factory=dict)  # label -> its scores
    unreadable: dict[str, list[str]] = field(default_factory=dict)  # side -> what was wrong with what it lacks
    exhibits: Sequence[Exhibit] = ()  # for a page

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """The scores for people: name, value with its unit, standard error, and what is better."""
        for score in self.scores:
            error = "" if score.standard_error is None else f"{score.standard_error:.4g}"
            yield score.name, f"{score.value:.5g} {score.unit}".strip(), error, score.better

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; numbers that are not finite become None."""
        return {
            **self.about,
            **_numbers(self.scores),
            "settings": {score.name: score.settings for score in self.scores if score.settings},
            "warnings": self.warnings,
            **({} if self.card is None else {"card": self.card.as_dict()}),
            **({"per_class": {name: its.as_dict() for name, its in self.per_class.items()}} if self.per_class else {}),
            **({"unreadable": self.unreadable} if any(self.unreadable.values()) else {}),
        }

    def class_table(self) -> tuple[list[str], list[list[str]]]:
        """The scores of each class for people: the names of the columns, and a row a class."""
        names = list(dict.fromkeys(score.name for each in self.per_class.values() for score in each.scores))
        rows = []
        for label, each in self.per_class.items():
            values = {score.name: f"{score.value:.4g}" for score in each.scores}
            rows.append([label, str(each.num), *(values.get(name, "") for name in names)])
        suffix = f"-{self.about.get('network', '')}"
        return ["class", "images a side", *(name.removesuffix(suffix) for name in names)], rows


def choose(total: int, num: int, seed: int) -> NDArray[np.int64]:
    """Which num of total items are used: (num,) indices in ascending order, all of them if num == total."""
    return np.sort(rng.generator(seed, 1, stream=rng.SELECTION).permutation(total)[:num])


def _numbers(scores: Sequence[Score]) -> dict[str, dict[str, float | None]]:
    return {
        "scores": {score.name: _finite(score.value) for score in scores},
        "standard_errors": {
            score.name: _finite(score.standard_error) for score in scores if score.standard_error is not None
        },
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
