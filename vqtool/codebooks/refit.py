"""Rebuild a codebook: k-means on encoder vectors of one's own images (ReFiT).

The new codes are where the encoder puts these images, so that all of them are used and the distance from vector to
code falls. The decoder is not touched: codes move within the space that it has learned to decode.
"""

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vqtool.codebooks.seeding import SEEDINGS
from vqtool.errors import VqtoolError
from vqtool.tokenizers import Tokenizer
from vqtool.tokenizers.quantizers import nearest

MINI_BATCH_FROM = 200_000  # vectors from which mini-batch k-means is used


@dataclass(frozen=True)
class CodebookFit:
    """How well a codebook fits vectors."""

    usage: float  # share of the codes that are the nearest of some vector
    perplexity: float  # exp(entropy of the codes' shares)
    error: float  # mean squared distance of a vector to its code


def measure_fit(vectors: Tensor, codebook: Tensor) -> CodebookFit:
    """Fit of a codebook (K, D) to vectors (N, D)."""
    tokens = nearest(vectors, codebook)
    share = torch.bincount(tokens, minlength=len(codebook)).double() / len(tokens)
    error = (vectors - codebook[tokens]).square().sum(1).mean()
    perplexity = torch.exp(-torch.xlogy(share, share).sum())
    return CodebookFit(float((share > 0).double().mean()), float(perplexity), float(error))


def fit_codebook(vectors: Tensor, size: int, *, seeding: str, noise: np.random.Generator) -> Tensor:
    """A codebook by seeding and k-means.

    Args:
        vectors: (N, D) encoder outputs.
        size: K of the new codebook.
        seeding: a name in `SEEDINGS`.
        noise: of the seeding.

    Returns:
        (size, D) float32.

    Raises:
        VqtoolError: fewer distinct vectors than codes, or vectors that are not finite.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans

    if not bool(torch.isfinite(vectors).all()):
        raise VqtoolError("the encoder made vectors that are not finite: the tokenizer is damaged or badly trained")
    points = vectors.numpy().astype(np.float32)
    distinct = len(np.unique(points, axis=0))
    if distinct < size:
        raise VqtoolError(
            f"{distinct} distinct vectors cannot make {size} codes: give more images, more --vectors "
            f"or a smaller --codebook-size"
        )
    seeds = SEEDINGS[seeding](points, size, noise)
    method = MiniBatchKMeans if len(points) >= MINI_BATCH_FROM else KMeans
    fitted = method(size, init=seeds, n_init=1, random_state=int(noise.integers(2**31))).fit(points)
    return torch.from_numpy(np.asarray(fitted.cluster_centers_, dtype=np.float32))


def refuse_unfit(tokenizer: Tokenizer) -> None:
    """Refuse tokenizers whose codes k-means cannot place.

    Raises:
        VqtoolError: its tokens are not those of the nearest codes.
    """
    if tokenizer.lookup == "projection":
        raise VqtoolError(
            f"{tokenizer.location or 'this tokenizer'}: a learned projection chooses its tokens, not the distance to "
            "codes, so there is no codebook to rebuild: refit a tokenizer with the lookup nearest or cosine"
        )


def with_codebook(tokenizer: Tokenizer, codebook: Tensor) -> Tokenizer:
    """The same tokenizer with another codebook (K', D), which is looked up directly: a code map is not kept.

    Raises:
        VqtoolError: its tokens are not those of the nearest codes.
    """
    refuse_unfit(tokenizer)
    result = copy.deepcopy(tokenizer)
    if result.num_full_codes is not None:
        del result.code_map, result.full_codebook
        result.num_full_codes = None
    codes = functional.normalize(codebook, dim=-1) if tokenizer.lookup == "cosine" else codebook
    result.codebook = codes.to(tokenizer.device)
    result.config = replace(tokenizer.config, codebook_size=len(codebook))
    result.fingerprint, result.location = "", ""
    return result
