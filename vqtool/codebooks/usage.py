"""What token grids use of a codebook: the token histogram, and the numbers that sum it up.

Usage is the share of the K codes that occur; perplexity, exp of the entropy of the histogram, is the number of codes
that would carry the same information if all were equally frequent (1 to K): exp(-sum_k p_k log p_k).
Cost: one pass over the tokens, memory O(K).

Source: van den Oord et al. 2017 (arXiv:1711.00937) for the perplexity. VQ-DDM with ReFiT counts a code as used from
10 tokens on, which is `THRESHOLD`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vqtool.errors import MismatchError, VqtoolError
from vqtool.grids import GridBatch, GridHeader, open_grids
from vqtool.grids.found import find_grids
from vqtool.grids.listing import tell_empty
from vqtool.progress import Progress, silent

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
    p = frequencies(counts)
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def frequencies(counts: ArrayLike) -> NDArray[np.float64]:
    """A token histogram (K,), not all 0, as shares (K,) that sum to 1."""
    x = np.asarray(counts, dtype=np.float64)
    if x.ndim != 1 or not x.sum() > 0 or (x < 0).any():
        raise ValueError(f"a token histogram of shape {x.shape} and sum {x.sum()}: expected (K,) counts, not all 0")
    shares: NDArray[np.float64] = x / x.sum()
    return shares


def few_tokens(counts: NDArray[np.int64]) -> list[str]:
    """A warning if the histogram (K,) has so few tokens that a larger one would score higher."""
    total, size = int(counts.sum()), len(counts)
    if total >= THRESHOLD * size:
        return []
    return [f"{total} tokens are few for {size} codes: usage and perplexity would rise with more images"]


@dataclass(frozen=True)
class GridCounts:
    """The token histogram of grids from one or more sources."""

    header: GridHeader  # of the first source
    counts: NDArray[np.int64]  # (K,)
    num_grids: int


def count_grids(
    sources: Sequence[str | Path], *, see: Callable[[GridBatch], None] = lambda batch: None, progress: Progress = silent
) -> GridCounts:
    """Count the tokens of files and streams of one tokenizer; their grids may differ in size.

    Args:
        sources: files, folders of them or globs, or "-" for standard input.
        see: is called with each batch.
        progress: shows how far it is.

    Raises:
        FormatError: not token grids, or damaged.
        MismatchError: grids of different tokenizers.
        VqtoolError: no grids.
    """
    first: GridHeader | None = None
    counts, num, empty = np.zeros(0, np.int64), 0, list[Path]()
    paths = find_grids(sources)
    for source in paths:
        before = num
        with open_grids(source) as reader, progress(f"read {reader.name}", reader.num_grids, "grids") as advance:
            if first is None:
                first, counts = reader.header, np.zeros(reader.header.codebook_size, np.int64)
            check_one_tokenizer(first, reader.header, str(paths[0]), str(source))
            for batch in reader.batches():
                counts += count_tokens([batch.tokens], len(counts))
                num += len(batch)
                see(batch)
                advance(len(batch))
        empty += [source] if num == before else []
    tell_empty(empty, len(paths))
    if first is None:
        raise VqtoolError("no files of token grids are named")
    return GridCounts(first, counts, num)


def check_one_tokenizer(a: GridHeader, b: GridHeader, name_a: str, name_b: str) -> None:
    """Raise unless the tokens of both are of one codebook.

    Raises:
        MismatchError: they are not.
    """
    if (a.tokenizer_fingerprint, a.codebook_size) != (b.tokenizer_fingerprint, b.codebook_size):
        raise MismatchError(
            f"{name_a} was made with tokenizer {a.tokenizer_fingerprint} (K = {a.codebook_size}), {name_b} with "
            f"{b.tokenizer_fingerprint} (K = {b.codebook_size}): tokens of different codebooks do not compare; "
            "`vqtool encode` or `vqtool codebook remap` brings them to one"
        )


def describe(found: GridCounts, *, top: int = 10) -> dict[str, Any]:
    """What `vqtool codebook usage` reports; JSON-able.

    Args:
        found: from `count_grids`.
        top: how many of the most and of the least used codes are listed.

    Returns:
        Shares of codes in use, perplexity, `dead` codes, and (code, tokens) pairs of the `most_used` ones, most used
        first, and of the `least_used` ones that occur at all, least used first.
    """
    counts = found.counts
    order = np.lexsort((np.arange(len(counts)), -counts))  # most used first; of equals the first code
    used = order[counts[order] > 0]
    pairs = [(int(code), int(counts[code])) for code in used]
    return {
        "tokenizer": found.header.tokenizer_fingerprint,
        "codebook_size": len(counts),
        "num_grids": found.num_grids,
        "num_tokens": int(counts.sum()),
        "usage": usage(counts),
        f"usage-{THRESHOLD}": usage(counts, THRESHOLD),
        "perplexity": perplexity(counts),
        "num_dead": int((counts == 0).sum()),
        "dead": np.flatnonzero(counts == 0).tolist(),
        "most_used": pairs[:top],
        "least_used": pairs[::-1][:top],
    }
