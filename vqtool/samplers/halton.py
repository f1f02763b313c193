"""Halton sampling: unmask cells along the Halton sequence, so that those of one call are far apart.

When to use it: for kernels with a mask, in few calls: cells that are drawn together without knowing of each other
depend on each other least when they are far apart.
Equation: the points (h_2(n), h_3(n)), n = 1, 2, ..., of the sequence in bases 2 (rows) and 3 (columns) fall into the
cells of the grid; cells are unmasked in the order in which they are first hit, floor(r * cells) of them after call i of
S, at least i, with r = 1 - acos(i / S) / (pi / 2): few at first. Their tokens are drawn from p(x_0 | x_t).
Cost: `steps` denoiser calls, whose head computes the cells of the call only.
Source: Besnier et al. 2025 (arXiv:2503.17076); differs from its code: any H x W. Its orders and counts are golden.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from vqtool.options import Checked, option
from vqtool.samplers._unmask import choose_steps, unmask_in_order
from vqtool.samplers._walk import Walk

NEEDS_MASK = True


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """How many cells a call, and where the order starts."""

    steps: int | None = option(None, "Denoiser calls, 1 to the number of cells.", usual=8)
    roll: bool = option(False, "Start each sample at a random place of the order.")


def sample(walk: Walk, options: Options) -> Tensor:
    """Draw a batch of grids.

    Args:
        walk: the batch; its kernel has a mask.
        options: how; a rolled order goes on from its end to its beginning.

    Returns:
        (B, H, W) int64 tokens.

    Raises:
        VqtoolError: the number of steps is not possible.
    """
    num_cells = walk.num_cells
    plan = arccos(num_cells, choose_steps(walk, options))
    noise = walk.noise(0, 2)[1]  # (B, H, W)
    rank = find_order(*walk.grid_size).argsort().view(walk.grid_size).to(noise).expand_as(noise)
    if options.roll:
        first = (noise[:, :1, :1] * num_cells).floor()
        rank = (rank - first) % num_cells
    return unmask_in_order(walk, rank, plan)


def arccos(num_cells: int, steps: int) -> Iterator[Tensor]:
    """The plan of Halton-MaskGIT; see `vqtool.samplers._unmask`."""
    start = torch.arange(num_cells + 1)
    for call in range(1, steps + 1):
        share = 1 - math.acos(call / steps) / (math.pi / 2)
        yield (start - (start * share).long().clamp(min=call)).clamp(min=0)


@lru_cache(maxsize=16)
def find_order(height: int, width: int) -> Tensor:
    """(H * W,) int64: cells, as row * W + column, in the order in which the Halton sequence first hits them."""
    size = height * width
    count = 4 * size
    while True:
        points = torch.arange(1, count + 1)
        hit = _scale(points, 2, height) * width + _scale(points, 3, width)
        first = torch.full((size,), count).scatter_reduce(0, hit, points - 1, "amin")
        if int(first.max()) < count:
            return first.argsort()
        count *= 2


def _scale(points: Tensor, base: int, length: int) -> Tensor:
    """Floor(length * h(n)), h(n) the digits of n in that base behind the point, in the opposite order."""
    value, power = torch.zeros_like(points), 1
    while bool(points.any()):
        value, power, points = value * base + points % base, power * base, points // base
    return value * length // power
