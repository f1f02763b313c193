"""Fewer tokens a call: reveal the same number of masked cells in every call, in random order.

When to use it: for kernels with a mask, where ancestral sampling reveals a random number a step; with as many steps as
cells each token is drawn from its exact conditional law, in fewer calls than T where T is more.
Equation: Delta = cells / steps masked cells are revealed a call, uniformly at random; their tokens are drawn from
p(x_0 | x_t), and stay. The denoiser is told the t whose gamma_bar_t is nearest to the masked share.
Cost: `steps` denoiser calls, whose head looks at the Delta cells only.
Source: Tang et al. 2022 (arXiv:2205.16007), section 3.2; differs from its code: any grid, T and number of steps, t from
the masked share in every call, and the last call does not draw revealed tokens anew.
"""

from torch import Tensor

from vqtool.samplers._reveal import choose_steps, even, reveal_in_order
from vqtool.samplers._walk import Walk

NEEDS_MASK = True
DEFAULT_STEPS = 64


def sample(walk: Walk, *, steps: int | None = None) -> Tensor:
    """Draw a batch of grids.

    Args:
        walk: the batch; its kernel has a mask.
        steps: denoiser calls, in [1, H * W]; None for DEFAULT_STEPS or H * W, whichever is less.

    Returns:
        (B, H, W) int64 tokens.

    Raises:
        VqtoolError: the number of steps is not possible.
    """
    steps = choose_steps(steps, DEFAULT_STEPS, walk.num_cells, "fewer")
    return reveal_in_order(walk, walk.noise(0, 2)[1], even(walk.num_cells, steps))
