"""Absorbing kernel: a token is kept or masked, and stays masked.

When to use it: with few denoiser calls. Unmasked tokens are final, so samplers need not predict them again.
Equation: q(x_t | x_0) = alpha_bar_t [x_t = x_0] + (1 - alpha_bar_t) [x_t = MASK].
Cost: the cheapest loss and posterior of the three: they need the entry of x_0 only, no sum over the codebook.
Source: Austin et al. 2021 (arXiv:2107.03006); Bond-Taylor et al. 2022 (arXiv:2111.12701).
"""

from __future__ import annotations

from torch import Tensor

HAS_MASK = True
DEFAULT_SCHEDULE = "linear"


def tables(alpha_bar: Tensor, gamma_bar: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both (T + 1,): tokens that are not kept are masked; rounded so that beta_bar is exactly 0."""
    masked = 1.0 - alpha_bar
    return 1.0 - masked, masked
