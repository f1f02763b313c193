"""The times at which the denoiser is called: evenly spaced, as listed, or planned."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vqtool.errors import VqtoolError
from vqtool.options import Checked, option, usual
from vqtool.samplers._planning import find_curve, plan_times
from vqtool.samplers._walk import Walk

AUTO = "auto"  # of times: planned


@dataclass(frozen=True, kw_only=True)
class TimeOptions(Checked):
    """When the denoiser is called, for samplers that have `steps`, too."""

    times: tuple[int, ...] | str | None = option(
        None, "When the denoiser is called, as in 100,60,30; auto: with the least bound on the error.", advanced=True
    )
    curve: str | None = option(
        None, "With --times auto: what eval --likelihood wrote.", shown="of its training", advanced=True
    )


def choose_times(walk: Walk, options: Any, *, repeated: Sequence[int] = ()) -> list[int]:
    """The times of `_list_times`; the walk has planned so many calls from now on."""
    times = _list_times(walk, options, repeated)
    walk.num_planned = len(times) - 1
    return times


def _list_times(walk: Walk, options: Any, repeated: Sequence[int]) -> list[int]:
    """From the walk's start down to 0; each of these times but the last is one step.

    Args:
        walk: the batch.
        options: of the sampler, with `steps`, in [1, t] of the first x_t, and `times`, falling in [1, t]. Without both
            there are as many steps as is usual for the grid, or T if that is less, and as dense ones where the walk
            begins later.
        repeated: rising times in [1, t] that may be visited several times, equally often, where there are more steps
            than times.

    Returns:
        steps + 1 times, falling or the same, the last 0.

    Raises:
        VqtoolError: they are not possible.
    """
    start, last, steps, times = walk.start, walk.kernel.num_steps, options.steps, options.times
    if times == AUTO or options.curve is not None:
        return _plan(walk, options)
    if isinstance(times, str):
        raise VqtoolError(f"`times` {times}: numbers with commas between them, or {AUTO}, are expected")
    if times is not None:
        if steps is not None:
            raise VqtoolError("`steps` and `times` both say when the denoiser is called: leave one out")
        falling = all(after < before for before, after in zip([start + 1, *times], [*times, 0], strict=True))
        if not falling:
            shown = ",".join(map(str, times))
            raise VqtoolError(f"`times` {shown}: times that fall from {start} or less to 1 or more are expected")
        return [*([] if start in times else [start]), *times, 0]
    if steps is None:
        steps = math.ceil(min(walk.usual_steps(usual(options, "steps") or last), last) * start / last)
    if steps < 1 or (steps > start and not repeated):
        raise VqtoolError(f"`steps` {steps}: this sampler takes 1 to {start} steps here")
    if steps > start:
        count = steps - start + len(repeated)
        several = [repeated[-(-len(repeated) * step // count) - 1] for step in range(1, count + 1)]
        once = set(range(1, start + 1)) - set(repeated)
        return [*sorted([*several, *once], reverse=True), 0]
    return torch.linspace(start, 0, steps + 1).round().long().tolist()


def _plan(walk: Walk, options: Any) -> list[int]:
    """As many times as usual or asked for, with the least bound on the error; see `_planning`."""
    start, steps = walk.start, options.steps
    if options.times != AUTO:
        raise VqtoolError(f"`curve` is for `times` {AUTO}: give that too, or leave it out")
    if steps is None:
        steps = min(walk.usual_steps(usual(options, "steps") or start), start)
    if not 1 <= steps <= start:
        raise VqtoolError(f"`steps` {steps}: 1 to {start} planned times are possible here")
    return plan_times(find_curve(walk.summary, options.curve), walk.kernel, start, steps)
