"""What `vqtool eval` says: scores with all they depend on; and which images it takes.

What an input holds decides what can be measured: images against other images (reference.py), images through a tokenizer
(reconstruction.py), token grids (tokens.py).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtool import rng
from vqtool.metrics.score import Score

MAX_IMAGES = 10_000
READ_BATCH = 32  # images


@dataclass(frozen=True)
class Report:
    """Scores and what they depend on."""

    headline: str  # what was measured, for people
    scores: list[Score]
    about: dict[str, Any]  # JSON-able: numbers of images, size, network, seed, ...
    warnings: list[str] = field(default_factory=list)

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """The scores for people: name, value with its unit, standard error, and what is better."""
        for score in self.scores:
            error = "" if score.standard_error is None else f"{score.standard_error:.4g}"
            yield score.name, f"{score.value:.5g} {score.unit}".strip(), error, score.better

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; numbers that are not finite become None."""
        return {
            **self.about,
            "scores": {score.name: _finite(score.value) for score in self.scores},
            "standard_errors": {
                score.name: _finite(score.standard_error) for score in self.scores if score.standard_error is not None
            },
            "settings": {score.name: score.settings for score in self.scores if score.settings},
            "warnings": self.warnings,
        }


def choose(total: int, num: int, seed: int) -> NDArray[np.int64]:
    """Which num of total items are used: (num,) indices in ascending order, all of them if num == total."""
    return np.sort(rng.generator(seed, 1, stream=rng.SELECTION).permutation(total)[:num])


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
