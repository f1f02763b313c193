"""What a set of token grids uses of its codebook.

What it does: usage is the share of the K codes that occur; perplexity, exp of the entropy of the token histogram, is
the number of codes that would carry the same information if all were equally frequent (1 to K).
When to use it: to see whether a codebook is worth its size, and whether samples use it as the training grids do.
Equation: perplexity = exp(-sum_k p_k log p_k), p_k = counts_k / sum counts.
Cost: one pass over the tokens, memory O(K).
Source: van den Oord et al. 2017 (arXiv:1711.00937) for the perplexity. A code counts as used from `threshold` tokens.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike, NDArray

from vqtool.errors import MismatchError, VqtoolError
from vqtool.grids import GridHeader, open_grids
from vqtool.metrics.report import Progress, Report, silent
from vqtool.metrics.score import Score
from vqtool.streams import SIGNATURE

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


def measure_grids(
    grids: Sequence[str | Path], reference: Sequence[str | Path] = (), *, progress: Progress = silent
) -> Report:
    """Usage and perplexity of token grids; with a reference, also the distance of the two token histograms.

    Args:
        grids: files, or "-" for standard input, all of one tokenizer.
        reference: further ones of the same tokenizer; may be empty.
        progress: shows how far it is.

    Raises:
        FormatError: not token grids, or damaged.
        MismatchError: grids of different tokenizers.
        VqtoolError: no grids.
    """
    header, counts, num_grids = _count_grids(grids, progress)
    about = {
        "kind": "grids",
        "num_grids": num_grids,
        "num_tokens": int(counts.sum()),
        "codebook_size": header.codebook_size,
        "tokenizer": header.tokenizer_fingerprint,
    }
    scores = measure(counts)
    warnings = few_tokens(counts)
    if reference:
        other, other_counts, other_num = _count_grids(reference, progress)
        _check_one_tokenizer(header, other, str(grids[0]), str(reference[0]))
        scores.append(Score("total-variation", total_variation(counts, other_counts), better="lower"))
        about["reference"] = {
            "num_grids": other_num,
            "num_tokens": int(other_counts.sum()),
            "scores": {score.name: score.value for score in measure(other_counts)},
        }
    headline = (
        f"{num_grids} grids, {about['num_tokens']} tokens; "
        f"tokenizer {header.tokenizer_fingerprint}, codebook of {header.codebook_size}"
    )
    return Report(headline, scores, about, warnings)


def holds_grids(source: str | Path) -> bool:
    """Whether an input is token grids rather than images: an HDF5 file without images, a pipe, or standard input."""
    path = Path(source)
    if str(source) == "-" or not path.is_file():
        return str(source) == "-" or (path.exists() and not path.is_dir())
    with path.open("rb") as stream:
        if stream.read(len(SIGNATURE)) != SIGNATURE:
            return False
    try:
        with h5py.File(path, "r") as file:
            return "images" not in file
    except (OSError, RuntimeError):
        return True  # damaged: reading says how


def few_tokens(counts: NDArray[np.int64]) -> list[str]:
    """A warning if the histogram (K,) has so few tokens that a larger one would score higher."""
    total, size = int(counts.sum()), len(counts)
    if total >= THRESHOLD * size:
        return []
    return [f"{total} tokens are few for {size} codes: usage and perplexity would rise with more images"]


def _frequencies(counts: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(counts, dtype=np.float64)
    if x.ndim != 1 or not x.sum() > 0 or (x < 0).any():
        raise ValueError(f"a token histogram of shape {x.shape} and sum {x.sum()}: expected (K,) counts, not all 0")
    frequencies: NDArray[np.float64] = x / x.sum()
    return frequencies


def _count_grids(sources: Sequence[str | Path], progress: Progress) -> tuple[GridHeader, NDArray[np.int64], int]:
    """Header of the first source, token histogram (K,) and number of grids of all."""
    first: GridHeader | None = None
    counts, num = np.zeros(0, np.int64), 0
    for source in sources:
        with open_grids(source) as reader, progress(f"read {reader.name}", reader.num_grids) as advance:
            if first is None:
                first, counts = reader.header, np.zeros(reader.header.codebook_size, np.int64)
            _check_one_tokenizer(first, reader.header, str(sources[0]), str(source))
            for batch in reader.batches():
                counts += count_tokens([batch.tokens], len(counts))
                num += len(batch)
                advance(len(batch))
    if first is None or not num:
        raise VqtoolError(f"{', '.join(map(str, sources))}: no token grids in it")
    return first, counts, num


def _check_one_tokenizer(a: GridHeader, b: GridHeader, name_a: str, name_b: str) -> None:
    if (a.tokenizer_fingerprint, a.codebook_size) != (b.tokenizer_fingerprint, b.codebook_size):
        raise MismatchError(
            f"{name_a} was made with tokenizer {a.tokenizer_fingerprint} (K = {a.codebook_size}), {name_b} with "
            f"{b.tokenizer_fingerprint} (K = {b.codebook_size}): tokens of different codebooks do not compare"
        )
