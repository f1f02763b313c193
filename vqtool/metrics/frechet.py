"""Fréchet distance between the Gaussians fitted to two sets of features.

What it does: compares means and covariances of the features of two sets of images; 0 only if both agree.
When to use it: to compare with other Fréchet distances of the same network and the same number of images. It is biased
upwards, by more the fewer images there are; below about as many images as features the bias outweighs most differences.
Equation: |mean_a - mean_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2)), covariances S with divisor N - 1.
With S = F^T F the last trace is the sum of the singular values of F_a F_b^T: no square root of a product that is not
symmetric, no imaginary part, and right for singular covariances too.
Cost: O(N D min(N, D)) for N features of D dimensions, float64; at D = 1280 about 1.5 s of one core for the rest. The
decompositions run on one core: on a busy machine several wait for each other and take ten times as long.
Source: Dowson and Landau 1982; Heusel et al. 2017 (arXiv:1706.08500). Golden: torch-fidelity 0.4.0.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from vqtool.metrics.score import Score, check_features
from vqtool.options import Checked

CHUNK_ROWS = 4096  # rows in float64 at once


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """There are none."""


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


def frechet_distance(a: ArrayLike, b: ArrayLike) -> float:
    """Fréchet distance between two sets of features. Symmetric.

    Args:
        a: (N, D) features.
        b: (M, D) features.

    Returns:
        The (squared) distance, 0 or more.

    Raises:
        ValueError: the shapes do not fit, a side has fewer than two rows, or a value is not finite.
    """
    x, y = check_features(a), check_features(b)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features of {x.shape[1]} and {y.shape[1]} dimensions")
    mean_x, factor_x = _mean_and_factor(x)
    mean_y, factor_y = _mean_and_factor(y)
    return _distance(mean_x, factor_x, mean_y, factor_y)


def frechet_distance_of_statistics(a: Statistics, b: Statistics) -> float:
    """Fréchet distance between two Gaussians, from means and covariances, e.g. ones kept from an earlier run.

    Args:
        a: mean (D,) and covariance (D, D).
        b: mean (D,) and covariance (D, D).

    Returns:
        The (squared) distance, 0 or more.
    """
    return _distance(a.mean, _factor(a.covariance), b.mean, _factor(b.covariance))


def measure(reference: ArrayLike, generated: ArrayLike, options: Options = DEFAULTS, *, seed: int = 0) -> list[Score]:
    """The score "FD" of generated features (M, D) against reference features (N, D); draws nothing from the seed."""
    return [Score("FD", frechet_distance(reference, generated), better="lower")]


def measure_statistics(reference: Statistics, generated: Statistics) -> list[Score]:
    """The score "FD" of two Gaussians, where only their statistics were kept."""
    return [Score("FD", frechet_distance_of_statistics(reference, generated), better="lower")]


def _mean_and_factor(x: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (D,) and F (R, D) with F^T F = covariance; R = N when there are few rows, else D."""
    if len(x) > x.shape[1]:
        stats = statistics(x)
        return stats.mean, _factor(stats.covariance)
    rows = x.astype(np.float64)
    mean = rows.mean(axis=0)
    return mean, (rows - mean) / np.sqrt(len(rows) - 1)


def _factor(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """F (D, D) with F^T F = covariance, by eigenvalues: works where Cholesky does not (singular covariance)."""
    with threadpool_limits(1, "blas"):
        values, vectors = np.linalg.eigh(covariance)
    scaled: NDArray[np.float64] = np.sqrt(values.clip(min=0))[:, None] * vectors.T
    return scaled


def _distance(
    mean_a: NDArray[np.float64],
    factor_a: NDArray[np.float64],
    mean_b: NDArray[np.float64],
    factor_b: NDArray[np.float64],
) -> float:
    with threadpool_limits(1, "blas"):
        cross = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    spread = (factor_a**2).sum() + (factor_b**2).sum()
    return max(0.0, float(((mean_a - mean_b) ** 2).sum() + spread - 2 * cross))
