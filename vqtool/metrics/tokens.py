"""What a set of token grids uses of its codebook.

What it does: the numbers of codebooks/usage.py as scores, and the distance of two token histograms.
When to use it: to see whether a codebook is worth its size, and whether samples use it as the training grids do.
Equation: total variation = sum_k |p_k - q_k| / 2, p_k = counts_k / sum counts.
Cost: one pass over the tokens, memory O(K).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from vqtool.codebooks.usage import (
    THRESHOLD,
    check_one_tokenizer,
    count_grids,
    count_tokens,
    few_tokens,
    frequencies,
    perplexity,
    usage,
)
from vqtool.metrics.report import Report
from vqtool.metrics.score import Score
from vqtool.progress import Progress, silent

__all__ = ["count_tokens", "measure", "measure_grids", "perplexity", "total_variation", "usage"]


def total_variation(counts_a: ArrayLike, counts_b: ArrayLike) -> float:
    """Distance of two token histograms: half the sum of |p_k - q_k|.

    Args:
        counts_a: (K,) counts.
        counts_b: (K,) counts over the same codebook.

    Returns:
        In [0, 1]; 0 for equal frequencies, 1 if no code occurs in both. Few tokens push it up.
    """
    return float(np.abs(frequencies(counts_a) - frequencies(counts_b)).sum() / 2)


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
    found = count_grids(grids, progress=progress)
    header, counts = found.header, found.counts
    about = {
        "kind": "grids",
        "num_grids": found.num_grids,
        "num_tokens": int(counts.sum()),
        "codebook_size": header.codebook_size,
        "tokenizer": header.tokenizer_fingerprint,
    }
    scores = measure(counts)
    warnings = few_tokens(counts)
    if reference:
        other = count_grids(reference, progress=progress)
        check_one_tokenizer(header, other.header, str(grids[0]), str(reference[0]))
        scores.append(Score("total-variation", total_variation(counts, other.counts), better="lower"))
        about["reference"] = {
            "num_grids": other.num_grids,
            "num_tokens": int(other.counts.sum()),
            "scores": {score.name: score.value for score in measure(other.counts)},
        }
    headline = (
        f"{found.num_grids} grids, {about['num_tokens']} tokens; "
        f"tokenizer {header.tokenizer_fingerprint}, codebook of {header.codebook_size}"
    )
    return Report(headline, scores, about, warnings)
