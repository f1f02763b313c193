"""What a set of token grids uses of its codebook.

What it does: usage is the share of the K codes that occur; perplexity, exp of the entropy of the token histogram, is
the number of codes that would carry the same information if all were equally frequent (1 to K).
When to use it: to see whether a codebook is worth its size, and whether samples use it as the training grids do.
Equation: perplexity = exp(-sum_k p_k log p_k), p_k = counts_k / sum counts.
Cost: one pass over the tokens, memory O(K).
Source: van den Oord et al. 2017 (arXiv:1711.00937) for the perplexity. A code counts as used from `threshold` tokens.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vqtool.errors import MismatchError
from vqtool.metrics.score import Score

THRESHOLD = 10  # tokens; usage is reported for 1 and for this


def count_tokens(batches: Iterable[NDArray[np.integer[Any]]], codebook_size: int) -> NDArray[np.int64]:
    """The token histogram of any number of batches of grids.

    Args:
        batches: integer arrays of any shape, e.g. (B, H, W), tokens in [0, K).
        codebook_size: K.

    Returns:
        (K,) int64 counts.

    Raises:
        MismatchError: a token is outside [0, K).
    """
    counts = np.zeros(codebook_size, dtype=np.int64)
    for tokens in batches:
        flat = np.asarray(tokens).reshape(-1).astype(np.int64)
        wrong = flat[(flat < 0) | (flat >= codebook_size)]
        if wrong.size:
            raise MismatchError(f"token {wrong[0]} is none of a codebook of {codebook_size} codes")
        counts += np.bincount(flat, minlength=codebook_size)
    return counts


def usage(counts: ArrayLike, threshold: int = 1) -> float:
    """Share of codes that occur at least `threshold` times.

    Args:
        counts: (K,) token histogram.
        threshold: 1 or more.

    Returns:
        In [0, 1].
    """
    return float((np.asarray(counts) >= threshold).mean())


def perplexity(counts: ArrayLike) -> float:
    """Exp of the entropy of a token histogram.

    Args:
        counts: (K,) counts, not all 0.

    Returns:
        In [1, K].
    """
    p = _frequencies(counts)
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def total_variation(counts_a: ArrayLike, counts_b: ArrayLike) -> float:
    """Distance of two token histograms: half the sum of |p_k - q_k|.

    Args:
        counts_a: (K,) counts.
        counts_b: (K,) counts over the same codebook.

    Returns:
        In [0, 1]; 0 for equal frequencies, 1 if no code occurs in both. Few tokens push it up.
    """
    return float(np.abs(_frequencies(counts_a) - _frequencies(counts_b)).sum() / 2)


def measure(counts: ArrayLike) -> list[Score]:
    """The scores of one histogram (K,): usage, usage at 10 tokens or more, perplexity."""
    return [
        Score("usage", usage(counts), better="higher"),
        Score(f"usage-{THRESHOLD}", usage(counts, THRESHOLD), better="higher", settings={"threshold": THRESHOLD}),
        Score("perplexity", perplexity(counts), better="higher", unit="codes"),
    ]


def _frequencies(counts: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(counts, dtype=np.float64)
    if x.ndim != 1 or not x.sum() > 0 or (x < 0).any():
        raise ValueError(f"a token histogram of shape {x.shape} and sum {x.sum()}: expected (K,) counts, not all 0")
    frequencies: NDArray[np.float64] = x / x.sum()
    return frequencies
