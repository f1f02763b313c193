"""Fewer tokens a call: unmask the same number of cells in every call, in random order.

When to use it: for kernels with a mask, where ancestral sampling unmasks a random number a step; with as many steps as
cells each token is drawn from its exact conditional law, in fewer calls than T where T is more.
Equation: Delta = cells / steps masked cells are unmasked a call, uniformly at random; their tokens are drawn from
p(x_0 | x_t), and stay. The denoiser is told the t whose gamma_bar_t is nearest to the masked share.
Cost: `steps` denoiser calls, whose head computes the Delta cells only.
Source: Tang et al. 2022 (arXiv:2205.16007), section 3.2; differs from its code: any grid, T and number of steps, t from
the masked share in every call, and the last call does not draw unmasked tokens anew.
"""

from dataclasses import dataclass

from torch import Tensor

from vqtool.options import Checked, option
from vqtool.samplers._unmask import choose_steps, even, unmask_in_order
from vqtool.samplers._walk import Walk

NEEDS_MASK = True


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """How many cells a call."""

    steps: int | None = option(None, "Denoiser calls, 1 to the number of cells.", usual=8)


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
    return unmask_in_order(walk, walk.noise(0, 2)[1], plan)
