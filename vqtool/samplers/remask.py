"""Remasking: draw all masked cells, keep the surest of all that are drawn, mask the least sure again.

When to use it: for kernels with a mask, as `confidence`, where mistakes are to be mended: tokens of earlier calls, too,
are masked again where later ones are surer, so there may be more calls than cells.
Equation: x_0 ~ p(x_0 | x_t) in every masked cell, with the confidence log p(x_0 | x_t) + a * Gumbel noise of that call,
a = choice_temperature * (1 - i / S) in call i of S; of all cells the surest stay, so that max(1, floor(cells *
cos(pi / 2 * i / S))) are masked, and none after the last call. A token keeps the confidence with which it was drawn
(ReMDM's schedule by confidence); or, with `--sureness now`, has what the denoiser says of it from the other cells now
(P2's planning by itself), which only kernels that replace tokens (`paper`) teach a denoiser.
Cost: `steps` denoiser calls, whose head computes the masked cells, or all for `--sureness now`.
Source: Wang et al. 2025 (arXiv:2503.00307), ReMDM, section 4; Peng et al. 2025 (arXiv:2502.03540), P2. Differs from
both: the surest are kept, with noise, not each cell masked again with a chance of its own.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vqtool.diffusion.parameterisations import leave_one_out
from vqtool.diffusion.posterior import draw, replaces
from vqtool.errors import VqtoolError
from vqtool.options import Checked, option
from vqtool.samplers._cells import pick, place_first, put
from vqtool.samplers._unmask import find_largest, find_times, gumbel
from vqtool.samplers._walk import Times, Walk

NEEDS_MASK = True


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """How many calls, and which cells stay."""

    steps: int | None = option(None, "Denoiser calls, 1 or more; more than cells, too.", usual=16, minimum=1)
    sureness: str = option(
        "drawn", "Of a token: when it was drawn, or as others see it now.", choices=("drawn", "now"), advanced=True
    )
    choice_temperature: float = option(4.5, "Randomness of the choice of cells; falls to 0.", minimum=0, advanced=True)


def sample(walk: Walk, options: Options) -> Tensor:
    """Draw a batch of grids.

    Args:
        walk: the batch; its kernel has a mask.
        options: how.

    Returns:
        (B, H, W) int64 tokens.

    Raises:
        VqtoolError: the kernel never replaces tokens, and sureness is to be that of now.
    """
    if options.sureness == "now" and not replaces(walk.kernel):
        raise VqtoolError(
            f"`sureness` now needs a kernel that replaces tokens; {walk.kernel.name} never does: leave it out"
        )
    x_t = walk.begin(mask_lost=True)
    free = (x_t == walk.kernel.mask_id).flatten(1)  # what is not given by the user
    start, plan = free.sum(1).cpu(), plan_masked(walk, options.steps)
    walk.num_planned = len(plan) - 1
    times = [find_times(masked[start], walk, len(plan) - 1 - call) for call, masked in enumerate(plan[:-1])]
    kept = [start - masked[start] for masked in plan[1:]]
    uploaded = walk.upload([torch.stack(pair) for pair in zip(times, kept, strict=True)])
    sure = torch.full(free.shape, -torch.inf, dtype=torch.float64, device=x_t.device)
    for call, (known, (there, count)) in enumerate(zip(times, uploaded, strict=True), start=1):
        walk.call = call - 1, len(plan) - 1
        choice, order = walk.noise(call, 2)
        active = plan[call - 1][start] > 0
        if not bool(active.any()):
            continue
        most = walk.num_cells if options.sureness == "now" else int(plan[call - 1].max())
        x_t, sure = _fill(walk, x_t, sure, Times(known, there), choice, options.sureness, most, active)
        noisy = sure
        if temperature := options.choice_temperature * (1 - call / (len(plan) - 1)):
            noisy = sure + temperature * gumbel(order.flatten(1))
        keep = torch.zeros_like(free).scatter(
            1,
            find_largest(noisy, free, walk.num_cells),
            torch.arange(walk.num_cells, device=x_t.device) < count[:, None],
        )
        x_t = torch.where((free & ~keep).view_as(x_t), walk.kernel.mask_id, x_t)
    return x_t


def plan_masked(walk: Walk, steps: int | None) -> list[Tensor]:
    """How many cells are masked before the first call and after each, for every number of masked cells at the start.

    Returns:
        steps + 1 tables (H * W + 1,) int64; the last is 0.
    """
    count = walk.usual_steps(16) if steps is None else steps
    start = torch.arange(walk.num_cells + 1)
    inner = [(start * math.cos(math.pi / 2 * call / count)).floor().long() for call in range(1, count)]
    return [start, *(masked.clamp(min=1).minimum(start) for masked in inner), torch.zeros_like(start)]


def _fill(
    walk: Walk, x_t: Tensor, sure: Tensor, times: Times, choice: Tensor, sureness: str, most: int, active: Tensor
) -> tuple[Tensor, Tensor]:
    """A grid without masks, (B, H, W), and how sure each token is, (B, H * W) float64 nats."""
    kernel = walk.kernel
    temperature = walk.temperature(times.known)
    cells = place_first(x_t == kernel.mask_id)[:, :most]  # (B, n)
    seen, before = pick(x_t, cells), sure.gather(1, cells)

    def fill(log_x0: Tensor, seen: Tensor, before: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        log_p = leave_one_out(log_x0, seen, t, kernel, temperature) if sureness == "now" else log_x0
        tokens = torch.where(seen == kernel.mask_id, draw(log_p, noise), seen)
        now = log_p.gather(-1, tokens[..., None])[..., 0].double()
        return tokens, now if sureness == "now" else torch.where(seen == kernel.mask_id, now, before)

    tokens, now = walk.apply(fill, x_t, times, cells, seen, before, pick(choice, cells), times.there, active=active)
    tokens = torch.where(seen == kernel.mask_id, tokens, seen)  # also of samples that need no call
    return put(x_t, cells, tokens), sure.scatter(1, cells, now)
