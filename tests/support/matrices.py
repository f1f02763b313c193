"""Oracles for the diffusion tests: explicit transition matrices in float64, and chi-square tests of drawn states."""

from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.stats import chisquare
from torch import Tensor

from vqtool.diffusion import kernels, schedules
from vqtool.diffusion.kernels import Kernel

FALSE_ALARM = 1e-6  # of each chi-square test; the seeds are fixed, so a pass stays one
CASES = [(name, schedule) for name in kernels.KERNELS for schedule in schedules.names(name)]
SCHEDULES = {"mask-replace": "paper"}  # its default replaces next to nothing, and tests are there for what it may do


@cache
def exact_tables() -> Mapping[str, np.ndarray]:
    """The numbers of tests/golden/exact-tables."""
    return np.load(Path(__file__).parents[1] / "golden" / "exact-tables" / "tables.npz")


def build_kernel(name: str, *, codebook_size: int, num_steps: int = 100) -> Kernel:
    """A kernel by its default schedule, or one that shows what the kernel can do."""
    return kernels.build(name, schedule=SCHEDULES.get(name), codebook_size=codebook_size, num_steps=num_steps)


def matrices(kernel: Kernel) -> Tensor:
    """(T + 1, K + 1, K + 1): one-step matrices, rational arithmetic on the tables; the first is the identity."""
    size = kernel.codebook_size
    steps = [torch.eye(size + 1, dtype=torch.float64)]
    for t in range(1, kernel.num_steps + 1):
        keep = Fraction(kernel.alpha_bar[t].item()) / Fraction(kernel.alpha_bar[t - 1].item())
        seen = Fraction(1 - kernel.gamma_bar[t].item()) / Fraction(1 - kernel.gamma_bar[t - 1].item())
        step = torch.zeros(size + 1, size + 1, dtype=torch.float64)
        step[:size, :size] = float((seen - keep) / size)
        step[:size, :size].diagonal().fill_(float((seen - keep) / size + keep))
        step[:size, size] = float(1 - seen)
        step[size, size] = 1
        steps.append(step)
    return torch.stack(steps)


def between(kernel: Kernel, s: int, t: int) -> Tensor:
    """(K + 1, K + 1): q(x_t = j | x_s = i) as the product of the one-step matrices."""
    product = torch.eye(kernel.codebook_size + 1, dtype=torch.float64)
    for step in matrices(kernel)[s + 1 : t + 1]:
        product = product @ step
    return product


def table_kernel(name: str, codebook_size: int, num_steps: int) -> Kernel:
    """The kernel of the exact tables, with the schedules that their README states."""
    time = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    if name == "absorbing":
        return kernels.build(name, codebook_size=codebook_size, num_steps=num_steps)
    if name == "uniform":
        alpha_bar = 0.02 + 0.98 * torch.cos(torch.pi * time / 2) ** 2
        return Kernel(name, "table", codebook_size, num_steps, alpha_bar, torch.zeros_like(time))
    return Kernel(name, "table", codebook_size, num_steps, 1 - 0.95 * time, 0.9 * time)


def check_law(drawn: Tensor, law: Tensor) -> None:
    """Chi-square of the drawn states against their law; states too rare for it are counted with the likeliest."""
    counts = torch.bincount(drawn.flatten(), minlength=len(law))
    assert bool((counts[law == 0] == 0).all())
    expected = law / law.sum() * drawn.numel()
    merged = torch.where(expected >= 10, torch.arange(len(law)), expected.argmax())
    observed, wanted = (np.bincount(merged, weights=values) for values in (counts, expected))
    if (wanted > 0).sum() > 1:
        assert chisquare(observed[wanted > 0], wanted[wanted > 0]).pvalue > FALSE_ALARM
