"""Entropy-bounded sampling: as many cells a call as an entropy budget allows, those of least entropy first.

When to use it: for kernels with a mask, where the number of calls should follow the picture: cells that are
already certain cost nothing. Each sample takes as many calls as it needs; the surer the denoiser, the fewer.
Equation: with the entropies H_1 <= H_2 <= ... of p(x_0 | x_t) in the masked cells, the largest prefix U is unmasked
with sum_U H - max_U H <= entropy_budget, at least one cell; this bounds the dependence that is lost by drawing their
tokens independently. The tokens are drawn from p(x_0 | x_t). With a budget of 0 a call unmasks one cell and those that
are certain.
Cost: 1 to H * W denoiser calls, as the budget allows; the head computes the masked cells only.
Source: Ben-Hamu et al. 2025 (arXiv:2505.24857), the EB-Sampler with entropy as its error.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vqtool.diffusion.posterior import draw
from vqtool.options import Checked, option
from vqtool.samplers._unmask import ask, find_times, unmask
from vqtool.samplers._walk import Times, Walk

NEEDS_MASK = True


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """How many cells a call."""

    entropy_budget: float = option(16.0, "Nats that a call may unmask; more take fewer calls.", minimum=0)


def sample(walk: Walk, options: Options) -> Tensor:
    """Draw a batch of grids.

    Args:
        walk: the batch; its kernel has a mask.
        options: how.

    Returns:
        (B, H, W) int64 tokens.
    """

    def choose(log_x0: Tensor, choice: Tensor, _: Tensor, masked: Tensor) -> tuple[Tensor, ...]:
        entropy = torch.special.entr(log_x0.exp()).sum(-1).masked_fill(~masked, torch.inf)  # (G, n)
        ordered, places = entropy.double().sort(dim=1, stable=True)
        before = ordered.cumsum(1) - ordered  # of those up to a cell without the largest, which is its own
        count = ((before <= options.entropy_budget) & masked.gather(1, places)).sum(1)
        return places, draw(log_x0, choice).gather(1, places), count

    x_t = walk.begin(mask_lost=True)
    for call in range(1, walk.num_cells + 1):  # at least one cell a call: so many may still be masked
        masked = (x_t == walk.kernel.mask_id).flatten(1).sum(1).cpu()  # a GPU has to say whether it is done
        if not bool(masked.any()):
            break
        if call > 1:  # as many cells in each of the calls to come, on average
            walk.num_planned = (call - 1) * walk.num_cells / max(1.0, walk.num_cells - float(masked.double().mean()))
        known = find_times(masked, walk)
        times = Times(known, walk.upload([known])[0])
        places, tokens, count, cells = ask(walk, x_t, call, walk.num_cells - call + 1, choose, times, masked > 0)
        x_t = unmask(x_t, cells.gather(1, places), tokens, count)
    return x_t
