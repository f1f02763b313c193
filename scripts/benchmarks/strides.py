"""The fast mode of VQ-Diffusion's release beside exact strides: by calculation, nothing is timed."""

from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import Row
from vqtool.diffusion import kernels
from vqtool.diffusion.kernels import Kernel

STEPS = 100
SKIPS = (1, 3, 7, 9)


def fast_times(num_steps: int, skip: int) -> list[int]:
    """The t of each call of the fast mode whose posterior, that of one step from t to t - 1, it draws from.

    The state is said to be at T, T - (skip + 1), ... and at last 1; the posterior is that of `skip` times earlier where
    there are more than that.
    """
    times = list(range(num_steps, 0, -1 - skip))
    times += [1] if times[-1] > 1 else []
    return [time - skip if time > skip + 1 else time for time in times]


def fast_last(kernel: Kernel, skip: int) -> float:
    """The share of all cells that the last call of the fast mode reveals: what no call before it has."""
    stay = kernel.gamma_bar[:-1] / kernel.gamma_bar[1:]  # of a mask from t to t - 1, at place t - 1
    return float(stay[torch.tensor(fast_times(kernel.num_steps, skip)[:-1]) - 1].prod())


def exact_last(kernel: Kernel, calls: int) -> float:
    """The same of `ancestral` with evenly spaced times."""
    stops = torch.linspace(kernel.num_steps, 0, calls + 1).round().long()
    return float(kernel.gamma_bar[stops[-2]] / kernel.gamma_bar[-1])


def release_fast(folder: Path, num: int) -> Iterator[Row]:
    """The share of all tokens that the last call unmasks, with the release's schedule of 100 steps, in float64.

    The fast mode of VQ-Diffusion's code (`sample_fast`, which takes the posterior of a single step over a stride)
    against the exact posterior q(x_s | x_t, x_0) over evenly spaced strides, at as many calls of the network. A mask
    stays from t to s with gamma_bar_s / gamma_bar_t, whatever the network says.
    """
    kernel = kernels.build("mask-replace", schedule="release", codebook_size=1024, num_steps=STEPS)
    for skip in SKIPS:
        calls = len(fast_times(STEPS, skip))
        yield (
            f"tokens that the last of {calls} calls unmasks, VQ-Diffusion's fast mode; exact strides",
            f"{fast_last(kernel, skip):.1%}; {exact_last(kernel, calls):.1%}",
        )
