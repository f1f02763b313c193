"""A codebook that is a frozen basis times a learned linear map.

What it does: a gradient that reaches one code moves the map, and so all codes: none is left behind.
When to use it: for large codebooks in as many dimensions as the network likes; nothing has to be restarted.
Equation: codebook = basis W; the basis is placed on data, W starts as the identity. Loss terms as in VQ.
Differs from the original: there the basis is Gaussian noise.
Source: Zhu et al. 2024 (arXiv:2411.02038).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vqtool.options import option
from vqtool.tokenizers.quantizers._placed import PlacedOptions, PlacedQuantizer


@dataclass(frozen=True, kw_only=True)
class Options(PlacedOptions):
    """What it can be told."""

    codebook_weight: float = option(1.0, "Weight of the pull of codes to their latents.", minimum=0)


class Quantizer(PlacedQuantizer):
    """Codes that are moved all together."""

    basis: Tensor  # (K, D), never changes once it is placed

    def __init__(self, codebook_size: int, code_dim: int, options: Options) -> None:
        """See the contract."""
        super().__init__(codebook_size, code_dim, options)
        self.weights = {"commitment": options.commitment, "codebook": options.codebook_weight}
        self.register_buffer("basis", torch.zeros(codebook_size, code_dim))
        self.map = nn.Parameter(torch.eye(code_dim))

    def effective_codebook(self) -> Tensor:
        """(K, D)."""
        return self.basis @ self.map

    def place(self, codes: Tensor, even: float) -> None:
        """Start on these codes (K, D)."""
        self.basis.copy_(codes)
        self.map.copy_(torch.eye(self.code_dim))
