"""The times that a walk stops at: evenly spaced, or as they are listed."""

import math
from collections.abc import Sequence

import torch

from vqtool.errors import VqtoolError
from vqtool.samplers._walk import Walk


def choose_times(
    walk: Walk,
    sampler: str,
    steps: int | None,
    times: Sequence[int] | None,
    *,
    default: int,
    repeated: Sequence[int] = (),
) -> list[int]:
    """From the walk's start down to 0; each stop but the last is one step.

    Args:
        walk: the batch.
        sampler: for messages.
        steps: how many, in [1, t] of the first x_t; None for the default or T, whichever is less, and for as dense ones
            where the walk begins later.
        times: instead of steps: falling times in [1, t]. The start before them and 0 after them go without saying.
        default: the number of steps where neither is given.
        repeated: rising times in [1, t] that are stopped at several times, equally often, if there are more steps than
            times.

    Returns:
        steps + 1 times, falling or the same, the last 0.

    Raises:
        VqtoolError: they are not possible.
    """
    start, last = walk.start, walk.kernel.num_steps
    if times is not None:
        if steps is not None:
            raise VqtoolError("--steps and --times both say when the denoiser is called: leave one out")
        falling = all(after < before for before, after in zip([start + 1, *times], [*times, 0], strict=True))
        if not falling:
            shown = ",".join(map(str, times))
            raise VqtoolError(f"--times {shown}: times that fall from {start} or less to 1 or more are expected")
        return [*([] if start in times else [start]), *times, 0]
    steps = math.ceil(min(default, last) * start / last) if steps is None else steps
    if steps < 1 or (steps > start and not repeated):
        raise VqtoolError(f"--steps {steps}: {sampler} sampling of this prior takes 1 to {start} steps here")
    if steps > start:
        count = steps - start + len(repeated)
        several = [repeated[-(-len(repeated) * step // count) - 1] for step in range(1, count + 1)]
        once = set(range(1, start + 1)) - set(repeated)
        return [*sorted([*several, *once], reverse=True), 0]
    return torch.linspace(start, 0, steps + 1).round().long().tolist()
