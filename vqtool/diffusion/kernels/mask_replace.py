"""Mask-and-replace kernel: a token is kept, masked, or drawn anew from the codebook; a mask stays.

When to use it: the default; masks show the denoiser which cells to predict. With the schedule "paper" a tenth of the
tokens is replaced: the denoiser learns that tokens can be wrong, and sampling can correct earlier choices, at the cost
of likelihood and training time. With "release", as in VQ-Diffusion's published code and models, almost none are.
Equation: q(x_t | x_0) = alpha_bar_t [x_t = x_0] + beta_bar_t [x_t != MASK] + gamma_bar_t [x_t = MASK].
Cost: one denoiser call a step; its loss sums once over the codebook.
Source: Gu et al. 2022 (arXiv:2111.14822), section 4.1.
"""

from __future__ import annotations

from torch import Tensor

HAS_MASK = True
DEFAULT_SCHEDULE = "release"


def tables(alpha_bar: Tensor, gamma_bar: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both (T + 1,), as the schedule gives them.

    Raises:
        ValueError: the schedule leaves gamma_bar to the kernel.
    """
    if gamma_bar is None:
        raise ValueError("mask-replace needs a schedule with both alpha_bar and gamma_bar; this one has only alpha_bar")
    return alpha_bar, gamma_bar
