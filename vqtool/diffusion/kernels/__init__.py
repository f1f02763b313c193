"""Forward processes: q(x_t | x_s) and q(x_t | x_0) of one cell, in closed form.

All kernels are one family. A step keeps the token with probability alpha, replaces it by a uniformly drawn one with
K * beta and masks it with gamma; masks stay. So three numbers stand for the matrix q(x_t | x_s). A kernel is a file
here that splits 1 - alpha_bar between replaced and masked tokens:

    HAS_MASK            whether x_t can be the mask
    DEFAULT_SCHEDULE    the schedule used when none is named
    tables(alpha_bar, gamma_bar | None) -> (alpha_bar, gamma_bar)

and a name in ``KERNELS``; ``vqtool.diffusion.schedules`` says which schedules it takes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from vqtool import registry
from vqtool.diffusion import schedules
from vqtool.diffusion._arithmetic import nonzero, quotient
from vqtool.diffusion.kernels import absorbing, mask_replace, uniform
from vqtool.errors import VqtoolError


class Process(Protocol):
    """What a kernel's file holds."""

    HAS_MASK: bool
    DEFAULT_SCHEDULE: str

    def tables(self, alpha_bar: Tensor, gamma_bar: Tensor | None) -> tuple[Tensor, Tensor]:
        """Both (T + 1,): cumulative rates, from those of a schedule."""


ROUNDING = 1e-5  # relative, of rates that were stored as float32 logarithms
KERNELS: dict[str, Process] = {"mask-replace": mask_replace, "absorbing": absorbing, "uniform": uniform}


@dataclass(frozen=True, eq=False)
class Kernel:
    """A forward process over tokens 0..K-1 and, where ``has_mask``, mask_id = K.

    q(x_t | x_0) = alpha_bar_t [x_t = x_0] + beta_bar_t [x_t != MASK] + gamma_bar_t [x_t = MASK].

    ``build`` makes one by name; an importer gives the tables of a checkpoint directly.
    """

    name: str
    schedule: str
    codebook_size: int
    num_steps: int
    alpha_bar: Tensor = field(repr=False)  # (T + 1,) float64, chance that x_t is x_0, untouched
    gamma_bar: Tensor = field(repr=False)  # (T + 1,) float64, chance that x_t is the mask

    def __post_init__(self) -> None:
        for label, table in (("alpha_bar", self.alpha_bar), ("gamma_bar", self.gamma_bar)):
            if table.shape != (self.num_steps + 1,) or table.dtype != torch.float64:
                raise ValueError(
                    f"{label} must be float64 of length {self.num_steps + 1}, is {table.dtype} {tuple(table.shape)}"
                )
        steps = torch.stack([self.alpha_bar.diff(), -self.gamma_bar.diff()])
        first = self.alpha_bar[0] == 1 and self.gamma_bar[0] == 0
        inside = self.alpha_bar.min() >= 0 and bool((self.alpha_bar + self.gamma_bar <= 1 + 1e-12).all())
        if not (first and inside and bool((steps <= 0).all())):
            raise ValueError("alpha_bar must fall from 1, gamma_bar rise from 0, and their sum stay at most 1")

    @property
    def config(self) -> dict[str, Any]:
        """What ``build`` needs to make this kernel again, for a prior's header."""
        return {
            "name": self.name,
            "schedule": self.schedule,
            "codebook_size": self.codebook_size,
            "num_steps": self.num_steps,
        }

    @property
    def mask_id(self) -> int:
        """The token of a masked cell: K."""
        return self.codebook_size

    @property
    def has_mask(self) -> bool:
        """Whether x_t can be the mask."""
        return find(self.name).HAS_MASK

    @cached_property
    def beta_bar(self) -> Tensor:
        """(T + 1,) float64: chance that x_t is one given token by replacement."""
        return ((1.0 - self.gamma_bar) - self.alpha_bar).clamp(min=0.0) / self.codebook_size

    @cached_property
    def _placed(self) -> dict[torch.device, tuple[Tensor, Tensor, Tensor]]:
        return {}

    def cumulative(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rates of q(x_t | x_0): (alpha_bar, beta_bar, gamma_bar), float64 of the shape of t."""
        alpha_bar, beta_bar, gamma_bar = self.tables(t.device)
        return alpha_bar[t], beta_bar[t], gamma_bar[t]

    def tables(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """All of alpha_bar, beta_bar, gamma_bar, (T + 1,) float64 each, which a device is given once."""
        if device not in self._placed:
            tables = (self.alpha_bar, self.beta_bar, self.gamma_bar)
            self._placed[device] = tuple(table.to(device) for table in tables)  # type: ignore[assignment]
        return self._placed[device]

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rates of q(x_t | x_s), exact at the edges.

        If alpha_bar_s = 0, so that x_s does not depend on x_0, alpha is not determined: it is 0, or 1 for s = t.
        Likewise gamma is 1 if every x_s is masked.

        Args:
            s: (B,) int64 in [0, t].
            t: (B,) int64 in [0, T].

        Returns:
            (alpha, beta, gamma), each (B,) float64: keep, each token by replacement, mask.

        Raises:
            ValueError: a step is out of order or out of range.
        """
        self.check_steps(s, t)
        alpha_s, beta_s, gamma_s = self.cumulative(s)
        alpha_t, beta_t, gamma_t = self.cumulative(t)
        same = (s == t).double()
        alpha = quotient(alpha_t, alpha_s, otherwise=same)
        # Not 1 - alpha - gamma: a beta of 1e-8, as in the release schedule, would lose half its digits.
        beta = quotient(beta_t - alpha * beta_s, 1.0 - gamma_s, otherwise=0.0 * same).clamp(min=0.0)
        gamma = quotient(gamma_t - gamma_s, 1.0 - gamma_s, otherwise=1.0 - same)
        return alpha, beta, gamma

    def sample(self, x_0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Draw x_t from q(x_t | x_0).

        Args:
            x_0: (B, H, W) int64 tokens.
            t: (B,) int64 in [0, T].
            noise: (B, H, W) float64, uniform in [0, 1).

        Returns:
            (B, H, W) int64 tokens or mask_id.
        """
        self.check_steps(torch.zeros_like(t), t)
        alpha, beta, gamma = (rate.view(-1, 1, 1) for rate in self.cumulative(t))
        return self._place(x_0, keep=alpha, replace=beta > 0, mask=gamma, noise=noise)

    def sample_stationary(self, noise: Tensor) -> Tensor:
        """Draw x_T from the stationary distribution: the mask with probability gamma_bar_T, else a uniform token.

        Args:
            noise: (B, H, W) float64, uniform in [0, 1).

        Returns:
            (B, H, W) int64 tokens or mask_id.
        """
        mask = self.tables(noise.device)[2][-1]
        unused = torch.zeros_like(noise, dtype=torch.int64)
        return self._place(unused, keep=torch.zeros_like(mask), replace=mask < 1, mask=mask, noise=noise)

    def check_steps(self, s: Tensor, t: Tensor) -> None:
        """Raise ValueError unless 0 <= s <= t <= T. On the CPU only: a GPU would have to wait for the answer."""
        if t.device.type == "cpu" and not bool(((s >= 0) & (s <= t) & (t <= self.num_steps)).all()):
            raise ValueError(f"steps must be 0 <= s <= t <= {self.num_steps}, are s {s.tolist()} and t {t.tolist()}")

    def _place(self, x_0: Tensor, *, keep: Tensor, replace: Tensor, mask: Tensor, noise: Tensor) -> Tensor:
        """Draw with one uniform number a cell: below `mask` the mask, then for `keep` x_0, else a uniform token."""
        left = noise - mask - keep  # (B, H, W)
        anew = (left / nonzero(1.0 - mask - keep) * self.codebook_size).long().clamp(0, self.codebook_size - 1)
        token = torch.where((left < 0) | ~replace, x_0, anew)
        return torch.where(noise < mask, self.mask_id, token)


def build(name: str, *, schedule: str | None = None, codebook_size: int, num_steps: int = 100) -> Kernel:
    """The kernel of that name.

    Args:
        name: one of ``KERNELS``.
        schedule: one of ``schedules.names(name)``; None for the kernel's default.
        codebook_size: K, the number of tokens.
        num_steps: T.

    Raises:
        VqtoolError: an unknown name, a schedule that does not fit, or a size below 1.
    """
    process = find(name)
    for label, value in (("codebook size", codebook_size), ("number of diffusion steps", num_steps)):
        if value < 1:
            raise VqtoolError(f"the {label} must be at least 1, is {value}")
    schedule = schedule or process.DEFAULT_SCHEDULE
    alpha_bar, gamma_bar = process.tables(*schedules.find(schedule, kernel=name).tables(num_steps))
    return Kernel(name, schedule, codebook_size, num_steps, alpha_bar, gamma_bar)


def from_rates(alpha_bar: Tensor, beta_bar: Tensor, gamma_bar: Tensor, codebook_size: int) -> Kernel:
    """The kernel of a checkpoint's cumulative rates, whose float32 rounding is undone where possible.

    If they equal those of a named schedule to the precision of float32, the result has that schedule, exact in float64;
    else its schedule is called "checkpoint". All three are scaled to a sum of 1, so that a beta_bar of 1e-9 keeps its
    digits.

    Args:
        alpha_bar: (T + 1,) for t = 0..T, chance that x_t is x_0 untouched.
        beta_bar: (T + 1,), chance that x_t is one given token by replacement.
        gamma_bar: (T + 1,), chance that x_t is the mask.
        codebook_size: K.

    Raises:
        VqtoolError: they are not the rates of a process that starts from x_0 and loses it step by step.
    """
    rates = torch.stack([alpha_bar.double(), codebook_size * beta_bar.double(), gamma_bar.double()])  # (3, T + 1)
    total, start = rates.sum(0), torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    loses = torch.stack([-rates[0].diff(), rates[2].diff()])
    right = ((total - 1).abs() <= ROUNDING).all() & (rates >= 0).all() & (loses >= -ROUNDING).all()
    if not (bool(right) and torch.allclose(rates[:, 0], start, atol=ROUNDING)):
        raise VqtoolError("its rates are not those of a diffusion that starts from x_0 and loses it step by step")
    rates[:, 0], total[0] = start, 1.0
    num_steps = len(total) - 1
    name = "uniform" if not bool(rates[2].any()) else "mask-replace" if bool(rates[1].any()) else "absorbing"
    for schedule in schedules.names(name):
        kernel = build(name, schedule=schedule, codebook_size=codebook_size, num_steps=num_steps)
        named = torch.stack([kernel.alpha_bar, codebook_size * kernel.beta_bar, kernel.gamma_bar])
        if torch.allclose(rates, named, rtol=ROUNDING, atol=1e-12):
            return kernel
    alpha, _, gamma = rates / total
    gamma = gamma.cummax(0).values
    alpha = torch.minimum(alpha.cummin(0).values, 1.0 - gamma)
    alpha, gamma = find(name).tables(alpha, gamma)
    return Kernel(name, "checkpoint", codebook_size, num_steps, alpha, gamma)


def find(name: str) -> Process:
    """The file of the kernel of that name.

    Raises:
        VqtoolError: the name is unknown.
    """
    return registry.find("kernel", name, KERNELS)
