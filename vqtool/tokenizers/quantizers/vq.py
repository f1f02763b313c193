"""A codebook that learns by gradients.

What it does: each code is pulled to the latents that chose it, with the optimiser of the networks.
When to use it: to train or fine-tune as published VQGANs were.
Equation: codebook mean (sg[z] - c)^2, commitment mean (z - sg[c])^2; beta weighs the commitment. taming-transformers
and its heirs have beta on the codebook's term instead.
Source: van den Oord et al. 2017 (arXiv:1711.00937), equation 3.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vqtool.options import option
from vqtool.tokenizers.quantizers._placed import RestartedQuantizer, RestartOptions, count, even_use, pick


@dataclass(frozen=True, kw_only=True)
class Options(RestartOptions):
    """What it can be told."""

    codebook_weight: float = option(1.0, "Weight of the pull of codes to their latents.", minimum=0)


class Quantizer(RestartedQuantizer):
    """Codes that are parameters."""

    def __init__(self, codebook_size: int, code_dim: int, options: Options) -> None:
        """See the contract."""
        super().__init__(codebook_size, code_dim, options)
        self.weights = {"commitment": options.commitment, "codebook": options.codebook_weight}
        self.codebook = nn.Parameter(torch.zeros(codebook_size, code_dim))

    def effective_codebook(self) -> Tensor:
        """(K, D)."""
        return self.codebook

    def place(self, codes: Tensor, even: float) -> None:
        """Start on these codes (K, D)."""
        self.codebook.copy_(codes)
        self.use.fill_(even)

    def prepares(self, *, restart: bool) -> bool:
        """Where codes have to be placed, or may be dead."""
        return super().prepares(restart=restart) or (restart and self.options.restart)

    def prepare(self, flat: Tensor, picks: Tensor, *, restart: bool) -> None:
        """Put dead codes onto latents of this batch, before any gradient depends on them."""
        super().prepare(flat, picks, restart=restart)
        if restart:
            dead = self.find_dead(even_use(flat, self.codebook_size))
            self.codebook.copy_(torch.where(dead[:, None], pick(flat, picks), self.codebook))

    def follow(self, flat: Tensor, tokens: Tensor, picks: Tensor, *, restart: bool) -> None:
        """Follow the use of the codes."""
        self.watch(count(flat, tokens, self.codebook_size)[0], even_use(flat, self.codebook_size))
