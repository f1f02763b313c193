"""Psi sampling: ancestral sampling in which some cells are noised anew in each step, so that mistakes can be mended.

When to use it: for every kernel, with many steps: where ancestral sampling with an absorbing kernel keeps each token
that it has drawn, and gains nothing from more steps than cells, this goes on gaining. With few steps use others.
Measured with the exact denoiser of 2x3 Ising grids (absorbing, T = 16; total variation from the data): ancestral .084;
psi with kappa .8 .063 in 16 steps, .034 in 32, .017 in 64; kappa .5 .056, .028, .014. It mends errors of cells that
were drawn together without seeing each other, not errors of the network: a small one gained nothing measurable.
Equation: x_0 ~ p(x_0 | x_t), x_s ~ kappa q(x_s | x_t, x_0) + (1 - kappa) q(x_s | x_0), each cell for itself. Both
parts have the marginal q(x_s) of each cell, so any kappa has; 1 is ancestral sampling. With s = t it is a corrector
alone: a cell stays with kappa. Under an absorbing kernel a token is its own x_0, and the second part masks it again
with gamma_bar_s: remasking.
Cost: one denoiser call a step, whose head computes the cells that may change. There may be more steps than T: times at
which kappa acts repeat, equally often; elsewhere a second step at one time would change nothing, and there is none.
Source: Deschenaux et al. 2026, Psi-samplers (arXiv:2602.21185); Wang et al. 2025, ReMDM (arXiv:2503.00307).
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vqtool.diffusion.kernels import Kernel
from vqtool.diffusion.posterior import add_at_tokens, draw, log_evidence, replaces, sample_posterior
from vqtool.errors import VqtoolError
from vqtool.options import option
from vqtool.samplers import ancestral
from vqtool.samplers._cells import pick, put
from vqtool.samplers._times import choose_times
from vqtool.samplers._walk import Walk

NEEDS_MASK = False


@dataclass(frozen=True, kw_only=True)
class Options(ancestral.Options):
    """When the denoiser is called, as in ancestral sampling, and how many cells are noised anew."""

    steps: int | None = option(None, "Denoiser calls, at least 1; more than T repeat steps.", usual=16)
    kappa: float = option(
        0.9, "Share of the cells that are not noised anew in a step; 1 is ancestral.", minimum=0, maximum=1
    )
    kappa_interval: tuple[float, float] = option(
        (0.0, 1.0), "Part of the way, 0 to 1, with kappa.", minimum=0, maximum=1, rising=True
    )


def sample(walk: Walk, options: Options) -> Tensor:
    """Draw a batch of grids.

    Args:
        walk: the batch.
        options: how; see `choose_times` for `steps` and `times`. With a kappa of 1 it is ancestral sampling, bit for
            bit; so it is where 1 - t / T lies outside of the interval.

    Returns:
        (B, H, W) int64 tokens.

    Raises:
        VqtoolError: the steps or times are not possible.
    """
    (low, high), num_steps = options.kappa_interval, walk.kernel.num_steps
    shares = {t: (num_steps - t) / num_steps for t in range(1, walk.start + 1)}
    acting = [t for t, share in shares.items() if options.kappa < 1 and low <= share <= high]
    if options.steps is not None and options.steps > walk.start and not acting:
        raise VqtoolError(
            f"`steps` {options.steps}: this sampler takes 1 to {walk.start} steps here; more would repeat times at "
            "which cells are noised anew, and there are none: take a `kappa` below 1 or a wider `kappa_interval`"
        )
    x_t, rule = walk.begin(), options.rule or walk.rule
    for call, (t, s) in enumerate(pairwise(choose_times(walk, options, repeated=acting)), start=1):
        if t in acting:
            x_t = step(walk, x_t, t, s, rule, options.kappa, walk.noise(call, 3))
        else:
            x_t = ancestral.step(walk, x_t, t, s, rule, walk.noise(call, 2))
    return x_t


def step(walk: Walk, x_t: Tensor, time: int, next_time: int, rule: str, kappa: float, noise: Tensor) -> Tensor:
    """One step of a batch.

    Args:
        walk: the batch.
        x_t: (B, H, W) int64 tokens or mask_id.
        time: t in [1, T].
        next_time: s in [0, t].
        rule: "mixture" or "plug-in".
        kappa: share of the cells that follow the posterior.
        noise: (3, B, H, W) float64, uniform in [0, 1): what x_0 is, what becomes of it, and which part a cell follows.

    Returns:
        (B, H, W) int64 tokens or mask_id.
    """
    kernel, (choice, move, part) = walk.kernel, noise
    t, s, masked = walk.times(time), walk.times(next_time), x_t == kernel.mask_id
    back, anew = part < kappa, move >= float(kernel.gamma_bar[next_time])  # what becomes a token if it is not back
    moves = time > next_time
    stays = ancestral.least_stays(kernel, time, next_time, "mixture") if moves else (1.0, 1.0)
    unsure = masked if not replaces(kernel) else torch.ones_like(masked)  # cells whose x_0 is asked for
    may_change = move >= torch.full_like(move, stays[0]).masked_fill(masked, stays[1])
    wanted = walk.leave_known(torch.where(back, may_change, anew & unsure))
    x_s = torch.where(back | anew, x_t, kernel.mask_id)
    for cells in ancestral.choose_cells(walk, wanted, _changing(kernel, time, next_time, kappa, stays)):
        seen, rest = pick(x_t, cells)[:, None], pick(move, cells)[:, None]  # (B, 1, n): grids of one row
        x_0 = _draw_x0(walk, x_t, time, cells, rule, choice)[:, None]
        drawn = kernel.sample(x_0, s, rest)
        followed = sample_posterior(x_0, seen, t, s, kernel, rest) if moves else seen
        drawn = torch.where(pick(back, cells)[:, None], followed, drawn)[:, 0]
        x_s = put(x_s, cells, torch.where(pick(wanted, cells), drawn, pick(x_s, cells)))
    return walk.keep(x_s)


def _changing(kernel: Kernel, t: int, s: int, kappa: float, stays: tuple[float, float]) -> float:
    """The share of the cells whose x_0 is asked for, on average."""
    gamma_t, gamma_s = float(kernel.gamma_bar[t]), float(kernel.gamma_bar[s])
    changing = (1 - stays[0]) * (1 - gamma_t) + (1 - stays[1]) * gamma_t
    unsure = 1.0 if replaces(kernel) else gamma_t
    return kappa * changing + (1 - kappa) * (1 - gamma_s) * unsure


def _draw_x0(walk: Walk, x_t: Tensor, time: int, cells: Tensor, rule: str, choice: Tensor) -> Tensor:
    """X_0 given x_t, (B, n): for the plug-in rule the evidence of the cell's own x_t is added by Bayes' rule."""
    if rule == "mixture":
        return walk.draw_x0(x_t, time, choice, cells)
    log_x0, seen = walk.log_x0(x_t, time, cells), pick(x_t, cells)  # (B, n, K), (B, n)
    log_x0 = add_at_tokens(log_x0, seen, log_evidence(walk.times(time), walk.kernel), walk.kernel.mask_id)
    return draw(log_x0 - log_x0.amax(-1, keepdim=True), pick(choice, cells))
