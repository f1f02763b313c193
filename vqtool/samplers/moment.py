"""Moment sampling: choose the cells first, then draw their tokens; what confidence sampling does on average.

When to use it: as confidence sampling, of which it is the limit for many cells, with the law of every draw in the open.
Equation: with a = choice_temperature * (1 - i / S) in call i of S and b = 1 + 1 / a, cells are drawn without
replacement in proportion to their moment sum_k p(x_0 = k | x_t) ** b, and their tokens from p ** b, renormalised; the
counts are those of confidence sampling. The last call chooses nothing: there b = 1.
Cost: `steps` denoiser calls, whose head looks at the masked cells only.
Source: Hayakawa et al. 2025 (arXiv:2510.04525).
"""

from functools import partial

from torch import Tensor

from vqtool.diffusion.posterior import draw
from vqtool.samplers._reveal import (
    check_choice_temperature,
    choose_steps,
    cosine,
    find_largest,
    gumbel,
    reveal_by_prediction,
)
from vqtool.samplers._walk import Walk

NEEDS_MASK = True
DEFAULT_STEPS = 16


def sample(walk: Walk, *, steps: int | None = None, choice_temperature: float = 4.5) -> Tensor:
    """Draw a batch of grids.

    Args:
        walk: the batch; its kernel has a mask.
        steps: denoiser calls, in [1, H * W]; None for DEFAULT_STEPS or H * W, whichever is less.
        choice_temperature: above 0; smaller ones prefer sure cells more, and sharpen them more.

    Returns:
        (B, H, W) int64 tokens.

    Raises:
        VqtoolError: the number of steps or the temperature is not possible.
    """
    steps = choose_steps(steps, DEFAULT_STEPS, walk.num_cells, "moment")
    check_choice_temperature(choice_temperature, least=1e-6)
    rule = partial(_choose, choice_temperature, steps)
    return reveal_by_prediction(walk, rule, cosine(walk.num_cells, steps))


def _choose(
    temperature: float, steps: int, call: int, count: int, log_x0: Tensor, choice: Tensor, order: Tensor, masked: Tensor
) -> tuple[Tensor, Tensor]:
    power = 1.0 if call == steps else 1 + 1 / (temperature * (1 - call / steps))
    scaled = log_x0 * power
    places = find_largest(scaled.logsumexp(-1).double() + gumbel(order), masked, count)
    chosen = scaled.gather(1, places[..., None].expand(-1, -1, scaled.shape[-1]))
    return places, draw(chosen.log_softmax(-1), choice.gather(1, places))
