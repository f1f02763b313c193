"""A few levels in each of a few dimensions: a codebook that is a fixed lattice.

What it does: each number of a latent, bounded to (-1, 1) by tanh, goes to the middle of one of L equal intervals. There
is nothing to learn, place or restart, and no loss term.
When to use it: where nothing should be tuned. 8 x 5 x 5 x 5 levels are about 1,000 codes, 7 x 5 x 5 x 5 x 5 4,375.
Equation: i_d = ceil(L_d (z_d + 1) / 2) - 1 in [0, L_d), code_d = (2 i_d + 1) / L_d - 1; straight-through gradient. The
token counts through the digits i_d, the last one fastest. The lookup is that of the nearest code.
Differs from the paper: its intervals at both ends are half as wide for odd L, and its tanh is shifted for even L.
Source: Mentzer et al. 2023 (arXiv:2309.15505).
"""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from vqtool.options import option
from vqtool.tokenizers.quantizers import _contract
from vqtool.tokenizers.quantizers._contract import Quantized
from vqtool.tokenizers.quantizers._gradients import pass_gradient


@dataclass(frozen=True, kw_only=True)
class Options(_contract.QuantizerOptions):
    """What it can be told."""

    levels: tuple[int, ...] = option((8, 5, 5, 5), "Of each number of a code, such as 8x5x5x5.", minimum=2)

    def shape(self, codebook_size: int, code_dim: int) -> tuple[int, int]:
        """(K, D) that the levels make."""
        return prod(self.levels), len(self.levels)


class Quantizer(_contract.Quantizer):
    """Codes on a lattice."""

    lookup: ClassVar[str] = "bounded"
    codebook: Tensor  # (K, D)
    sizes: Tensor  # (D,) levels of each dimension
    strides: Tensor  # (D,) int64: what a step in each dimension adds to the token

    def __init__(self, codebook_size: int, code_dim: int, options: Options) -> None:
        """See the contract."""
        super().__init__(codebook_size, code_dim, options)
        levels = options.levels
        if options.shape(0, 0) != (codebook_size, code_dim):
            raise ValueError(f"levels {levels} do not make {codebook_size} codes of {code_dim} numbers")
        middles = [(2 * torch.arange(count) + 1) / count - 1 for count in levels]
        strides = [prod(levels[d + 1 :]) for d in range(len(levels))]
        for name, tensor in (
            ("codebook", torch.cartesian_prod(*middles).view(codebook_size, code_dim)),
            ("sizes", torch.tensor(levels, dtype=torch.float32)),
            ("strides", torch.tensor(strides)),
        ):
            self.register_buffer(name, tensor, persistent=False)  # follows from the levels

    def quantise(self, latents: Tensor) -> Quantized:
        """See Quantizer; no loss term."""
        found = torch.ceil((latents.detach().float() + 1) / 2 * self.sizes) - 1
        digits = found.clamp(min=0).minimum(self.sizes - 1)
        codes = (2 * digits + 1) / self.sizes - 1
        tokens = (digits.long() * self.strides).sum(-1)
        return Quantized(pass_gradient(latents, codes, "straight-through"), tokens, {})

    def effective_codebook(self) -> Tensor:
        """(K, D)."""
        return self.codebook
