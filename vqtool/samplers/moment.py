"""Moment sampling: choose the cells first, then draw their tokens; what confidence sampling does on average.

When to use it: as confidence sampling, of which it is the limit for many cells, with the law of every draw known.
Equation: with a = choice_temperature * (1 - i / S) in call i of S and b = 1 + 1 / a, cells are drawn without
replacement in proportion to their moment sum_k p(x_0 = k | x_t) ** b, and their tokens from p ** b, renormalised; the
counts are those of confidence sampling. The last call unmasks all cells that are left: there b = 1.
Cost: `steps` denoiser calls, whose head computes the masked cells only.
Source: Hayakawa et al. 2025 (arXiv:2510.04525).
"""

from dataclasses import dataclass

from torch import Tensor

from vqtool.diffusion.posterior import draw
from vqtool.options import Checked, option
from vqtool.samplers._unmask import find_largest, gumbel, unmask_by_choice_temperature
from vqtool.samplers._walk import Walk

NEEDS_MASK = True


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """How the cells are chosen."""

    steps: int | None = option(None, "Denoiser calls, 1 to the number of cells.", usual=16)
    choice_temperature: float = option(
        4.5, "Randomness of the choice of cells; falls to 0.", minimum=1e-6, advanced=True
    )


def sample(walk: Walk, options: Options) -> Tensor:
    """Draw a batch of grids.

    Args:
        walk: the batch; its kernel has a mask.
        options: how; smaller choice temperatures prefer sure cells more, and sharpen them more.

    Returns:
        (B, H, W) int64 tokens.

    Raises:
        VqtoolError: the number of steps is not possible.
    """
    return unmask_by_choice_temperature(walk, options, _choose)


def _choose(
    temperature: float, count: int, log_x0: Tensor, choice: Tensor, order: Tensor, masked: Tensor
) -> tuple[Tensor, Tensor]:
    scaled = log_x0 * (1 + 1 / temperature if temperature else 1.0)
    places = find_largest(scaled.logsumexp(-1).double() + gumbel(order), masked, count)
    chosen = scaled.gather(1, places[..., None].expand(-1, -1, scaled.shape[-1]))
    return places, draw(chosen.log_softmax(-1), choice.gather(1, places))
