"""A few levels in each of a few dimensions: a codebook that is a fixed lattice.

What it does: each number of a latent, bounded to (-1, 1) by tanh, goes to the middle of one of L equal intervals. There
is nothing to learn, place or revive, and no loss term.
When to use it: where nothing should be tuned. 8 x 5 x 5 x 5 levels are about 1,000 codes, 7 x 5 x 5 x 5 x 5 4,375.
Equation: i_d = ceil(L_d (z_d + 1) / 2) - 1 in [0, L_d), code_d = (2 i_d + 1) / L_d - 1; straight-through gradient. The
token counts through the digits i_d, the last one fastest. The lookup is that of the nearest code.
Differs from the paper: its intervals at both ends are half as wide for odd L, and its tanh is shifted for even L.
Source: Mentzer et al. 2023 (arXiv:2309.15505).
"""

from collections.abc import Sequence
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from vqtool.tokenizers.quantizers._contract import Quantized, Quantizer
from vqtool.tokenizers.quantizers._gradients import pass_gradient


class FsqQuantizer(Quantizer):
    """Codes on a lattice."""

    lookup: ClassVar[str] = "bounded"
    options: ClassVar[tuple[str, ...]] = ("levels",)
    codebook: Tensor  # (K, D)
    sizes: Tensor  # (D,) levels of each dimension
    strides: Tensor  # (D,) int64: what a step in each dimension adds to the token

    def __init__(self, codebook_size: int, code_dim: int, *, levels: Sequence[int]) -> None:
        """A lattice.

        Args:
            codebook_size: K, the product of the levels.
            code_dim: D, how many there are.
            levels: of each dimension, 2 or more.
        """
        super().__init__()
        if prod(levels) != codebook_size or len(levels) != code_dim or min(levels) < 2:
            raise ValueError(f"levels {tuple(levels)} do not make {codebook_size} codes of {code_dim} numbers")
        middles = [(2 * torch.arange(count) + 1) / count - 1 for count in levels]
        strides = [prod(levels[d + 1 :]) for d in range(len(levels))]
        for name, tensor in (
            ("codebook", torch.cartesian_prod(*middles).view(codebook_size, code_dim)),
            ("sizes", torch.tensor(levels, dtype=torch.float32)),
            ("strides", torch.tensor(strides)),
        ):
            self.register_buffer(name, tensor, persistent=False)  # follows from the levels

    def forward(self, latents: Tensor, picks: Tensor, *, revive: bool = True) -> Quantized:
        """See Quantizer; no loss term."""
        found = torch.ceil((latents.detach().float() + 1) / 2 * self.sizes) - 1
        digits = found.clamp(min=0).minimum(self.sizes - 1)
        codes = (2 * digits + 1) / self.sizes - 1
        tokens = (digits.long() * self.strides).sum(-1)
        return Quantized(pass_gradient(latents, codes, "straight-through"), tokens, {})

    def effective_codebook(self) -> Tensor:
        """(K, D)."""
        return self.codebook
