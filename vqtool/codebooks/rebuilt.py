"""The same tokenizer with other codes: a codebook of its own size, or some of the codes that it had.

Networks are untouched, so latents stay what they were: that is what makes old and new codes comparable (maps.py).
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from vqtool.errors import VqtoolError
from vqtool.tokenizers import Tokenizer

CODES = {"codebook", "full_codebook", "code_map", "projection", "projection_bias"}  # all that is not network
LATENT_TOLERANCE = 1e-3  # of the latents' spread: what other kernels and half precision change


def check_refittable(tokenizer: Tokenizer) -> None:
    """Raise unless the codes of a tokenizer lie where its latents are.

    Raises:
        VqtoolError: tokens are looked up otherwise than by the nearest code.
    """
    if tokenizer.lookup in ("projection", "dot"):
        raise VqtoolError(
            f"{tokenizer.location or 'this tokenizer'} looks tokens up by {tokenizer.lookup}, not by the nearest code: "
            "its codes are not where its latents are and cannot be refitted; `vqtool codebook prune` can drop some"
        )


def with_codebook(tokenizer: Tokenizer, codebook: Tensor) -> Tokenizer:
    """The same tokenizer with another codebook (K', D); a code map that it had is dropped.

    Raises:
        VqtoolError: its lookup is not by the nearest code.
    """
    check_refittable(tokenizer)
    if tokenizer.lookup == "cosine":
        codebook = functional.normalize(codebook, dim=-1)
    return _rebuilt(tokenizer, {"codebook": codebook})


def with_codes(tokenizer: Tokenizer, kept: NDArray[np.int64]) -> Tokenizer:
    """The same tokenizer with some of its codes only; decodes to the same images, and looks up among these codes.

    Args:
        tokenizer: any.
        kept: (K',) distinct tokens, in the order of the new ones.
    """
    tokens = torch.from_numpy(kept).to(tokenizer.device)
    codes = {"codebook": tokenizer.codebook[tokens]}
    if tokenizer.lookup == "projection":
        rows = tokens if tokenizer.num_full_codes is None else _first_full_codes(tokenizer.code_map, tokens)
        codes |= {
            "projection": tokenizer.projection[rows],
            "projection_bias": tokenizer.projection_bias[rows],
        }
    return _rebuilt(tokenizer, codes)


def same_latents(a: Tokenizer, b: Tokenizer) -> bool:
    """Whether the encoders of two tokenizers put images in the same places, found by encoding noise with both."""
    mine, theirs = ((each.factor, each.only_size, each.codebook.shape[1], each.lookup) for each in (a, b))
    if mine != theirs:
        return False
    noise = torch.Generator().manual_seed(0)
    images = 2 * torch.rand(1, 3, *(a.only_size or a.image_size((4, 4))), generator=noise) - 1
    with torch.no_grad():
        latents, others = (each.latents(images.to(each.device)).cpu() for each in (a, b))
    return bool((latents - others).abs().max() <= LATENT_TOLERANCE * latents.std())


def _first_full_codes(code_map: Tensor, tokens: Tensor) -> Tensor:
    """The first full code that a map (K_full,) brings to each of tokens (K',)."""
    first = torch.full((int(code_map.max()) + 1,), len(code_map), device=code_map.device)
    full = torch.arange(len(code_map), device=code_map.device)
    return first.scatter_reduce(0, code_map, full, "amin")[tokens]


def _rebuilt(tokenizer: Tokenizer, codes: dict[str, Tensor]) -> Tokenizer:
    result = Tokenizer(replace(tokenizer.config, codebook_size=len(codes["codebook"])), lookup=tokenizer.lookup)
    networks = {name: tensor for name, tensor in tokenizer.state_dict().items() if name not in CODES}
    result.load_state_dict(networks | codes)
    result.half_precision = tokenizer.half_precision
    return result.to(tokenizer.device).eval()
