"""Ancestral sampling: from x_T to x_0 along evenly spaced steps, each an exact draw of q(x_s | x_t, x_0).

When to use it: for every kernel; the reference that other samplers are measured by. Tokens may be revised on the way
where the kernel replaces tokens.
Equation: x_0 ~ p(x_0 | x_t), x_s ~ q(x_s | x_t, x_0), for t = T, ..., and s the next of the steps; with "plug-in"
x_s ~ normalise(q(x_t | x_s) q(x_s | p(x_0 | x_t))).
Cost: one denoiser call a step.
Source: Austin et al. 2021 (arXiv:2107.03006), section 3.1; differs from VQ-Diffusion's fast sampling, which takes the
one-step posterior over several steps and so leaves a quarter and more of the tokens to the last one.
"""

from itertools import pairwise

import torch
from torch import Tensor

from vqtool.errors import VqtoolError
from vqtool.posterior import RULES, average_posterior, draw, sample_posterior
from vqtool.samplers._walk import Walk

NEEDS_MASK = False
DEFAULT_STEPS = 100


def sample(walk: Walk, *, steps: int | None = None, rule: str | None = None) -> Tensor:
    """Draw a batch of grids.

    Args:
        walk: the batch.
        steps: denoiser calls, in [1, T]; None for DEFAULT_STEPS or T, whichever is less.
        rule: how x_0 is averaged, "mixture" or "plug-in"; None for what the prior was trained with.

    Returns:
        (B, H, W) int64 tokens.

    Raises:
        VqtoolError: the number of steps or the rule is not possible.
    """
    kernel = walk.kernel
    steps = min(DEFAULT_STEPS, kernel.num_steps) if steps is None else steps
    if not 1 <= steps <= kernel.num_steps:
        raise VqtoolError(f"--steps {steps}: ancestral sampling of this prior takes 1 to {kernel.num_steps} steps")
    rule = walk.rule if rule is None else rule
    if rule not in RULES:
        raise VqtoolError(f"--rule {rule}: unknown; known are {', '.join(RULES)}")
    times = torch.linspace(kernel.num_steps, 0, steps + 1).round().long().tolist()
    x_t = kernel.sample_stationary(walk.noise(0, 1)[0])
    for call, (time, next_time) in enumerate(pairwise(times), start=1):
        t, s = walk.times(time), walk.times(next_time)
        log_x0 = walk.log_x0(x_t, time)
        choice, move = walk.noise(call, 2)
        if rule == "mixture":
            x_t = sample_posterior(draw(log_x0, choice), x_t, t, s, kernel, move)
        else:
            x_t = draw(average_posterior(log_x0, x_t, t, s, kernel, rule), choice)
    return x_t
