"""What the samplers that unmask cells call by call have in common: how many cells, which ones, and at what time.

An unmasked cell stays as it is. A plan says how many: for each call it yields a table of how many cells are still
masked after it, for every number of cells that were masked at the start, 0 to H * W. So each sample of a batch may
start with another number of masked cells. How many cells a call looks at is a bound over the whole table and never
depends on the samples.

The denoiser is told the t whose expected share of masked cells is nearest: argmin_t |masked share - gamma_bar_t|.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vqtool.errors import VqtoolError
from vqtool.options import usual
from vqtool.samplers._cells import pick, place_first, put
from vqtool.samplers._settings import interpolate
from vqtool.samplers._walk import Times, Walk

Plan = Iterable[Tensor]  # of (H * W + 1,) int64
Rule = Callable[..., tuple[Tensor, Tensor]]


def choose_steps(walk: Walk, options: Any) -> int:
    """The number of calls: what was asked for, or what is usual for the grid, or one a cell if that is less.

    Args:
        walk: the batch.
        options: of the sampler, with `steps`.

    Raises:
        VqtoolError: fewer than 1, or more than cells.
    """
    steps, num_cells = options.steps, walk.num_cells
    steps = min(walk.usual_steps(usual(options, "steps")), num_cells) if steps is None else steps
    if not 1 <= steps <= num_cells:
        raise VqtoolError(
            f"`steps` {steps}: this sampler unmasks at least one cell in every step: 1 to {num_cells} steps here"
        )
    return int(steps)


def even(num_cells: int, steps: int) -> Iterator[Tensor]:
    """The plan that unmasks equally many cells in every call, give or take one."""
    start = torch.arange(num_cells + 1)
    return (start * (steps - call) // steps for call in range(1, steps + 1))


def cosine(num_cells: int, steps: int) -> Iterator[Tensor]:
    """MaskGIT's plan: few at first; max(1, min(masked - 1, floor(cells * cos(pi / 2 * call / steps)))) stay masked.

    The cosine is rounded as float32 numbers are, in MaskGIT as in aMUSEd: at two thirds it is just below a half.
    """
    return _floors(num_cells, steps, lambda share: float((torch.tensor(share) * math.pi * 0.5).cos()))


def linear(num_cells: int, steps: int) -> Iterator[Tensor]:
    """As ``cosine``, with 1 - call / steps of the cells, in float32: how aMUSEd fills the masked cells of pictures."""
    return _floors(num_cells, steps, lambda share: float(1 - torch.tensor(share)), torch.float32)


def arccos(num_cells: int, steps: int) -> Iterator[Tensor]:
    """As ``cosine``, with arccos(call / steps) / (pi / 2) of the cells: fewer at first, very many in the last call."""
    return _floors(num_cells, steps, lambda share: math.acos(share) / (math.pi / 2))


def one_first(num_cells: int, steps: int) -> Iterator[Tensor]:
    """Halton-MaskGIT's plan for the confidence sampler: one cell in the first call, all by arccos in the others."""
    start = torch.arange(num_cells + 1)
    for call in range(steps):
        share = 1 - math.acos(call / max(1, steps - 1)) / (math.pi / 2)
        known = (start * share).long() if call < steps - 1 else start
        yield (start - known.clamp(min=call + 1)).clamp(min=0)


PLANS = {"cosine": cosine, "arccos": arccos, "linear": linear, "one-first": one_first}


def _floors(
    num_cells: int, steps: int, share_of: Callable[[float], float], dtype: torch.dtype = torch.float64
) -> Iterator[Tensor]:
    start = torch.arange(num_cells + 1)
    masked = start
    for call in range(1, steps):
        share = torch.tensor(share_of(call / steps), dtype=dtype)
        masked = torch.minimum(masked - 1, (start.to(dtype) * share).floor().long()).clamp(min=1).minimum(start)
        yield masked
    yield torch.zeros_like(start)


def find_times(num_masked: Tensor, walk: Walk, calls_to_come: int | None = None) -> Tensor:
    """(B,) int64 in [1, T]: the t at which about so many cells of a grid, (B,), are masked.

    It is the number of calls to come, with this one, if that is known and is what the denoiser is told.
    """
    if walk.counts_calls and calls_to_come is not None:
        return torch.full_like(num_masked, min(calls_to_come, walk.kernel.num_steps))
    share = num_masked.double()[:, None] / walk.num_cells
    return 1 + (walk.kernel.gamma_bar[1:] - share).abs().argmin(1)


def gumbel(noise: Tensor) -> Tensor:
    """Gumbel noise: added to log-weights, the n largest are a draw of n without replacement.

    Args:
        noise: float64, uniform in [0, 1).
    """
    return -torch.log(-torch.log1p(-noise))


def find_largest(keys: Tensor, masked: Tensor, count: int) -> Tensor:
    """(G, count) int64: the places of the largest keys (G, n) among masked cells (G, n), then others; ties in order."""
    return keys.masked_fill(~masked, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :count]


def unmask_in_order(walk: Walk, rank: Tensor, plan: Plan) -> Tensor:
    """Unmask cells in an order that is fixed beforehand; the denoiser's head computes the cells of the call only.

    Args:
        walk: the batch; its kernel has a mask.
        rank: (B, H, W), the lowest first.
        plan: how many.

    Returns:
        (B, H, W) int64 tokens.
    """
    x_t = walk.begin(mask_lost=True)
    for step in _plan_steps(walk, x_t, plan):
        cells = find_largest(-rank.flatten(1), (x_t == walk.kernel.mask_id).flatten(1), step.most)
        tokens = walk.draw_x0(x_t, step.times, walk.noise(step.call, 1)[0], cells, active=step.active)
        x_t = unmask(x_t, cells, tokens, step.num_unmasked)
    return x_t


def unmask_by_prediction(walk: Walk, rule: Rule, plan: Plan) -> Tensor:
    """Unmask the cells that a rule chooses from the denoiser's predictions for all masked cells.

    Args:
        walk: the batch; its kernel has a mask.
        rule: rule(call, count, log_x0, choice, order, masked) of a microbatch: the call from 1 on, how many places are
            wanted, log p(x_0 | x_t) at some cells (G, n, K), two kinds of noise (G, n) float64, uniform in [0, 1), and
            which cells are masked (G, n); it returns places among the n (G, count), best first, and their tokens.
        plan: how many.

    Returns:
        (B, H, W) int64 tokens.
    """
    x_t = walk.begin(mask_lost=True)
    for step in _plan_steps(walk, x_t, plan):
        choose = partial(rule, step.call, step.most)
        places, tokens, cells = ask(walk, x_t, step.call, step.num_masked, choose, step.times, step.active)
        x_t = unmask(x_t, cells.gather(1, places), tokens, step.num_unmasked)
    return x_t


def unmask_by_choice_temperature(walk: Walk, options: Any, choose: Rule) -> Tensor:
    """Unmask by MaskGIT's plan, or the one that the options name, with a choice of cells whose temperature falls to 0.

    Args:
        walk: the batch; its kernel has a mask.
        options: of the sampler, with `steps` and `choice_temperature`.
        choose: choose(temperature, count, log_x0, choice, order, masked), a rule of ``unmask_by_prediction`` that is
            told a = choice_temperature * (1 - i / S) in call i of S, or what a list of temperatures has there.

    Returns:
        (B, H, W) int64 tokens.
    """
    steps, heat = choose_steps(walk, options), options.choice_temperature
    told = (
        interpolate(heat, torch.linspace(0, 1, steps, dtype=torch.float64)) if isinstance(heat, tuple | list) else None
    )

    def rule(call: int, *seen: Any) -> tuple[Tensor, Tensor]:
        return choose(heat * (1 - call / steps) if told is None else float(told[call - 1]), *seen)

    plan = PLANS[getattr(options, "plan", "cosine")]
    return unmask_by_prediction(walk, rule, plan(walk.num_cells, steps))


def ask(
    walk: Walk,
    x_t: Tensor,
    call: int,
    num_masked: int,
    rule: Callable[..., tuple[Tensor, ...]],
    times: Times,
    active: Tensor,
) -> tuple[Tensor, ...]:
    """What a rule makes of log_x0, choice, order and masked at up to `num_masked` cells a sample, and these cells."""
    cells = place_first(x_t == walk.kernel.mask_id)[:, :num_masked]  # (B, n)
    choice, order = (pick(noise, cells) for noise in walk.noise(call, 2))
    masked = pick(x_t, cells) == walk.kernel.mask_id
    return *walk.apply(rule, x_t, times, cells, choice, order, masked, active=active), cells


def unmask(x_t: Tensor, cells: Tensor, tokens: Tensor, count: Tensor) -> Tensor:
    """A grid (B, H, W) with tokens at the first `count` (B,) of some cells (B, n)."""
    counted = torch.arange(cells.shape[1], device=cells.device) < count[:, None]
    return put(x_t, cells, torch.where(counted, tokens, pick(x_t, cells)))


class _Step(NamedTuple):
    """A call of the denoiser that a plan asks for."""

    call: int  # from 1 on
    num_masked: int  # the most cells that may be masked, whatever the samples
    most: int  # the most of them to unmask
    times: Times
    active: Tensor  # (B,) bool on the CPU: samples with cells to unmask
    num_unmasked: Tensor  # (B,) int64 on the device: how many of each


def _plan_steps(walk: Walk, x_t: Tensor, plan: Plan) -> Iterator[_Step]:
    """The calls of a plan, but those in which no sample has a cell to unmask: with fewer masked cells than calls."""
    start = (x_t == walk.kernel.mask_id).flatten(1).sum(1).cpu()  # (B,)
    before, calls, plan = torch.arange(walk.num_cells + 1), [], list(plan)
    walk.changes = max((int((a - b).max()) for a, b in pairwise([before, *plan[:-1]])), default=None)
    for call, after in enumerate(plan, start=1):
        unmasked = before - after
        if bool((count := unmasked[start]).any()):
            t = find_times(before[start], walk, len(plan) + 1 - call)
            calls.append((call, int(before.max()), int(unmasked.max()), t, count))
        before = after
    walk.num_planned = len(calls)
    uploaded = walk.upload([torch.stack([t, count]) for *_, t, count in calls])
    for (call, num_masked, most, t, count), (t_there, count_there) in zip(calls, uploaded, strict=True):
        walk.call = call - 1, len(plan)
        yield _Step(call, num_masked, most, Times(t, t_there), count > 0, count_there)
