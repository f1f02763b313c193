"""What a walk begins with: nothing, known tokens, or a noisy copy of a grid.

Known tokens are visible from the start and never change. For an absorbing kernel, whose denoiser takes every visible
token for clean, the other cells are then drawn from their law given these tokens, as T grows. Under kernels that
replace tokens the denoiser takes what it sees for as noisy as t says, so the law is only near that one, and further
steps of the psi sampler bring it nearer (small laws, exact denoiser: off by .08 to .12, with 10 T steps of psi by .03
at most). Known tokens that follow the bridge q(x_s | x_t, x_0), as noisy as all others, would be farther off (.10 to
.17).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vqtool.diffusion.kernels import Kernel
from vqtool.errors import VqtoolError


@dataclass(frozen=True, eq=False)
class Edit:
    """What is known of a batch before its walk begins."""

    known: Tensor | None = None  # (B, H, W) int64 tokens that are kept, mask_id where unknown
    source: Tensor | None = None  # (B, H, W) int64 tokens that the walk begins near: x_t ~ q(x_t | source)
    start: int | None = None  # that t, in [0, T]; None for T, where nothing of the source is left

    def to(self, device: torch.device | str) -> "Edit":
        """The same on that device."""
        known, source = (None if each is None else each.to(device) for each in (self.known, self.source))
        return Edit(known, source, self.start)


def begin(edit: Edit, kernel: Kernel, noise: Tensor, *, mask_lost: bool) -> Tensor:
    """The first x_t of a walk.

    Args:
        edit: what is known.
        kernel: the forward process.
        noise: (B, H, W) float64, uniform in [0, 1).
        mask_lost: mask every token that the process does not keep, those it would replace too: for samplers that
            never revise a token.

    Returns:
        (B, H, W) int64 tokens or mask_id.
    """
    start = kernel.num_steps if edit.start is None else edit.start
    source = None if start == kernel.num_steps else edit.source
    if mask_lost:
        x_t = torch.full_like(noise, kernel.mask_id, dtype=torch.int64)
        if source is not None:
            x_t = torch.where(noise < 1.0 - kernel.tables(noise.device)[0][start], x_t, source)
    elif source is None:
        x_t = kernel.sample_stationary(noise)
    else:
        x_t = kernel.sample(source, torch.full((len(noise),), start, device=noise.device), noise)
    return keep(edit, kernel, x_t)


def keep(edit: Edit, kernel: Kernel, x_t: Tensor) -> Tensor:
    """X_t with the known tokens in their cells, (B, H, W) int64."""
    return x_t if edit.known is None else torch.where(edit.known < kernel.mask_id, edit.known, x_t)


def find_start(kernel: Kernel, strength: float) -> int:
    """The t in [0, T] that a strength stands for.

    Raises:
        VqtoolError: it does not lie in [0, 1].
    """
    if not 0 <= strength <= 1:
        raise VqtoolError(f"`strength` {strength:g}: must lie in 0 (nothing changes) to 1 (all is made anew)")
    return math.floor(strength * kernel.num_steps + 0.5)


def check_tokens(name: str, grids: Tensor, grid_size: tuple[int, int], num_states: int) -> None:
    """Raise unless a tensor holds token grids.

    Args:
        name: of the tensor, for messages.
        grids: to be (B, H, W) int64 in [0, num_states).
        grid_size: (H, W).
        num_states: K, or K + 1 where cells may be masked.

    Raises:
        VqtoolError: another shape or type, or a token out of range.
    """
    if grids.dtype != torch.int64 or tuple(grids.shape[1:]) != tuple(grid_size):
        raise VqtoolError(
            f"`{name}` has shape {tuple(grids.shape)} and type {grids.dtype}: (B, {grid_size[0]}, {grid_size[1]}) "
            "int64 tokens are expected"
        )
    if grids.numel() and not 0 <= int(grids.min()) <= int(grids.max()) < num_states:
        low, high = int(grids.min()), int(grids.max())
        raise VqtoolError(f"`{name}` has tokens from {low} to {high}: 0 to {num_states - 1} are possible")
