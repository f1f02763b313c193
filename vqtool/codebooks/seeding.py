"""Seeds for k-means: k-means++ (exact, one pass over the data a seed) and AFK-MC2 (a Markov chain instead of the pass).

k-means++ draws each seed with probability proportional to the squared distance d^2 to the seeds so far. AFK-MC2 draws
from nearly that law without looking at all data: a chain of m candidates from the fixed proposal
q(x) = d(x, c_1)^2 / (2 sum d^2) + 1 / (2 n), each accepted with probability min(1, d^2(y) q(x) / (d^2(x) q(y))).
When to use which: k-means++ while N x K distances are cheap; AFK-MC2 for large sets.
Cost: k-means++ O(N K D); AFK-MC2 O(N D + m K^2 D) as matrix products of m rows, and no N x K array: 1024 seeds of
20,000 x 256 vectors take 0.7 s on one core.

Source: Arthur & Vassilvitskii 2007; Bachem et al. 2016, "Fast and provably good seedings for k-means"; its use for
codebooks: VQ-DDM with ReFiT.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

Vectors = NDArray[np.float32]

CHAIN_LENGTH = 200  # m of ReFiT
BLOCK_ROWS = 8192  # vectors that are read at once
ROUNDING = 1e-3  # share of its norm below which a distance by matrix product is not to be trusted


def k_means_plus_plus(vectors: Vectors, size: int, noise: np.random.Generator) -> Vectors:
    """Seeds by k-means++ (scikit-learn): vectors (N, D) -> (size, D)."""
    from sklearn.cluster import kmeans_plusplus

    seeds, _ = kmeans_plusplus(vectors, size, random_state=int(noise.integers(2**31)))
    return np.asarray(seeds, dtype=np.float32)


def afk_mc2(vectors: Vectors, size: int, noise: np.random.Generator, *, chain_length: int = CHAIN_LENGTH) -> Vectors:
    """Seeds by AFK-MC2.

    Args:
        vectors: (N, D); may lie in a file (np.memmap): one pass, then (size - 1) * m rows.
        size: how many seeds.
        noise: of the chains.
        chain_length: m, candidates a seed.

    Returns:
        (size, D) rows of `vectors`, distinct while the chains meet distinct ones.
    """
    first = int(noise.integers(len(vectors)))
    from_first = _squared_distances(vectors, vectors[first])
    proposal = np.full(len(vectors), 1 / len(vectors))
    if from_first.any():
        proposal = 0.5 * proposal + 0.5 * from_first / from_first.sum()
    cumulative = np.cumsum(proposal)
    draws = noise.random((size - 1, chain_length)) * cumulative[-1]
    candidates = np.minimum(np.searchsorted(cumulative, draws, side="right"), len(vectors) - 1)  # (size - 1, m)
    chosen = np.full(size, first)
    seeds = np.zeros((size, vectors.shape[1]), np.float32)  # less the first: its neighbourhood is where distances are
    with _threads().limit(limits=1, user_api="blas"):  # small products: threads only wait
        for k, rows in enumerate(candidates, start=1):
            points = vectors[rows] - vectors[first]  # (m, D)
            weights = _distance_to_seeds(points, seeds[:k]) / proposal[rows]
            picked = _walk(weights.tolist(), noise.random(chain_length).tolist())
            chosen[k], seeds[k] = rows[picked], points[picked]
    return np.asarray(vectors[chosen])


@cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all loaded libraries, which takes milliseconds


def _squared_distances(vectors: Vectors, centre: Vectors) -> NDArray[np.float64]:
    """(N, D) x (D,) -> (N,) squared distances, block by block."""
    result = np.empty(len(vectors), np.float64)
    for start in range(0, len(vectors), BLOCK_ROWS):
        part = vectors[start : start + BLOCK_ROWS] - centre
        result[start : start + BLOCK_ROWS] = np.einsum("nd,nd->n", part, part)
    return result


def _distance_to_seeds(points: Vectors, seeds: Vectors) -> NDArray[np.float64]:
    """(m, D) x (k, D) -> (m,) squared distance to the nearest seed, as a matrix product; small ones exactly."""
    products = np.square(seeds).sum(1) - 2 * (points @ seeds.T)  # (m, k)
    nearest = products.argmin(1)
    norms = np.einsum("md,md->m", points, points)
    found = products[np.arange(len(points)), nearest] + norms
    close = np.flatnonzero(found < ROUNDING * norms)  # what is left of a difference of nearly equal numbers
    found[close] = np.square(points[close] - seeds[nearest[close]]).sum(1)
    return np.asarray(found, np.float64)


def _walk(weights: list[float], noise: list[float]) -> int:
    """Where a Metropolis-Hastings chain over candidates 0..m-1 with these weights d^2 / q ends."""
    current = 0
    for step in range(1, len(weights)):
        if weights[step] > noise[step] * weights[current]:  # strictly: a weight of 0 is never accepted
            current = step
    return current


SEEDINGS: dict[str, Callable[..., Vectors]] = {  # of (vectors, size, noise), and what else each may take
    "k-means++": k_means_plus_plus,
    "afk-mc2": afk_mc2,
}
