"""Gibbs sampling between ancestral steps: some tokens are drawn anew, given all other cells: mistakes are mended.

When to use it: for every kernel, where few ancestral steps leave cells that do not fit each other. With a kernel that
replaces tokens (`uniform`, `paper`) the least sure cells can be chosen (`--corrector-choice least-sure`); with masks
alone any cells are.
Equation: at each time s between the steps, for some cells i, x_i ~ q(x_s^i | x_s without i) = a p(x_0^i | the others) +
(1 - a) / K, a the chance that a token is the original; masks stay where they are. One cell a call leaves the law q(x_s)
as it is, exactly; several, which do not see each other, nearly. p(x_0^i | the others) is what the denoiser says where
cell i is masked; or, for kernels that replace tokens, its p(x_0 | x_t) without the evidence of x_t itself, in closed
form. The least sure cells are those whose token has the smallest margin over the likeliest other one, with Gumbel
noise: that choice looks at the cells, so the law is kept only nearly.
Cost: steps * (1 + corrector_calls) denoiser calls, whose head computes the chosen cells, or all for the least sure.
Source: Zhao et al. 2024 (arXiv:2407.21243), informed correctors; arXiv:2605.22765 for uniform diffusion, whose
scheduler in diffusers (DiscreteDDIMScheduler) is an oracle of the tests.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vqtool.diffusion.kernels import Kernel
from vqtool.diffusion.parameterisations import leave_one_out
from vqtool.diffusion.posterior import draw, replaces
from vqtool.errors import VqtoolError
from vqtool.options import option
from vqtool.samplers import ancestral
from vqtool.samplers._cells import pick, put
from vqtool.samplers._times import choose_times
from vqtool.samplers._unmask import find_largest, gumbel
from vqtool.samplers._walk import Walk

NEEDS_MASK = False


@dataclass(frozen=True, kw_only=True)
class Options(ancestral.Options):
    """When the denoiser is called, and what is drawn anew in between."""

    corrector_calls: int = option(1, "Calls between two steps, in which cells are drawn anew.", minimum=0, maximum=1000)
    corrector_cells: int | None = option(
        None, "Cells drawn anew in such a call.", shown="one in eight", minimum=1, advanced=True
    )
    corrector_choice: str = option(
        "random",
        "Which; least-sure is for kernels that replace tokens.",
        choices=("random", "least-sure"),
        advanced=True,
    )
    corrector_interval: tuple[float, float] = option(
        (0.0, 1.0), "Part of the way, 0 to 1, with such calls.", minimum=0, maximum=1, rising=True, advanced=True
    )


def sample(walk: Walk, options: Options) -> Tensor:
    """Draw a batch of grids; without corrector calls it is ancestral sampling, bit for bit.

    Args:
        walk: the batch.
        options: how; see `choose_times` for `steps` and `times`.

    Returns:
        (B, H, W) int64 tokens.

    Raises:
        VqtoolError: the steps, times or cells are not possible, or the kernel does not replace tokens.
    """
    count = options.corrector_cells or max(1, walk.num_cells // 8)
    if count > walk.num_cells:
        raise VqtoolError(f"`corrector_cells` {count}: these grids have {walk.num_cells} cells")
    if options.corrector_choice == "least-sure" and not replaces(walk.kernel):
        raise VqtoolError(
            "`corrector_choice` least-sure needs a kernel that replaces tokens, as uniform does; "
            f"{walk.kernel.name} does not: leave it out"
        )
    x_t, rule, times = walk.begin(), options.rule or walk.rule, choose_times(walk, options)
    (low, high), num_steps, calls = options.corrector_interval, walk.kernel.num_steps, options.corrector_calls
    corrected = [s for s in times[1:-1] if low <= 1 - s / num_steps <= high]
    walk.num_planned = len(times) - 1 + calls * len(corrected)
    call = 0
    for t, s in pairwise(times):
        call += 1
        x_t = ancestral.step(walk, x_t, t, s, rule, walk.noise(call, 2))
        for _ in range(calls if s in corrected else 0):
            call += 1
            x_t = correct(walk, x_t, s, count, options.corrector_choice, rule, walk.noise(call, 2))
    return x_t


def correct(walk: Walk, x_t: Tensor, time: int, count: int, choice: str, rule: str, noise: Tensor) -> Tensor:
    """Draw some cells of x_t anew, given the others.

    Args:
        walk: the batch.
        x_t: (B, H, W) int64 tokens or mask_id.
        time: t in [1, T].
        count: how many cells of a sample, at most those that are neither masked nor known.
        choice: "random" or "least-sure".
        rule: that the denoiser was trained with: with "plug-in" it predicts a cell from the others alone.
        noise: (2, B, H, W) float64, uniform in [0, 1): what a cell becomes, and which cells do.

    Returns:
        (B, H, W) int64 tokens or mask_id.
    """
    kernel, order = walk.kernel, noise[1].flatten(1)
    free = walk.leave_known(x_t != kernel.mask_id).flatten(1)
    if choice == "random":
        cells = find_largest(order, free, count)
        hit, seen = free.gather(1, cells), pick(x_t, cells)
        asked = put(x_t, cells, seen.masked_fill(hit, kernel.mask_id)) if kernel.has_mask else x_t
        drawn, _ = _redraw(walk, asked, time, cells, rule, noise[0])
    else:
        drawn, margin = _redraw(walk, x_t, time, None, rule, noise[0])
        cells = find_largest(gumbel(order) - margin, free, count)
        hit, seen, drawn = free.gather(1, cells), pick(x_t, cells), drawn.gather(1, cells)
    return put(x_t, cells, torch.where(hit, drawn, seen))


def conditional(log_loo: Tensor, time: int, kernel: Kernel) -> Tensor:
    """Log q(x_t = k | x_t is a token, the others), (..., K), from log p(x_0 | the others)."""
    alpha, _, gamma = (float(rate[time]) for rate in kernel.tables(torch.device("cpu")))
    kept = alpha / (1 - gamma) if gamma < 1 else 0.0
    if kept >= 1:
        return log_loo
    even = torch.full_like(log_loo, math.log1p(-kept) - math.log(kernel.codebook_size))
    return torch.logaddexp(log_loo + math.log(kept), even) if kept > 0 else even


def _redraw(
    walk: Walk, x_t: Tensor, time: int, cells: Tensor | None, rule: str, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Tokens drawn anew and the margins of the present ones, (B, n) each, at cells (B, n); None for all."""
    kernel, temperature = walk.kernel, walk.temperature(torch.full((len(walk.samples),), time))
    seen, noise = (each.flatten(1) if cells is None else pick(each, cells) for each in (x_t, noise))

    def redraw(log_x0: Tensor, seen: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        log_x0 = log_x0.flatten(1, -2)  # (G, n, K)
        t = torch.full((len(seen),), time, device=seen.device)
        loo = log_x0 if rule == "plug-in" else leave_one_out(log_x0, seen, t, kernel, temperature)
        log_p = conditional(loo, time, kernel)
        place = seen.clamp(max=kernel.codebook_size - 1)[..., None]
        others = log_p.scatter(-1, place, -torch.inf).amax(-1)
        return draw(log_p, noise), log_p.gather(-1, place)[..., 0].double() - others.double()

    drawn, margin = walk.apply(redraw, x_t, time, cells, seen, noise)
    return drawn, margin
