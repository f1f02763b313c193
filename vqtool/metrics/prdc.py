"""Precision, recall, density and coverage: how two sets of features lie in each other's neighbourhoods.

What it does: the ball of a row reaches to its k-th nearest neighbour in its own set. Precision is the share of
generated rows in the ball of some reference row, recall the share of reference rows in the ball of some generated row.
Density counts the reference balls around a generated row, over k; coverage is the share of reference rows with a
generated row in their ball.
When to use it: to tell pictures that look wrong (low precision, density) from kinds of pictures that are missing (low
recall, coverage). All depend on the number of images: compare at equal counts only.
Standard error: the deviation of what a mean is over / sqrt(its rows), with all neighbourhoods held fixed.
Cost: O((N^2 / 2 + M^2 / 2 + N M) D), in float32 where that decides (see _distances); memory O(N + M) beside the
features.
Source: Kynkaanniemi et al. 2019 (arXiv:1904.06991), Naeem et al. 2020 (arXiv:2002.09797). A row exactly on a sphere is
outside, as in the package prdc 0.2 (golden); `closed=True` counts it inside, as in torch-fidelity 0.4.0 (golden).
"""

from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vqtool.errors import VqtoolError, count_text
from vqtool.metrics._distances import Rows, inside, squared_radii, tile
from vqtool.metrics.score import Score, check_pair
from vqtool.options import Checked, option

NEAREST_K = 5  # of density and coverage, as published
BALL_K = 3  # of precision and recall, as published


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """What a neighbourhood is."""

    nearest_k: int | None = option(
        None,
        "Which nearest image a neighbourhood reaches to.",
        shown="3 for precision and recall, 5 for density and coverage",
        minimum=1,
        advanced=True,
    )


DEFAULTS = Options()


@dataclass(frozen=True)
class NeighbourScores:
    """Precision, recall and coverage in [0, 1]; density 0 or more, about 1 for two sets of the same law."""

    precision: float
    recall: float
    density: float
    coverage: float
    # Standard errors, with neighbourhoods held fixed.
    errors: dict[str, float] = field(default_factory=dict, repr=False, compare=False)


def neighbour_scores(
    reference: ArrayLike,
    generated: ArrayLike,
    *,
    nearest_k: int = NEAREST_K,
    closed: bool = False,
) -> NeighbourScores:
    """Precision, recall, density and coverage of generated against reference features.

    Args:
        reference: (N, D) features of real images.
        generated: (M, D) features of generated images.
        nearest_k: which neighbour a ball reaches to, not counting the row itself; below N and M.
        closed: whether a row exactly on a sphere is inside.

    Returns:
        The four scores.

    Raises:
        ValueError: the shapes do not fit, or a side has no nearest_k-th neighbour.
    """
    return _scores(*check_pair(reference, generated), (nearest_k,), closed)[0]


def measure(reference: ArrayLike, generated: ArrayLike, options: Options = DEFAULTS, *, seed: int = 0) -> list[Score]:
    """The four scores of generated features (M, D) against reference features (N, D); draws nothing from the seed.

    k is 3 for precision and recall and 5 for density and coverage, as published, or the number of rows - 1 where that
    is less, unless it is given.

    Raises:
        VqtoolError: the k that is given needs more images than there are.
    """
    x, y = check_pair(reference, generated)
    most = min(len(x), len(y)) - 1
    given = options.nearest_k
    if given is not None and given > most:
        raise VqtoolError(
            f"`nearest_k` {given}: there are {count_text(most + 1, 'image')} on a side, so {most} at most"
        )
    usual = {"precision": BALL_K, "recall": BALL_K, "density": NEAREST_K, "coverage": NEAREST_K}
    chosen = {name: min(k, most) if given is None else given for name, k in usual.items()}
    ks = tuple(dict.fromkeys(chosen.values()))
    results = dict(zip(ks, _scores(x, y, ks), strict=True))
    return [
        Score(
            name,
            getattr(results[k], name),
            better="higher",
            standard_error=results[k].errors[name],
            settings={"nearest_k": k},
        )
        for name, k in chosen.items()
    ]


def _scores(
    x: NDArray[np.floating], y: NDArray[np.floating], ks: tuple[int, ...], closed: bool = False
) -> list[NeighbourScores]:
    """The scores for each k, of distances that are computed once."""
    for nearest_k in ks:
        if not 1 <= nearest_k < min(len(x), len(y)):
            raise ValueError(f"nearest_k is {nearest_k} with {len(x)} and {len(y)} rows")
    centre = x.mean(axis=0, dtype=np.float64).astype(np.float32).astype(np.float64)
    real, fake = Rows.about(x, centre), Rows.about(y, centre)
    real_radii, fake_radii = squared_radii(real, ks), squared_radii(fake, ks)
    balls_around = np.zeros((len(fake), len(ks)), dtype=np.int64)  # reference balls that hold each generated row
    covered, recalled = np.zeros((len(real), len(ks)), bool), np.zeros((len(real), len(ks)), bool)
    for rows, columns in product(real.tiles(), fake.tiles()):
        squared = tile(real, fake, (rows, columns), np.float32)
        for number in range(len(ks)):
            in_real = inside(real, fake, (rows, columns), real_radii[rows, number, None], squared, closed=closed)
            in_fake = inside(real, fake, (rows, columns), fake_radii[None, columns, number], squared, closed=closed)
            balls_around[columns, number] += in_real.sum(axis=0)
            covered[rows, number] |= in_real.any(axis=1)
            recalled[rows, number] |= in_fake.any(axis=1)
    found = []
    for number, nearest_k in enumerate(ks):
        each_row = {
            "precision": balls_around[:, number] > 0,
            "recall": recalled[:, number],
            "density": balls_around[:, number] / nearest_k,
            "coverage": covered[:, number],
        }
        errors = {name: float(each.std(ddof=1) / len(each) ** 0.5) for name, each in each_row.items()}
        found.append(NeighbourScores(**{name: float(each.mean()) for name, each in each_row.items()}, errors=errors))
    return found
