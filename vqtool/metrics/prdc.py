"""Precision, recall, density and coverage: how two sets of features lie in each other's neighbourhoods.

What it does: the ball of a row reaches to its k-th nearest neighbour in its own set. Precision is the share of
generated rows in the ball of some reference row, recall the share of reference rows in the ball of some generated row.
Density counts the reference balls around a generated row, over k; coverage is the share of reference rows with a
generated row in their ball.
When to use it: to tell pictures that look wrong (low precision, density) from kinds of pictures that are missing (low
recall, coverage). All depend on the number of images: compare at equal counts only.
Cost: O((N^2 + M^2 + N M) D) in float64, memory O(chunk (N + M)).
Source: Kynkaanniemi et al. 2019 (arXiv:1904.06991), Naeem et al. 2020 (arXiv:2002.09797). A row exactly on a sphere is
outside, as in the package prdc 0.2 (golden); `closed=True` counts it inside, as in torch-fidelity 0.4.0 (golden).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vqtool.errors import VqtoolError
from vqtool.metrics.score import Score, check_features
from vqtool.options import Checked, option

NEAREST_K = 5
CHUNK_BYTES = 32 * 2**20  # of distances held at once
ROUNDING = 1e-12  # a row whose squared distance is this share of the largest squared norm off a sphere is on it


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """What a neighbourhood is."""

    nearest_k: int | None = option(
        None, "Which nearest image a neighbourhood reaches to.", shown="5", minimum=1, advanced=True
    )


DEFAULTS = Options()


@dataclass(frozen=True)
class NeighbourScores:
    """Precision, recall and coverage in [0, 1]; density 0 or more, about 1 for two sets of the same law."""

    precision: float
    recall: float
    density: float
    coverage: float


def neighbour_scores(
    reference: ArrayLike,
    generated: ArrayLike,
    *,
    nearest_k: int = NEAREST_K,
    closed: bool = False,
    chunk_rows: int | None = None,
) -> NeighbourScores:
    """Precision, recall, density and coverage of generated against reference features.

    Args:
        reference: (N, D) features of real images.
        generated: (M, D) features of generated images.
        nearest_k: which neighbour a ball reaches to, not counting the row itself; below N and M.
        closed: whether a row exactly on a sphere is inside.
        chunk_rows: rows of distances computed at once; by default as many as fit in 32 MiB.

    Returns:
        The four scores; they do not depend on chunk_rows.

    Raises:
        ValueError: the shapes do not fit, or a side has no nearest_k-th neighbour.
    """
    x, y = check_features(reference), check_features(generated)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features of {x.shape[1]} and {y.shape[1]} dimensions")
    if not 1 <= nearest_k < min(len(x), len(y)):
        raise ValueError(f"nearest_k is {nearest_k} with {len(x)} and {len(y)} rows")
    centre = x.mean(axis=0, dtype=np.float64)  # shorter vectors, smaller rounding errors
    real, fake = x.astype(np.float64) - centre, y.astype(np.float64) - centre
    rows = chunk_rows or max(1, CHUNK_BYTES // (8 * max(len(real), len(fake))))
    real_radii, fake_radii = _radii(real, nearest_k, rows), _radii(fake, nearest_k, rows)
    margin = (1 if closed else -1) * ROUNDING * max((real**2).sum(axis=1).max(), (fake**2).sum(axis=1).max())
    real_radii, fake_radii = real_radii + margin, fake_radii + margin
    balls_around = np.zeros(len(fake), dtype=np.int64)  # reference balls that hold each generated row
    recalled = covered = 0
    for start in range(0, len(real), rows):
        stop = start + rows
        squared = _squared_distances(real[start:stop], fake)  # (rows, M)
        in_real_ball = squared < real_radii[start:stop, None]
        balls_around += in_real_ball.sum(axis=0)
        covered += int(in_real_ball.any(axis=1).sum())
        recalled += int((squared < fake_radii).any(axis=1).sum())
    return NeighbourScores(
        precision=float((balls_around > 0).mean()),
        recall=recalled / len(real),
        density=float(balls_around.mean() / nearest_k),
        coverage=covered / len(real),
    )


def measure(reference: ArrayLike, generated: ArrayLike, options: Options = DEFAULTS, *, seed: int = 0) -> list[Score]:
    """The four scores of generated features (M, D) against reference features (N, D); draws nothing from the seed.

    k is 5, or the number of rows - 1 where that is less, unless it is given.

    Raises:
        VqtoolError: the k that is given needs more images than there are.
    """
    x, y = check_features(reference), check_features(generated)
    most = min(len(x), len(y)) - 1
    nearest_k = min(NEAREST_K, most) if options.nearest_k is None else options.nearest_k
    if nearest_k > most:
        raise VqtoolError(f"`nearest_k` {nearest_k}: there are {most + 1} images on a side, so {most} at most")
    result = neighbour_scores(x, y, nearest_k=nearest_k)
    names = ("precision", "recall", "density", "coverage")
    return [Score(name, getattr(result, name), better="higher", settings={"nearest_k": nearest_k}) for name in names]


def _radii(x: NDArray[np.float64], nearest_k: int, rows: int) -> NDArray[np.float64]:
    """(N,) squared distance of each row to its k-th nearest other row."""
    radii = np.empty(len(x))
    for start in range(0, len(x), rows):
        squared = _squared_distances(x[start : start + rows], x)
        own = np.arange(start, start + len(squared))
        squared[own - start, own] = 0  # the row itself is its 0-th neighbour, whatever rounding says
        radii[own] = np.partition(squared, nearest_k, axis=1)[:, nearest_k]
    return radii


def _squared_distances(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, m) squared Euclidean distances by |x|^2 + |y|^2 - 2 x.y, right to rounding errors of the norms."""
    squared: NDArray[np.float64] = -2 * (x @ y.T)
    squared += (x**2).sum(axis=1)[:, None]
    squared += (y**2).sum(axis=1)
    return squared
