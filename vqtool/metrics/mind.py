"""Monge Inception Distance (MIND): how far two sets of features have to be moved to become each other, along lines.

What it does: projects both sets on random directions and compares the sorted projections; 0 only for equal sets.
When to use it: on a few thousand images, where the Fréchet distance is still biased and may be fooled by sets that
agree in means and covariances; it needs no covariance, and has a standard error. By its paper 5,000 images say as much
as 50,000 say by FID. It is biased upwards, too: compare at equal numbers of images.
Equation: 3 D mean_u mean_q (F_u^-1(q) - G_u^-1(q))^2, u uniform on the sphere, F_u and G_u the laws of u.x, quantiles
interpolated where the sets differ in size: the square of the sliced 2-Wasserstein distance times 3 D. Where only the
means differ it is three times the squared distance between them. The standard error is that of the directions and says
nothing of the choice of images.
Cost: O((N + M) (D + log N) L) for L directions.
Source: Berthet et al. 2026 (arXiv:2605.06797); the scale 3 D and 1,000 directions as in torch-fidelity's repository.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vqtool import rng
from vqtool.metrics.score import Score, check_features, check_pair
from vqtool.options import Checked, option

BLOCK = 64  # directions projected at once
SCALE = 3  # times D: MIND by the square of a sliced distance


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """How many lines."""

    num_directions: int = option(1000, "Directions of the Monge Inception Distance.", minimum=2, advanced=True)


DEFAULTS = Options()


def sliced_distances(a: ArrayLike, b: ArrayLike, directions: NDArray[np.floating]) -> NDArray[np.float64]:
    """3 D times the squared 2-Wasserstein distance of two sets' projections on each of some directions.

    Args:
        a: (N, D) features.
        b: (M, D) features.
        directions: (L, D) of length 1.

    Returns:
        (L,) each 0 or more.

    Raises:
        ValueError: the shapes do not fit.
    """
    x, y = check_pair(a, b)
    found = []
    for start in range(0, len(directions), BLOCK):
        some = directions[start : start + BLOCK].T
        p, q = (np.sort(rows @ some.astype(rows.dtype), axis=0).astype(np.float64) for rows in (x, y))
        longer = max(len(p), len(q))
        found.append(((_quantiles(p, longer) - _quantiles(q, longer)) ** 2).mean(axis=0))
    distances: NDArray[np.float64] = SCALE * x.shape[1] * np.concatenate(found)
    return distances


def measure(reference: ArrayLike, generated: ArrayLike, options: Options = DEFAULTS, *, seed: int = 0) -> list[Score]:
    """The score "MIND" of generated features (M, D) against reference features (N, D), directions drawn by the seed."""
    x = check_features(reference)
    directions = rng.generator(seed, 4, stream=rng.SELECTION).normal(size=(options.num_directions, x.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    values = sliced_distances(x, generated, directions)
    error = float(values.std(ddof=1) / len(values) ** 0.5)
    settings = {"num_directions": len(values)}
    return [Score("MIND", float(values.mean()), better="lower", standard_error=error, settings=settings)]


def _quantiles(rows: NDArray[np.float64], num: int) -> NDArray[np.float64]:
    """Sorted columns (n, L) at the middles of num equal shares."""
    if len(rows) == num:
        return rows
    place = ((np.arange(num) + 0.5) / num * len(rows) - 0.5).clip(0, len(rows) - 1)
    low = place.astype(np.int64)
    share = (place - low)[:, None]
    return rows[low] * (1 - share) + rows[np.minimum(low + 1, len(rows) - 1)] * share
