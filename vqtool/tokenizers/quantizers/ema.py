"""A codebook that learns by exponential moving averages.

What it does: codes are running means of the latents that chose them; no gradient reaches them.
When to use it: the default. Steady at any learning rate, since the codes do not have one.
Equation: n_k <- d n_k + (1 - d) N_k, m_k <- d m_k + (1 - d) sum of the latents of k, code_k = m_k / n_k.
Loss terms: commitment, mean (z - sg[c])^2.
Source: van den Oord et al. 2017 (arXiv:1711.00937), appendix A.1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vqtool.options import option
from vqtool.tokenizers.quantizers._placed import RestartedQuantizer, RestartOptions, count, even_use, pick


@dataclass(frozen=True, kw_only=True)
class Options(RestartOptions):
    """What it can be told."""

    decay: float = option(0.99, "Of the running means, a step.", minimum=0, maximum=1, advanced=True)


class Quantizer(RestartedQuantizer):
    """Codes that are running means of the latents that chose them."""

    codebook: Tensor  # (K, D)
    counts: Tensor  # (K,) running mean of how many latents of a batch chose each code
    sums: Tensor  # (K, D) running mean of their sum

    def __init__(self, codebook_size: int, code_dim: int, options: Options) -> None:
        """See the contract."""
        super().__init__(codebook_size, code_dim, options)
        self.register_buffer("codebook", torch.zeros(codebook_size, code_dim))
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", torch.zeros(codebook_size, code_dim))

    def effective_codebook(self) -> Tensor:
        """(K, D)."""
        return self.codebook

    def place(self, codes: Tensor, even: float) -> None:
        """Start on these codes (K, D), as if each had its even use."""
        self.codebook.copy_(codes)
        self.use.fill_(even)
        self.counts.fill_(even)
        self.sums.copy_(codes * even)

    def follow(self, flat: Tensor, tokens: Tensor, picks: Tensor, *, restart: bool) -> None:
        """Move the running means; dead codes go onto latents of this batch, as if they had their even use."""
        counts, sums = count(flat, tokens, self.codebook_size)
        even = even_use(flat, self.codebook_size)
        self.counts.lerp_(counts, 1 - self.options.decay)
        self.sums.lerp_(sums, 1 - self.options.decay)
        self.watch(counts, even)
        if restart:
            dead = self.find_dead(even)
            self.counts.masked_fill_(dead, even)
            self.sums.copy_(torch.where(dead[:, None], pick(flat, picks) * even, self.sums))
        self.codebook.copy_(self.sums / self.counts.clamp(min=1e-5)[:, None])
