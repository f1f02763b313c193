"""Ancestral sampling: from x_T to x_0 along evenly spaced or listed steps, each an exact draw of q(x_s | x_t, x_0).

When to use it: for every kernel; the reference that other samplers are measured by. Tokens may be revised on the way
where the kernel replaces tokens.
Equation: x_0 ~ p(x_0 | x_t), x_s ~ q(x_s | x_t, x_0), for t = T, ..., and s the next of the steps; with "plug-in"
x_s ~ normalise(q(x_t | x_s) q(x_s | p(x_0 | x_t))).
Cost: one denoiser call a step, whose head computes the cells that may change and no others: which cells leave the mask
does not depend on x_0, and a token stays with at least some chance, whatever x_0 is.
Source: Austin et al. 2021 (arXiv:2107.03006), section 3.1; differs from VQ-Diffusion's fast sampling, which takes the
one-step posterior over several steps and so leaves a quarter and more of the tokens to the last one.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vqtool.diffusion.kernels import Kernel
from vqtool.diffusion.posterior import average_cells, average_posterior, draw, least_stay, sample_posterior
from vqtool.options import option
from vqtool.samplers._cells import pick, place_first, put
from vqtool.samplers._times import TimeOptions, choose_times
from vqtool.samplers._walk import Walk

NEEDS_MASK = False


@dataclass(frozen=True, kw_only=True)
class Options(TimeOptions):
    """When the denoiser is called, and how its predictions are averaged."""

    steps: int | None = option(None, "Denoiser calls, 1 to T.", usual=8)
    rule: str | None = option(
        None,
        "How predictions of x_0 are averaged.",
        shown="the prior's own",
        choices="diffusion/posterior.py:RULES",
        advanced=True,
    )


def sample(walk: Walk, options: Options) -> Tensor:
    """Draw a batch of grids.

    Args:
        walk: the batch.
        options: how; see `choose_times` for `steps` and `times`.

    Returns:
        (B, H, W) int64 tokens.

    Raises:
        VqtoolError: the steps or times are not possible.
    """
    x_t, rule = walk.begin(), options.rule or walk.rule
    for call, (t, s) in enumerate(pairwise(choose_times(walk, options)), start=1):
        x_t = step(walk, x_t, t, s, rule, walk.noise(call, 2))
    return x_t


def step(walk: Walk, x_t: Tensor, time: int, next_time: int, rule: str, noise: Tensor) -> Tensor:
    """One step of a batch.

    Args:
        walk: the batch.
        x_t: (B, H, W) int64 tokens or mask_id.
        time: t in [1, T].
        next_time: s in [0, t).
        rule: "mixture" or "plug-in".
        noise: (2, B, H, W) float64, uniform in [0, 1): what a cell becomes, and whether it stays.

    Returns:
        (B, H, W) int64 tokens or mask_id.
    """
    kernel, (choice, move) = walk.kernel, noise
    t, s = walk.times(time), walk.times(next_time)
    token_stays, mask_stays = least_stays(kernel, time, next_time, rule)
    may_change = move >= torch.full_like(move, token_stays).masked_fill(x_t == kernel.mask_id, mask_stays)
    changing = (1 - token_stays) + (token_stays - mask_stays) * float(kernel.gamma_bar[time])  # share of the cells
    x_s = x_t
    for cells in choose_cells(walk, walk.leave_known(may_change), changing):
        seen, moves = pick(x_t, cells)[:, None], pick(move, cells)[:, None]  # (B, 1, n): grids of one row
        if rule == "mixture":
            x_0 = walk.draw_x0(x_t, time, choice, cells)[:, None]
            drawn = sample_posterior(x_0, seen, t, s, kernel, moves)
        else:
            log_x0 = walk.log_x0(x_t, time, cells)[:, None]
            drawn = _draw_plug_in(log_x0, seen, t, s, kernel, pick(choice, cells)[:, None], moves)
        x_s = put(x_s, cells, drawn[:, 0])
    return walk.keep(x_s)


def least_stays(kernel: Kernel, time: int, next_time: int, rule: str) -> tuple[float, float]:
    """The least chances that a token, and that a mask, stays."""
    states = torch.tensor([[[0, kernel.mask_id if kernel.has_mask else 0]]])
    token, mask = least_stay(states, torch.tensor([time]), torch.tensor([next_time]), kernel, rule).flatten().tolist()
    return token, mask


def choose_cells(walk: Walk, wanted: Tensor, changing: float) -> Iterator[Tensor]:
    """The cells to look at in a step: the parts of ``split``, of which a GPU, which is not to be waited for, has one.

    That has room for more cells, and the walk remembers if it was too small nevertheless (one step in 10 ** 14).

    Args:
        walk: the batch.
        wanted: (B, H, W) bool.
        changing: which share of the cells is wanted on average.
    """
    if walk.on_cpu:
        yield from split(wanted, expect(changing, walk.num_cells))
        return
    count = walk.num_cells if walk.is_careful else expect(changing, walk.num_cells, deviations=8)
    walk.mark_incomplete((wanted.flatten(1).sum(1) > count).any())
    yield place_first(wanted)[:, :count]


def expect(changing: float, num_cells: int, *, deviations: int = 4) -> int:
    """How many cells of a sample to look at together: as many as may change, but for about one step in a million.

    It depends on the step alone, never on the samples: see `vqtool.samplers._walk`.
    """
    mean = num_cells * changing
    count = 8 * math.ceil((mean + deviations * math.sqrt(mean) + deviations // 2) / 8)
    return min(count, num_cells)


def split(wanted: Tensor, count: int, most: int | None = None) -> Iterator[Tensor]:
    """The cells that are wanted (B, H, W), `count` a sample at a time, filled up with others: (B, count) int64.

    Args:
        wanted: (B, H, W) bool.
        count: cells in a part.
        most: the most that are wanted of a sample; None to look.
    """
    order = place_first(wanted)
    missing = -order.shape[1] % count
    order = torch.cat([order, order[:, -1:].expand(-1, missing)], dim=1)
    most = int(wanted.flatten(1).sum(1).max()) if most is None else most
    for begin in range(0, max(most, 1), count):
        yield order[:, begin : begin + count]


def _draw_plug_in(
    log_x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, kernel: Kernel, choice: Tensor, move: Tensor
) -> Tensor:
    """X_s from the plug-in average, (B, H, W): one uniform number says whether x_t stays, the other what it becomes."""
    stay = average_cells(log_x0, x_t, t, s, kernel, "plug-in").log_stay.exp()
    others = average_posterior(log_x0, x_t, t, s, kernel, "plug-in").scatter(-1, x_t.unsqueeze(-1), -torch.inf)
    stays = (move < stay) | (others.amax(-1) == -torch.inf)
    return torch.where(stays, x_t, draw(others.masked_fill(stays.unsqueeze(-1), 0.0), choice))
