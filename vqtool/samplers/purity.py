"""Purity sampling: reveal a few masked cells a call, first those that the denoiser is sure of, and sharpen them.

When to use it: for kernels with a mask; better pictures than ancestral sampling in fewer calls, with less variety.
Equation: Delta = ceil(cells / steps) masked cells are revealed a call; the denoiser is told the t whose gamma_bar_t is
nearest to the masked share; purity = max_k p(x_0 = k | x_t); cells are drawn without replacement in proportion to
purity, and their tokens from p ** (1 + purity_weight * score), renormalised, where score is purity over its largest
value among the masked cells of the grid. A revealed token stays.
Cost: ceil(cells / Delta) denoiser calls, whose head looks at the masked cells only.
Source: Tang et al. 2022 (arXiv:2205.16007), sections 3.2 and 3.3, with the sharpening of its code; differs from the
code: any grid and number of steps, t from the masked share, and the score knows masked cells only.
"""

import torch
from torch import Tensor

from vqtool.errors import VqtoolError
from vqtool.posterior import draw
from vqtool.samplers._walk import Walk, pick, place_first, put

NEEDS_MASK = True
DEFAULT_STEPS = 64


def sample(walk: Walk, *, steps: int | None = None, purity_weight: float = 1.0) -> Tensor:
    """Draw a batch of grids.

    Args:
        walk: the batch; its kernel has a mask.
        steps: denoiser calls, in [1, H * W]; None for DEFAULT_STEPS or H * W, whichever is less.
        purity_weight: how much the tokens of sure cells are sharpened; 0 not at all.

    Returns:
        (B, H, W) int64 tokens.

    Raises:
        VqtoolError: the number of steps or the weight is not possible.
    """
    kernel, num_cells = walk.kernel, walk.num_cells
    steps = min(DEFAULT_STEPS, num_cells) if steps is None else steps
    if not 1 <= steps <= num_cells:
        raise VqtoolError(f"--steps {steps}: purity sampling reveals cells in every step: 1 to {num_cells} steps here")
    if not 0 <= purity_weight < float("inf"):
        raise VqtoolError(f"--purity-weight {purity_weight}: must be 0 or more")
    delta = -(-num_cells // steps)
    x_t = torch.full_like(walk.noise(0, 1)[0], kernel.mask_id, dtype=torch.int64)
    for call, hidden in enumerate(range(num_cells, 0, -delta), start=1):
        cells = place_first(x_t == kernel.mask_id)[:, :hidden]
        log_x0 = walk.log_x0(x_t, walk.times(_time(hidden / num_cells, kernel.gamma_bar)), cells)  # (B, hidden, K)
        choice, order = walk.noise(call, 2)
        log_purity = log_x0.amax(-1).double()  # (B, hidden)
        score = (log_purity - log_purity.amax(1, keepdim=True)).exp()
        # Gumbel noise: the largest are a draw without replacement.
        keys = log_purity - torch.log(-torch.log1p(-pick(order, cells)))
        chosen = keys.topk(min(delta, hidden)).indices  # (B, delta)
        cells, power = cells.gather(1, chosen), 1 + purity_weight * score.gather(1, chosen)
        log_chosen = log_x0.gather(1, chosen[..., None].expand(-1, -1, log_x0.shape[-1]))
        x_t = put(x_t, cells, draw(_sharpen(log_chosen, power), pick(choice, cells)))
    return x_t


def _sharpen(log_p: Tensor, power: Tensor) -> Tensor:
    """Log p ** power up to a constant; (B, n, K) and (B, n)."""
    return (log_p - log_p.amax(-1, keepdim=True)) * power.to(log_p.dtype)[..., None]


def _time(masked_share: float, gamma_bar: Tensor) -> int:
    """The t in [1, T] at which about this share of the cells is masked."""
    return 1 + int((gamma_bar[1:] - masked_share).abs().argmin())
