"""Fréchet distance between the Gaussians fitted to two sets of features.

What it does: compares means and covariances of the features of two sets of images; 0 only if both agree.
When to use it: to compare with other Fréchet distances of the same network and the same number of images. It is biased
upwards, by more the fewer images there are; below about as many images as features the bias outweighs most differences.
`extrapolate` takes the bias out to first order, and gives standard errors.
Equation: |mean_a - mean_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2)), covariances S with divisor N - 1. With
S_a = L L^T (Cholesky with pivots, L of as many columns as the rank) the last trace is the sum of the roots of the
eigenvalues of the symmetric L^T S_b L: no square root of a product that is not symmetric, no imaginary part, and right
for singular covariances too. Infinitely many images: 2 FD(N) - FD(N / 2), the bias being proportional to 1 / N; its
error is that of a jackknife over five parts.
Cost: O(N D min(N, D)) for N features of D dimensions, float64.
Source: Dowson and Landau 1982; Heusel et al. 2017 (arXiv:1706.08500); Chong and Forsyth 2020 (arXiv:1911.07023) for the
extrapolation. Golden: torch-fidelity 0.4.0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.linalg.lapack import dpstrf

from vqtool import rng
from vqtool.errors import VqtoolError
from vqtool.metrics.score import Score, check_features, check_pair
from vqtool.options import Checked, option

CHUNK_ROWS = 4096  # rows in float64 at once
PARTS = 10  # that extrapolation splits each side into: two halves of five
FEWEST = 4 * PARTS  # rows for it


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """What is computed beside the distance."""

    extrapolate: bool = option(False, "Also the Fréchet distance of infinitely many images, and errors.", advanced=True)


DEFAULTS = Options()


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of a set of features."""

    mean: NDArray[np.float64]  # (D,)
    covariance: NDArray[np.float64]  # (D, D), divisor N - 1
    num_samples: int  # N


def statistics(features: ArrayLike) -> Statistics:
    """Mean and unbiased covariance, accumulated in float64 a chunk of rows at a time.

    Args:
        features: (N, D), N at least 2.

    Returns:
        Mean (D,), covariance (D, D) and N.

    Raises:
        ValueError: not two-dimensional, fewer than two rows, or not finite.
    """
    x = check_features(features)
    mean = x.mean(axis=0, dtype=np.float64)
    covariance = np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(x), CHUNK_ROWS):
        centred = x[start : start + CHUNK_ROWS].astype(np.float64) - mean
        covariance += centred.T @ centred
    return Statistics(mean, covariance / (len(x) - 1), len(x))


def merge_statistics(parts: Sequence[Statistics]) -> Statistics:
    """Mean and covariance of the union of sets, from those of each: equal to the whole but for rounding.

    Args:
        parts: at least one; a part may have a single sample, and then any covariance.

    Raises:
        ValueError: nothing to merge, or parts of different dimensions.
    """
    if not parts or len({part.mean.shape for part in parts}) > 1:
        raise ValueError(f"statistics of {[part.mean.shape for part in parts]} cannot be merged")
    num = sum(part.num_samples for part in parts)
    mean = np.sum([part.mean * (part.num_samples / num) for part in parts], axis=0)
    scatter = np.zeros_like(parts[0].covariance)
    for part in parts:
        apart = part.mean - mean
        scatter += part.num_samples * np.outer(apart, apart)
        if part.num_samples > 1:
            scatter += (part.num_samples - 1) * part.covariance
    return Statistics(mean, scatter / (num - 1), num)


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Fréchet distance between two sets of features. Symmetric but for rounding.

    Args:
        a: (N, D) features.
        b: (M, D) features.

    Returns:
        The (squared) distance, 0 or more.

    Raises:
        ValueError: the shapes do not fit, a side has fewer than two rows, or a value is not finite.
    """
    x, y = check_pair(a, b)
    if min(len(x), len(y)) > x.shape[1]:
        return frechet_distance_of_statistics(statistics(x), statistics(y))
    (mean_x, factor_x), (mean_y, factor_y) = _rows_factor(x), _rows_factor(y)
    spread = (factor_x**2).sum() + (factor_y**2).sum()
    return _distance(mean_x - mean_y, float(spread), _nuclear_norm(factor_x @ factor_y.T))


def frechet_distance_of_statistics(a: Statistics, b: Statistics) -> float:
    """Fréchet distance between two Gaussians, from means and covariances, e.g. ones kept from an earlier run.

    Args:
        a: mean (D,) and covariance (D, D).
        b: mean (D,) and covariance (D, D).

    Returns:
        The (squared) distance, 0 or more.

    Raises:
        ValueError: they are of different dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and {len(b.mean)} dimensions")
    factors = [_cholesky(each.covariance) for each in (a, b)]
    fewer = int(factors[1].shape[1] < factors[0].shape[1])
    factor, other = torch.from_numpy(factors[fewer]), torch.from_numpy((b, a)[fewer].covariance)
    cross = _sum_of_roots(factor.T @ (other @ factor))
    return _distance(a.mean - b.mean, float(np.trace(a.covariance) + np.trace(b.covariance)), cross)


@dataclass(frozen=True)
class Extrapolated:
    """The Fréchet distance of infinitely many images, and that of those there are."""

    value: float
    standard_error: float  # of `value`
    finite: float  # of the images there are
    finite_error: float  # its standard error


def extrapolated_distance(a: ArrayLike, b: ArrayLike, *, seed: int = 0) -> Extrapolated:
    """Fréchet distance between two sets of features as of infinitely many rows, with standard errors.

    Args:
        a: (N, D) features.
        b: (M, D) features.
        seed: of the random parts of each side.

    Raises:
        ValueError: fewer than 40 rows on a side, or shapes that do not fit.
    """
    x, y = check_pair(a, b)
    if min(len(x), len(y)) < FEWEST:
        raise ValueError(f"{min(len(x), len(y))} rows on a side: extrapolation needs {FEWEST}")
    generator = rng.generator(seed, 2, stream=rng.SELECTION)
    sides = [
        [statistics(rows[part]) for part in np.array_split(generator.permutation(len(rows)), PARTS)] for rows in (x, y)
    ]
    half = PARTS // 2
    whole = _two_sizes(sides, [*range(half)])
    without = np.array([_two_sizes(sides, [i for i in range(half) if i != left]) for left in range(half)])
    spread = np.sqrt((half - 1) / half * ((without - without.mean(axis=0)) ** 2).sum(axis=0))
    return Extrapolated(whole[0], float(spread[0]), whole[1], float(spread[1]))


def measure(reference: ArrayLike, generated: ArrayLike, options: Options = DEFAULTS, *, seed: int = 0) -> list[Score]:
    """The score "FD" of generated features (M, D) against reference features (N, D), and "FD-infinity" on request.

    Raises:
        VqtoolError: too few images to extrapolate from: the bias follows 1 / N where images outnumber features.
    """
    if not options.extrapolate:
        return [Score("FD", frechet_distance(reference, generated), better="lower")]
    x, y = check_pair(reference, generated)
    fewest, needed = min(len(x), len(y)), max(FEWEST, 2 * x.shape[1])
    if fewest < needed:
        raise VqtoolError(
            f"`extrapolate`: there are {fewest} images on a side, {needed} are needed: twice as many as features"
        )
    found = extrapolated_distance(x, y, seed=seed)
    return [
        Score("FD", found.finite, better="lower", standard_error=found.finite_error),
        Score("FD-infinity", found.value, better="lower", standard_error=found.standard_error),
    ]


def measure_statistics(reference: Statistics, generated: Statistics) -> list[Score]:
    """The score "FD" of two Gaussians, where only their statistics were kept."""
    return [Score("FD", frechet_distance_of_statistics(reference, generated), better="lower")]


def _two_sizes(sides: Sequence[Sequence[Statistics]], parts: Sequence[int]) -> tuple[float, float]:
    """The extrapolated distance of some parts of the first half and their partners in the second, and that of all."""
    halves = [[merge_statistics([side[i + start] for i in parts]) for start in (0, PARTS // 2)] for side in sides]
    all_ = frechet_distance_of_statistics(*[merge_statistics(side) for side in halves])
    fewer = np.mean([frechet_distance_of_statistics(*pair) for pair in zip(*halves, strict=True)])
    return float(2 * all_ - fewer), all_


def _rows_factor(x: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (D,) and F (R, D) with F^T F = covariance; R = N when there are few rows, else its rank."""
    if len(x) > x.shape[1]:
        stats = statistics(x)
        return stats.mean, _cholesky(stats.covariance).T
    rows = x.astype(np.float64)
    mean = rows.mean(axis=0)
    return mean, (rows - mean) / np.sqrt(len(rows) - 1)


def _cholesky(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """L (D, rank) with L L^T = covariance, which may be singular."""
    packed, pivots, rank, _ = dpstrf(covariance, lower=1)
    factor = np.empty((len(covariance), rank))
    factor[pivots - 1] = np.tril(packed)[:, :rank]
    return factor


def _nuclear_norm(product: NDArray[np.float64]) -> float:
    """The sum of the singular values of a matrix."""
    matrix = torch.from_numpy(product)
    return _sum_of_roots(matrix.T @ matrix if len(product) > product.shape[1] else matrix @ matrix.T)


def _sum_of_roots(matrix: torch.Tensor) -> float:
    """The sum of the roots of the eigenvalues of a symmetric matrix, of which none is below 0 but for rounding."""
    return float(torch.linalg.eigvalsh(matrix).clamp(min=0).sqrt().sum())


def _distance(apart: NDArray[np.float64], spread: float, cross: float) -> float:
    return max(0.0, float((apart**2).sum()) + spread - 2 * cross)
