"""First-hitting sampling: ancestral sampling without the calls in which nothing changes.

When to use it: for absorbing kernels, in place of ancestral sampling with many steps: the same law, for any network,
in fewer calls. For few steps, where hardly any step leaves all cells as they are, it saves nothing.
Equation: a masked cell is unmasked in the step from t to s with chance (gamma_bar_t - gamma_bar_s) / gamma_bar_T,
whatever the tokens are; so these steps are drawn first, and then x_0 ~ p(x_0 | x_t) of each cell at its own t alone.
Cost: a denoiser call for each step that unmasks a cell of the sample: steps * (1 - (1 - 1 / steps) ** cells) on average
for even chances, at most min(steps, cells). Each sample of a batch has its own times; microbatches in which all samples
are finished cost nothing.
Source: Zheng et al. 2024 (arXiv:2409.02908), in discrete time: there are T steps and their ties stay.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vqtool.options import option
from vqtool.samplers._cells import pick, put
from vqtool.samplers._times import TimeOptions, choose_times
from vqtool.samplers._walk import Times, Walk
from vqtool.samplers.ancestral import expect, split

NEEDS_MASK = True
NEEDS_ABSORBING = True


@dataclass(frozen=True, kw_only=True)
class Options(TimeOptions):
    """The steps of the ancestral sampling that has the same law."""

    steps: int | None = option(None, "Steps, 1 to T; each that unmasks a cell costs a call.", shown="T")


def sample(walk: Walk, options: Options) -> Tensor:
    """Draw a batch of grids.

    Args:
        walk: the batch; tokens of its kernel are final.
        options: how; see `choose_times` for `steps` and `times`.

    Returns:
        (B, H, W) int64 tokens.

    Raises:
        VqtoolError: the steps or times are not possible.
    """
    kernel = walk.kernel
    stops = choose_times(walk, options)
    gammas = kernel.gamma_bar[stops]
    x_t, (_, order, choice) = walk.begin(), walk.noise(0, 3)
    opens = torch.where(x_t == kernel.mask_id, _draw_times(stops, gammas, order), 0)
    count = expect(float(-gammas.diff().min() / gammas[0]), walk.num_cells)
    calls = list(_plan_calls(opens.flatten(1).cpu()))
    walk.num_planned = len(calls)
    for (known, wanted), t in zip(calls, walk.upload([known for known, _ in calls]), strict=True):
        now = (opens == t[:, None, None]) & (opens > 0)
        x_s, times = x_t, Times(known.clamp(min=1), t.clamp(min=1))
        for part, cells in enumerate(split(now, count, int(wanted.max()))):
            here = pick(now, cells)
            x_0 = walk.draw_x0(x_t, times, choice, cells, active=wanted > part * count)
            x_s = put(x_s, cells, torch.where(here, x_0, pick(x_s, cells)))
        x_t = x_s
    return x_t


def _plan_calls(opens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each call, (B,) int64: the t of each sample, 0 where all is done, and how many of its cells open then.

    Args:
        opens: (B, n) int64, the t at which each cell opens; 0 for cells that are open.
    """
    while bool((t := opens.amax(1)).any()):
        now = (opens == t[:, None]) & (opens > 0)
        yield t, now.sum(1)
        opens = opens.masked_fill(now, 0)


def _draw_times(stops: Sequence[int], gammas: Tensor, noise: Tensor) -> Tensor:
    """The t of the step in which each cell is unmasked, (B, H, W) int64, from gamma_bar at each stop (steps + 1,)."""
    rising = gammas.flip(0).to(noise.device)
    place = torch.searchsorted(rising, noise * rising[-1], right=True).clamp(max=len(stops) - 1)
    return torch.tensor(stops[::-1], device=noise.device)[place]
