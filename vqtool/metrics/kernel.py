"""Kernel distance (KID): squared maximum mean discrepancy of two sets of features with a cubic kernel.

What it does: compares all moments up to the third; its expectation is 0 exactly if these agree.
When to use it: always beside the Fréchet distance, and instead of it below some thousand images: it is unbiased at
every number of images (so it may come out slightly below 0) and has a standard error.
Equation: mean of k(x, x') + mean of k(y, y') - 2 mean of k(x, y), the first two over pairs of distinct rows only, with
k(x, y) = (x.y / D + 1)^3; averaged over subsets of m rows of each side.
Cost, float64: up to 2048 rows a side O(N^2 (D + S)) and memory O(N^2); above that O(S m^2 D) and memory O(m^2).
Source: Binkowski et al. 2018 (arXiv:1801.01401). Golden: torch-fidelity 0.4.0.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vqtool import rng
from vqtool.errors import VqtoolError, count_text
from vqtool.metrics.score import Score, check_features, check_pair
from vqtool.options import Checked, option

SUBSET_SIZE = 1000
WHOLE_ROWS = 2048  # up to so many rows a side the kernel is computed once, for all subsets


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """Which subsets are drawn."""

    num_subsets: int = option(100, "Subsets to average over.", minimum=1, advanced=True)
    subset_size: int | None = option(
        None, "Images of a side in each subset.", shown="1000, or half of a side", minimum=2, advanced=True
    )


DEFAULTS = Options()


@dataclass(frozen=True)
class KernelDistance:
    """Mean over the subsets and how far it may be trusted."""

    mean: float
    std: float  # over the subsets, divisor S: what other programs print after the mean
    standard_error: float  # of the mean, over repeated draws of the images; nan if subsets hold all rows
    subset_size: int
    num_subsets: int


def kernel_distances(
    a: ArrayLike, b: ArrayLike, index_a: NDArray[np.integer], index_b: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Unbiased squared MMD of each pair of subsets.

    Args:
        a: (N, D) features.
        b: (M, D) features.
        index_a: (S, m) rows of `a` in each of S subsets, distinct within a subset, m at least 2.
        index_b: (S, m) rows of `b`.

    Returns:
        (S,) float64, may be below 0.

    Raises:
        ValueError: the shapes do not fit.
    """
    x, y = check_pair(a, b)
    if index_a.ndim != 2 or index_a.shape != index_b.shape or index_a.shape[1] < 2:
        raise ValueError(f"subsets of shape {index_a.shape} and {index_b.shape}: expected twice (S, m), m >= 2")
    if max(len(x), len(y)) <= WHOLE_ROWS:
        return _unbiased_of_all(x.astype(np.float64), y.astype(np.float64), index_a, index_b)
    pairs = zip(index_a, index_b, strict=True)
    return np.array([_unbiased(x[i].astype(np.float64), y[j].astype(np.float64)) for i, j in pairs])


def kernel_distance(
    a: ArrayLike,
    b: ArrayLike,
    *,
    num_subsets: int = 100,
    subset_size: int | None = None,
    seed: int = 0,
) -> KernelDistance:
    """KID between two sets of features, with subsets drawn by seed.

    Args:
        a: (N, D) features.
        b: (M, D) features.
        num_subsets: S.
        subset_size: m; by default 1000, or half of the smaller side where that is less.
        seed: of the subsets.

    Returns:
        Mean, spread and standard error. The error is that of the delete-d jackknife, std^2 * m / (n - m) with n the
        smaller side, plus std^2 / S for the finite number of subsets; for two sets of the same law it is too large,
        by a factor of up to sqrt(3).

    Raises:
        ValueError: a side has fewer than two rows, or the subsets do not fit into them.
    """
    x, y = check_features(a), check_features(b)
    smaller = min(len(x), len(y))
    size = min(SUBSET_SIZE, max(2, smaller // 2)) if subset_size is None else subset_size
    if not 2 <= size <= smaller or num_subsets < 1:
        raise ValueError(f"{num_subsets} subsets of {size} from {len(x)} and {len(y)} rows")
    generator = rng.generator(seed, 0, stream=rng.SELECTION)
    index_a, index_b = (
        np.stack([generator.choice(n, size, replace=False) for _ in range(num_subsets)]) for n in (len(x), len(y))
    )
    values = kernel_distances(x, y, index_a, index_b)
    std = float(values.std())
    share = size / (smaller - size) if smaller > size else np.nan
    error = std * float(np.sqrt(share + 1 / num_subsets))
    return KernelDistance(float(values.mean()), std, error, size, num_subsets)


def measure(reference: ArrayLike, generated: ArrayLike, options: Options = DEFAULTS, *, seed: int = 0) -> list[Score]:
    """The score "KID" of generated features (M, D) against reference features (N, D).

    Raises:
        VqtoolError: a subset is to hold more images than there are.
    """
    x, y = check_features(reference), check_features(generated)
    if options.subset_size is not None and options.subset_size > min(len(x), len(y)):
        raise VqtoolError(
            f"`subset_size` {options.subset_size}: there are {count_text(min(len(x), len(y)), 'image')} on a side"
        )
    result = kernel_distance(x, y, num_subsets=options.num_subsets, subset_size=options.subset_size, seed=seed)
    settings = {"std": result.std, "num_subsets": result.num_subsets, "subset_size": result.subset_size}
    return [Score("KID", result.mean, better="lower", standard_error=result.standard_error, settings=settings)]


def _unbiased(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Squared MMD of x (m, D) and y (m, D), without the pairs of a row with itself."""
    m = len(x)
    within = 0.0
    for z in (x, y):
        gram = _kernel(z, z)
        within += (gram.sum() - np.trace(gram)) / (m * (m - 1))
    return float(within - 2 * _kernel(x, y).mean())


def _unbiased_of_all(
    x: NDArray[np.float64], y: NDArray[np.float64], index_a: NDArray[np.integer], index_b: NDArray[np.integer]
) -> NDArray[np.float64]:
    """`_unbiased` of all subsets (S, m): sums of kernel entries are products with rows of zeros and ones."""
    num_subsets, m = index_a.shape
    members = []
    for rows, index in ((x, index_a), (y, index_b)):
        chosen = np.zeros((num_subsets, len(rows)))
        np.put_along_axis(chosen, index, 1, axis=1)
        members.append(chosen)
    values = np.zeros(num_subsets)
    for rows, chosen in zip((x, y), members, strict=True):
        gram = _kernel(rows, rows)
        values += ((chosen @ gram * chosen).sum(axis=1) - chosen @ gram.diagonal()) / (m * (m - 1))
    cross: NDArray[np.float64] = (members[0] @ _kernel(x, y) * members[1]).sum(axis=1) / m**2
    return values - 2 * cross


def _kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    gram: NDArray[np.float64] = x @ y.T
    gram /= x.shape[1]
    gram += 1
    return gram * gram * gram
