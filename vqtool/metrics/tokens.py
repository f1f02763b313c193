"""What a set of token grids uses of its codebook, and how near it comes to other grids.

What it does: the numbers of codebooks/usage.py as scores; against a reference the distance of the two histograms of
tokens and of pairs of neighbours, and how much of it is copied from the reference.
When to use it: to see whether a codebook is worth its size, whether samples use it as the training grids do, and
whether a prior repeats its training grids.
Equation: total variation = sum_k |p_k - q_k| / 2, p_k = counts_k / sum counts. The divergence of neighbours is
Jensen-Shannon's, in bits, of the histograms of (token, token to the right) and (token, token below).
Cost: one pass over the tokens, memory O(K); against a reference that of `MOST_GRIDS` grids a side.
Source: Lin 1991 for the divergence.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vqtool.codebooks.usage import (
    THRESHOLD,
    GridCounts,
    check_one_tokenizer,
    count_grids,
    count_tokens,
    few_tokens,
    frequencies,
    perplexity,
    usage,
)
from vqtool.errors import count_text
from vqtool.grids import GridBatch
from vqtool.metrics.card import Card, Side, side_of
from vqtool.metrics.exhibits import Exhibit
from vqtool.metrics.galleries import show_grids, show_usage
from vqtool.metrics.neighbours import nearest_grids
from vqtool.metrics.pictures import token_digests
from vqtool.metrics.report import Report
from vqtool.metrics.score import Score
from vqtool.progress import Progress, silent

__all__ = [
    "count_tokens",
    "measure",
    "measure_grids",
    "neighbour_divergence",
    "perplexity",
    "total_variation",
    "usage",
]

MOST_GRIDS = 10_000  # a side, whose neighbours are counted and compared
_MOST_COMPARED = 1 << 31  # pairs of tokens that the search for nearest grids may compare


def total_variation(counts_a: ArrayLike, counts_b: ArrayLike) -> float:
    """Distance of two token histograms: half the sum of |p_k - q_k|.

    Args:
        counts_a: (K,) counts.
        counts_b: (K,) counts over the same codebook.

    Returns:
        In [0, 1]; 0 for equal frequencies, 1 if no code occurs in both. Few tokens push it up.
    """
    return float(np.abs(frequencies(counts_a) - frequencies(counts_b)).sum() / 2)


def neighbour_divergence(grids_a: NDArray[np.integer[Any]], grids_b: NDArray[np.integer[Any]]) -> float:
    """Jensen-Shannon divergence of two sets of grids' pairs of neighbours, in bits.

    Args:
        grids_a: (N, H, W) tokens; one of H and W at least 2.
        grids_b: (M, H, W) tokens of the same codebook.

    Returns:
        In [0, 1]: 0 for equal frequencies of all pairs, 1 if no pair occurs in both. Few grids push it up.
    """
    pairs = [_neighbours(grids) for grids in (grids_a, grids_b)]
    seen, place = np.unique(np.concatenate(pairs), return_inverse=True)
    parts = np.split(place, [len(pairs[0])])
    p, q = (np.bincount(part, minlength=len(seen)) / len(part) for part in parts)
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(each > 0, each * np.log2(each / middle), 0.0).sum() for each in (p, q)]
    return max(0.0, float(sum(terms) / 2))


def _neighbours(grids: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """A number for each pair of neighbours, other ones for pairs across than for pairs down."""
    tokens = grids.astype(np.int64)
    pairs = ((tokens[:, :, :-1], tokens[:, :, 1:]), (tokens[:, :-1], tokens[:, 1:]))
    return np.concatenate([(((a << 31) | b) * 2 + down).ravel() for down, (a, b) in enumerate(pairs)])


def measure(counts: ArrayLike) -> list[Score]:
    """The scores of one histogram (K,): usage, usage at 10 tokens or more, perplexity."""
    return [
        Score("usage", usage(counts), better="higher"),
        Score(f"usage-{THRESHOLD}", usage(counts, THRESHOLD), better="higher", settings={"threshold": THRESHOLD}),
        Score("perplexity", perplexity(counts), better="higher", unit="codes"),
    ]


class _Side:
    """The token histogram of one side, what its card says, and its first grids."""

    def __init__(self, sources: Sequence[str | Path], progress: Progress) -> None:
        self.digests: list[bytes] = []
        self._kept: list[GridBatch] = []
        self.found: GridCounts = count_grids(sources, see=self._see, progress=progress)

    def _see(self, batch: GridBatch) -> None:
        self.digests += token_digests(batch.tokens)
        left = MOST_GRIDS - sum(map(len, self._kept))
        if left > 0 and (not self._kept or batch.tokens.shape[1:] == self._kept[0].tokens.shape[1:]):
            self._kept.append(batch[:left])

    @property
    def tokens(self) -> NDArray[np.integer[Any]]:
        """(N, H, W): the first grids, all of one size."""
        return np.concatenate([batch.tokens for batch in self._kept])

    @property
    def ids(self) -> list[str]:
        """Of these."""
        return [name for batch in self._kept for name in batch.ids]

    @property
    def side(self) -> Side:
        """For the card."""
        return side_of(self.digests, held="grids")


def measure_grids(
    grids: Sequence[str | Path],
    reference: Sequence[str | Path] = (),
    *,
    exhibits: bool = False,
    progress: Progress = silent,
) -> Report:
    """Usage and perplexity of token grids; with a reference, also how far both are apart, and what is copied.

    Args:
        grids: files, or "-" for standard input, all of one tokenizer.
        reference: further ones of the same tokenizer; may be empty.
        exhibits: find what a page shows: histograms, and grids beside their nearest of the reference.
        progress: shows how far it is.

    Raises:
        FormatError: not token grids, or damaged.
        MismatchError: grids of different tokenizers.
        VqtoolError: no grids.
    """
    ours = _Side(grids, progress)
    header, counts = ours.found.header, ours.found.counts
    about: dict[str, Any] = {
        "kind": "grids",
        "num_grids": ours.found.num_grids,
        "num_tokens": int(counts.sum()),
        "codebook_size": header.codebook_size,
        "tokenizer": header.tokenizer_fingerprint,
    }
    scores, warnings = measure(counts), few_tokens(counts)
    shown: list[Exhibit] = [show_usage(counts)] if exhibits else []
    theirs = _Side(reference, progress) if reference else None
    copies = None
    if theirs is not None:
        check_one_tokenizer(header, theirs.found.header, str(grids[0]), str(reference[0]))
        about["reference"] = {
            "num_grids": theirs.found.num_grids,
            "num_tokens": int(theirs.found.counts.sum()),
            "scores": {score.name: score.value for score in measure(theirs.found.counts)},
        }
        there = {*theirs.digests}
        copies = sum(digest in there for digest in ours.digests)
        found, told = _compare(ours, theirs, copies)
        scores, warnings = scores + found, warnings + told
        if exhibits:
            shown += [show_usage(theirs.found.counts, "Usage of the codebook by the reference")]
            shown += show_grids((ours.tokens, ours.ids), (theirs.tokens, theirs.ids), header, grids[0])
    card = Card(
        measure="grids",
        precision="",
        tokenizer=header.tokenizer_fingerprint,
        generated=ours.side,
        reference=None if theirs is None else theirs.side,
        copies=copies,
    )
    headline = (
        f"{count_text(ours.found.num_grids, 'grid')}, {about['num_tokens']} tokens; "
        f"tokenizer {header.tokenizer_fingerprint}, codebook of {header.codebook_size}"
    )
    return Report(headline, scores, about, warnings, card, exhibits=shown)


def _compare(ours: _Side, theirs: _Side, copies: int) -> tuple[list[Score], list[str]]:
    """The scores of grids against others, and what to know of them."""
    scores = [Score("total-variation", total_variation(ours.found.counts, theirs.found.counts), better="lower")]
    a, b = ours.tokens, theirs.tokens
    if max(a.shape[1:]) > 1:
        scores.append(Score("neighbour-divergence", neighbour_divergence(a, b), better="lower", unit="bits"))
    num = len(ours.digests)
    scores.append(Score("duplicates", (num - len({*ours.digests})) / num, better="lower"))
    scores.append(Score("copies", copies / num, better="lower"))
    if a.shape[1:] != b.shape[1:]:
        return scores, [f"grids of {a.shape[1:]} and {b.shape[1:]} cells: no nearest grids are looked for"]
    few = a[: max(1, min(len(a), _MOST_COMPARED // max(1, b.size)))]
    same = 1 - nearest_grids(few, b).distances[:, 0]
    error = float(same.std(ddof=1) / np.sqrt(len(same))) if len(same) > 1 else None
    settings = {"num_grids": len(few), "num_reference": len(b)}
    scores.append(Score("nearest-grid", float(same.mean()), standard_error=error, settings=settings))
    warnings = []
    if copies:
        warnings.append(f"{copies} of {count_text(num, 'grid')} are in the reference too, token by token")
    return scores, warnings
