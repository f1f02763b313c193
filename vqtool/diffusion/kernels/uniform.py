"""Uniform kernel: a token is kept or drawn anew from the whole codebook; there is no mask.

When to use it: to let a sampler revise every token at every step; for priors of VQ-DDM and multinomial diffusion.
Equation: q(x_t | x_0) = alpha_bar_t [x_t = x_0] + (1 - alpha_bar_t) / K.
Cost: one denoiser call a step. The denoiser cannot see which tokens are noise, so many steps are needed.
Source: Hoogeboom et al. 2021 (arXiv:2102.05379); Hu et al. 2022 (arXiv:2112.01799).
"""

from __future__ import annotations

import torch
from torch import Tensor

HAS_MASK = False
DEFAULT_SCHEDULE = "cosine"


def tables(alpha_bar: Tensor, gamma_bar: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both (T + 1,): tokens that are not kept are replaced by random ones, so gamma_bar is 0."""
    return alpha_bar, torch.zeros_like(alpha_bar)
