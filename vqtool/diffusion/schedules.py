"""How much of x_0 survives to step t: alpha_bar(t), gamma_bar(t), by name.

A schedule gives alpha_bar, the probability that a token is unchanged after t steps, and, for kernels that mask and
replace, gamma_bar, the probability that it is masked. All tables are float64, have T + 1 entries for t = 0..T
and exist for any T >= 1. ``SCHEDULES`` lists them; each says for which kernels it is defined:

- ``release``: VQ-Diffusion's published code. Almost absorbing: K * beta_bar is 1e-6 at every t. (mask-replace)
- ``paper``: VQ-Diffusion's text: gamma_bar_T = 0.9, K * beta_bar_T = 0.1. (mask-replace)
- ``linear``: alpha_bar = 1 - t / T. (absorbing, uniform)
- ``maskgit-cosine``: gamma_bar = cos(pi r / 2), MaskGIT's masked share, at r = 1 - t / T. (absorbing)
- ``cosine``: VQ-DDM's, the square root of the plain one. (uniform)
- ``cosine-plain``: cos^2 as in improved DDPM, one-step rates clipped to [.001, 1]. (uniform)

With the two cosines x_T still depends a little on x_0: they do not go with the absorbing kernel, whose x_T is all mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vqtool.errors import VqtoolError

FIRST_KEEP, LAST_KEEP = 0.99999, 0.000009  # alpha_bar at t = 1 and t = T, VQ-Diffusion
FIRST_MASK, RELEASE_LAST_MASK, PAPER_LAST_MASK = 0.000009, 0.99999, 0.9  # gamma_bar at t = 1 and t = T, VQ-Diffusion
COSINE_OFFSET = 0.008  # keeps the first steps of a cosine schedule from being vanishingly small
COSINE_FLOOR = 0.001  # smallest one-step rate of a cosine schedule, before the square root


@dataclass(frozen=True)
class Schedule:
    """One named schedule: its tables for T steps, and the kernels it is defined for."""

    tables: Callable[[int], tuple[Tensor, Tensor | None]]  # T -> alpha_bar, gamma_bar (None: the kernel decides)
    kernels: tuple[str, ...]


def find(name: str, *, kernel: str) -> Schedule:
    """The schedule of that name, if it is defined for the kernel.

    Raises:
        VqtoolError: the name is unknown, or the schedule is not defined for that kernel.
    """
    fitting = ", ".join(names(kernel))
    if name not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise VqtoolError(
            f"unknown schedule {name!r}; known schedules: {known}; those that fit kernel {kernel!r}: {fitting}"
        )
    schedule = SCHEDULES[name]
    if kernel not in schedule.kernels:
        defined = ", ".join(schedule.kernels)
        raise VqtoolError(
            f"schedule {name!r} is defined for {defined}, not for kernel {kernel!r}; schedules that fit it: {fitting}"
        )
    return schedule


def names(kernel: str | None = None) -> list[str]:
    """Names of all schedules, or of those defined for a kernel."""
    return [name for name, schedule in SCHEDULES.items() if kernel is None or kernel in schedule.kernels]


def _release(num_steps: int) -> tuple[Tensor, Tensor]:
    """Source: microsoft/VQ-Diffusion, ``alpha_schedule``."""
    return _ramp(FIRST_KEEP, LAST_KEEP, 1.0, num_steps), _ramp(FIRST_MASK, RELEASE_LAST_MASK, 0.0, num_steps)


def _paper(num_steps: int) -> tuple[Tensor, Tensor]:
    """Source: Gu et al. 2022 (arXiv:2111.14822), section 5.1."""
    return _ramp(FIRST_KEEP, LAST_KEEP, 1.0, num_steps), _ramp(FIRST_MASK, PAPER_LAST_MASK, 0.0, num_steps)


def _linear(num_steps: int) -> tuple[Tensor, None]:
    """Source: Austin et al. 2021 (arXiv:2107.03006) and Bond-Taylor et al. 2022 (arXiv:2111.12701)."""
    return 1.0 - _time(num_steps), None


def _maskgit_cosine(num_steps: int) -> tuple[Tensor, None]:
    """Source: Chang et al. 2022 (arXiv:2202.04200), section 3.3."""
    return 1.0 - torch.sin(_time(num_steps) * (math.pi / 2)), None


def _cosine(num_steps: int) -> tuple[Tensor, None]:
    """Source: Hu et al. 2022 (arXiv:2112.01799): alpha_t is the square root of the plain schedule's."""
    return _accumulate(_cosine_rates(num_steps).sqrt()), None


def _cosine_plain(num_steps: int) -> tuple[Tensor, None]:
    """Source: Nichol and Dhariwal 2021 (arXiv:2102.09672), equation 17."""
    return _accumulate(_cosine_rates(num_steps)), None


def _time(num_steps: int) -> Tensor:
    """(T + 1,) float64: t / T."""
    return torch.arange(num_steps + 1, dtype=torch.float64) / num_steps


def _ramp(first: float, last: float, start: float, num_steps: int) -> Tensor:
    """(T + 1,): ``start`` at t = 0, then a straight line from ``first`` at t = 1 to ``last`` at t = T."""
    if num_steps == 1:  # one step has to go all the way
        return torch.tensor([start, last], dtype=torch.float64)
    share = torch.arange(num_steps, dtype=torch.float64) / (num_steps - 1)
    line = share * (last - first) + first
    line[-1] = last
    return torch.cat([torch.tensor([start], dtype=torch.float64), line])


def _cosine_rates(num_steps: int) -> Tensor:
    """(T,): one-step rates of cos^2((t / T + .008) / 1.008 * pi / 2), clipped."""
    level = torch.cos((_time(num_steps) + COSINE_OFFSET) / (1 + COSINE_OFFSET) * (math.pi / 2)) ** 2
    return (level[1:] / level[:-1]).clamp(COSINE_FLOOR, 1.0)


def _accumulate(rates: Tensor) -> Tensor:
    """(T + 1,): products of the first t one-step rates."""
    return torch.cat([torch.ones(1, dtype=torch.float64), rates.cumprod(0)])


SCHEDULES: dict[str, Schedule] = {
    "release": Schedule(_release, kernels=("mask-replace",)),
    "paper": Schedule(_paper, kernels=("mask-replace",)),
    "linear": Schedule(_linear, kernels=("absorbing", "uniform")),
    "maskgit-cosine": Schedule(_maskgit_cosine, kernels=("absorbing",)),
    "cosine": Schedule(_cosine, kernels=("uniform",)),
    "cosine-plain": Schedule(_cosine_plain, kernels=("uniform",)),
}
