"""Confidence sampling (MaskGIT): draw all masked cells, keep those tokens that are likeliest, mask the rest again.

When to use it: for kernels with a mask, in few calls (8 to 16); less variety than samplers that choose at random.
Equation: x_0 ~ p(x_0 | x_t) in every masked cell; its confidence is log p(x_0 | x_t) + a * Gumbel noise with
a = choice_temperature * (1 - i / S) in call i of S; the cells of greatest confidence are revealed, so that
max(1, min(masked - 1, floor(cells * cos(pi / 2 * i / S)))) stay masked, and none after the last call.
Cost: `steps` denoiser calls, whose head looks at the masked cells only.
Source: Chang et al. 2022 (arXiv:2202.04200), section 3.2, and its code, whose counts are golden.
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
        choice_temperature: of the choice of cells in the first call, from which it falls to 0; 0 or more.

    Returns:
        (B, H, W) int64 tokens.

    Raises:
        VqtoolError: the number of steps or the temperature is not possible.
    """
    steps = choose_steps(steps, DEFAULT_STEPS, walk.num_cells, "confidence")
    check_choice_temperature(choice_temperature, least=0.0)
    rule = partial(_choose, choice_temperature, steps)
    return reveal_by_prediction(walk, rule, cosine(walk.num_cells, steps))


def _choose(
    temperature: float, steps: int, call: int, count: int, log_x0: Tensor, choice: Tensor, order: Tensor, masked: Tensor
) -> tuple[Tensor, Tensor]:
    tokens = draw(log_x0, choice)  # (G, n)
    log_p = log_x0.gather(-1, tokens[..., None])[..., 0].double()
    noise = temperature * (1 - call / steps)
    keys = log_p + noise * gumbel(order) if noise else log_p
    places = find_largest(keys, masked, count)
    return places, tokens.gather(1, places)
