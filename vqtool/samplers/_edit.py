"""What a walk begins with: nothing, tokens that are given, or a noisy copy of a grid.

Given tokens are known: the law of x_0 at their cells is sure. Under a kernel with a mask they are shown from the start
and never change. Under a kernel without one they walk the bridge x_s ~ q(x_s | x_t, x_0), whose end is x_0: a token
that was shown at T would be taken for noise. The other cells see them by what the denoiser makes of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vqtool.kernels import Kernel


@dataclass(frozen=True, eq=False)
class Edit:
    """What is known of a batch before its walk begins."""

    given: Tensor | None = None  # (B, H, W) int64 tokens that are kept, mask_id where unknown
    source: Tensor | None = None  # (B, H, W) int64 tokens that the walk begins near: x_t ~ q(x_t | source)
    start: int | None = None  # that t, in [0, T]; None for T, where nothing of the source is left

    def to(self, device: torch.device | str) -> "Edit":
        """The same on that device."""
        given, source = (None if each is None else each.to(device) for each in (self.given, self.source))
        return Edit(given, source, self.start)


def begin(edit: Edit, kernel: Kernel, noise: Tensor, *, hide: bool) -> Tensor:
    """The first x_t of a walk.

    Args:
        edit: what is known.
        kernel: the forward process.
        noise: (B, H, W) float64, uniform in [0, 1).
        hide: mask all that the process has lost, tokens that it has replaced too: for samplers that never revise.

    Returns:
        (B, H, W) int64 tokens or mask_id.
    """
    start = kernel.num_steps if edit.start is None else edit.start
    fresh = edit.source is None or start == kernel.num_steps
    if hide:
        x_t = torch.full_like(noise, kernel.mask_id, dtype=torch.int64)
        if edit.source is not None and not fresh:
            x_t = torch.where(noise < 1.0 - kernel.alpha_bar[start].to(noise.device), x_t, edit.source)
    elif edit.source is None or fresh:
        x_t = kernel.sample_stationary(noise)
    else:
        x_t = kernel.sample(edit.source, _times(start, noise), noise)
    if edit.given is None:
        return x_t
    shown = edit.given
    if not kernel.has_mask:
        shown = kernel.sample(shown.clamp(max=kernel.codebook_size - 1), _times(start, noise), noise)
    return torch.where(edit.given < kernel.mask_id, shown, x_t)


def keep(edit: Edit, kernel: Kernel, x_s: Tensor) -> Tensor:
    """X_s with the given tokens in their cells, if the kernel has a mask; (B, H, W) int64."""
    if edit.given is None or not kernel.has_mask:
        return x_s
    return torch.where(edit.given < kernel.mask_id, edit.given, x_s)


def know(log_x0: Tensor, given: Tensor) -> Tensor:
    """Log p(x_0) that is sure where a token (..., ) is given; (..., K), any number above K - 1 is none."""
    known = given < log_x0.shape[-1]
    token = torch.where(known, given, 0)[..., None]
    sure = torch.full_like(log_x0, -torch.inf).scatter_(-1, token, 0.0)
    return torch.where(known[..., None], sure, log_x0)


def _times(t: int, like: Tensor) -> Tensor:
    return torch.full((len(like),), t, device=like.device)
