"""Purity sampling: unmask a few cells a call, first those that the denoiser is sure of, and sharpen them.

When to use it: for kernels with a mask; better pictures than ancestral sampling in fewer calls, with less variety.
Equation: Delta = cells / steps masked cells are unmasked a call; the denoiser is told the t whose gamma_bar_t is
nearest to the masked share; purity = max_k p(x_0 = k | x_t); cells are drawn without replacement in proportion to
purity, and their tokens from p ** power, renormalised. An unmasked token stays. By the form "code"

    power = 1 + purity_weight * score,   score = purity over its largest value among the masked cells of the grid,

which sharpens sure cells most; by the form "paper" power = purity ** -purity_weight, which sharpens unsure ones most.
Cost: `steps` denoiser calls, whose head computes the masked cells only.
Source: Tang et al. 2022 (arXiv:2205.16007), sections 3.2 and 3.3, and its code; differs from the code: any grid, T and
number of steps, t from the masked share, and the score knows masked cells only.
"""

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from vqtool.diffusion.posterior import draw
from vqtool.options import Checked, option
from vqtool.samplers._unmask import choose_steps, even, find_largest, gumbel, unmask_by_prediction
from vqtool.samplers._walk import Walk

NEEDS_MASK = True


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """How many cells a call, and how their tokens are sharpened."""

    steps: int | None = option(None, "Denoiser calls, 1 to the number of cells.", usual=8)
    purity_weight: float = option(1.0, "How much tokens are sharpened; 0 is not at all.", minimum=0)
    purity_form: str = option("code", "Sharpening by the published code or by the paper.", choices=("code", "paper"))


def sample(walk: Walk, options: Options) -> Tensor:
    """Draw a batch of grids.

    Args:
        walk: the batch; its kernel has a mask.
        options: how.

    Returns:
        (B, H, W) int64 tokens.

    Raises:
        VqtoolError: the number of steps is not possible.
    """
    plan = even(walk.num_cells, choose_steps(walk, options))
    return unmask_by_prediction(walk, partial(_choose, options.purity_weight, options.purity_form), plan)


def _choose(
    weight: float, form: str, _: int, count: int, log_x0: Tensor, choice: Tensor, order: Tensor, masked: Tensor
) -> tuple[Tensor, Tensor]:
    log_purity = log_x0.amax(-1).double()  # (G, n)
    places = find_largest(log_purity + gumbel(order), masked, count)
    largest = log_purity.masked_fill(~masked, -float("inf")).amax(1, keepdim=True)
    chosen = log_purity.gather(1, places)  # (G, count)
    score = (chosen - largest).exp().clamp(max=1)
    power = (-weight * chosen).exp() if form == "paper" else 1 + weight * score
    log_p = log_x0.gather(1, places[..., None].expand(-1, -1, log_x0.shape[-1]))
    sharp = (log_p - log_p.amax(-1, keepdim=True)) * power.to(log_p.dtype)[..., None]
    return places, draw(sharp, choice.gather(1, places))
