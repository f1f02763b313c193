"""Fit a codebook to vectors: seeding and k-means, and how well codes fit.

The codes are placed among the encoder's vectors of the images (ReFiT), so that all of them are used and the distance
from vector to code falls. The decoder stays as it is: codes move within the space that it has learned to decode.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqtool.codebooks.seeding import SEEDINGS, Vectors
from vqtool.codebooks.usage import perplexity, usage
from vqtool.errors import VqtoolError
from vqtool.tokenizers.quantizers import nearest

K_MEANS = ("lloyd", "mini-batch")
MINI_BATCH_FROM = 200_000  # vectors from which mini-batch k-means is used unless told otherwise
BLOCK_ROWS = 16384  # vectors that are compared with the codes at once


@dataclass(frozen=True)
class CodebookFit:
    """How well a codebook fits vectors."""

    usage: float  # share of the codes that are the nearest of some vector
    perplexity: float  # exp(entropy of the codes' shares)
    error: float  # mean squared distance of a vector to its code


def measure_fit(vectors: Tensor, codebook: Tensor) -> CodebookFit:
    """Fit of a codebook (K, D) to vectors (N, D), block by block."""
    counts, total = np.zeros(len(codebook), np.int64), 0.0
    for block in torch.split(vectors, BLOCK_ROWS):
        tokens = nearest(block, codebook)
        counts += torch.bincount(tokens, minlength=len(codebook)).numpy()
        total += float((block - codebook[tokens]).square().sum(dtype=torch.float64))
    return CodebookFit(usage(counts), perplexity(counts), total / len(vectors))


def fit_codebook(
    vectors: Tensor,
    size: int,
    *,
    seeding: str,
    noise: np.random.Generator,
    k_means: str | None = None,
    chain_length: int | None = None,
) -> Tensor:
    """A codebook by seeding and k-means.

    Args:
        vectors: (N, D) encoder outputs; may lie in a file (see vectors.py) unless `k_means` is "lloyd".
        size: K of the new codebook.
        seeding: a name in `SEEDINGS`.
        noise: of the seeding and of the mini-batches.
        k_means: one of K_MEANS; None is Lloyd for fewer than MINI_BATCH_FROM vectors.
        chain_length: of the seeding "afk-mc2", which alone takes it; None is its own.

    Returns:
        (size, D) float32.

    Raises:
        VqtoolError: one code, fewer distinct vectors than codes, or vectors that are not finite.
    """
    points = vectors.numpy()
    _check_vectors(points, size)
    options = {} if chain_length is None else {"chain_length": chain_length}
    seeds = SEEDINGS[seeding](points, size, noise, **options)
    method = k_means or ("lloyd" if len(points) < MINI_BATCH_FROM else "mini-batch")
    centres = _mini_batch(points, seeds, noise) if method == "mini-batch" else _lloyd(points, seeds)
    return torch.from_numpy(np.asarray(centres, dtype=np.float32))


def _lloyd(points: Vectors, seeds: Vectors) -> Vectors:
    from sklearn.cluster import KMeans

    return np.asarray(KMeans(len(seeds), init=seeds, n_init=1).fit(points).cluster_centers_)


def _mini_batch(points: Vectors, seeds: Vectors, noise: np.random.Generator) -> Vectors:
    from sklearn.cluster import MiniBatchKMeans

    fitted = MiniBatchKMeans(
        len(seeds),
        init=seeds,
        n_init=1,
        batch_size=max(4096, 4 * len(seeds)),  # some vectors for each code
        compute_labels=False,
        random_state=int(noise.integers(2**31)),
    ).fit(points)
    return np.asarray(fitted.cluster_centers_)


def _check_vectors(points: Vectors, size: int) -> None:
    for block in _blocks(points):
        if not np.isfinite(block).all():
            raise VqtoolError("the encoder made vectors that are not finite: the tokenizer is damaged or badly trained")
    if size < 2:
        raise VqtoolError(f"a codebook of {size} says nothing about images: give `codebook_size` 2 or more")
    distinct = count_distinct(points, size)
    if distinct < size:
        raise VqtoolError(
            f"{distinct} distinct vectors cannot make {size} codes: give more images, more `vectors` "
            "or a smaller `codebook_size`"
        )


def count_distinct(points: Vectors, enough: int) -> int:
    """How many distinct vectors there are, or `enough` if there are more."""
    seen: set[bytes] = set()
    for block in _blocks(points):
        seen.update(row.tobytes() for row in block + np.float32(0))  # + 0: -0.0 is 0.0
        if len(seen) >= enough:
            break
    return min(len(seen), enough)


def _blocks(points: Vectors) -> Iterator[Vectors]:
    return (points[start : start + BLOCK_ROWS] for start in range(0, len(points), BLOCK_ROWS))
