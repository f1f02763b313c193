"""Seeds for k-means: k-means++ (exact, one pass over the data a seed) and AFK-MC2 (a Markov chain instead of the pass).

k-means++ draws each seed with probability proportional to the squared distance d^2 to the seeds so far. AFK-MC2 draws
from nearly that law without looking at all data: a chain of m candidates from the fixed proposal
q(x) = d(x, c_1)^2 / (2 sum d^2) + 1 / (2 n), each accepted with probability min(1, d^2(y) q(x) / (d^2(x) q(y))).
When to use which: k-means++ while N x K distances are cheap; AFK-MC2 for large sets.
Cost: k-means++ O(N K D); AFK-MC2 O(N D + m K^2 D), here as matrix products.

Source: Arthur & Vassilvitskii 2007; Bachem et al. 2016, "Fast and provably good seedings for k-means"; its use for
codebooks: VQ-DDM with ReFiT.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

CHAIN_LENGTH = 200


def k_means_plus_plus(vectors: Vectors, size: int, noise: np.random.Generator) -> Vectors:
    """Seeds by k-means++ (scikit-learn): vectors (N, D) -> (size, D)."""
    from sklearn.cluster import kmeans_plusplus

    seeds, _ = kmeans_plusplus(vectors, size, random_state=int(noise.integers(2**31)))
    return np.asarray(seeds, dtype=np.float32)


def afk_mc2(vectors: Vectors, size: int, noise: np.random.Generator, *, chain_length: int = CHAIN_LENGTH) -> Vectors:
    """Seeds by AFK-MC2.

    Args:
        vectors: (N, D).
        size: how many seeds.
        noise: of the chains.
        chain_length: m, candidates a seed.

    Returns:
        (size, D) rows of `vectors`.
    """
    chosen = [int(noise.integers(len(vectors)))]
    distances = _squared_distances(vectors, vectors[chosen])
    share = distances / distances.sum() if distances.any() else np.full(len(vectors), 1 / len(vectors))
    proposal: NDArray[np.float64] = 0.5 / len(vectors) + 0.5 * share
    cumulative = np.cumsum(proposal)
    for _ in range(size - 1):
        draws = noise.random(chain_length) * cumulative[-1]
        candidates = np.minimum(np.searchsorted(cumulative, draws, side="right"), len(vectors) - 1)
        weights = _squared_distances(vectors[candidates], vectors[chosen]) / proposal[candidates]
        chosen.append(int(candidates[_walk(weights, noise.random(chain_length))]))
    return vectors[chosen]


def _squared_distances(points: Vectors, centres: Vectors) -> NDArray[np.float64]:
    """(M, D) x (k, D) -> (M,) squared distance to the nearest centre."""
    products = points @ centres.T
    nearest = (np.square(centres).sum(1) - 2 * products).min(1) + np.square(points).sum(1)
    return np.asarray(np.maximum(nearest, 0.0), dtype=np.float64)


def _walk(weights: NDArray[np.float64], noise: NDArray[np.float64]) -> int:
    """Where a Metropolis-Hastings chain over candidates 0..m-1 with these weights d^2 / q ends."""
    current = 0
    for step in range(1, len(weights)):
        if weights[step] > noise[step] * weights[current]:  # strictly: a weight of 0 is never accepted
            current = step
    return current


SEEDINGS: dict[str, Callable[[Vectors, int, np.random.Generator], Vectors]] = {
    "k-means++": k_means_plus_plus,
    "afk-mc2": afk_mc2,
}
