"""How long a run is, and how far: by steps, by minutes, or by both, whichever ends first.

All that a run does in the course of its time follows the share of it that is over, (step / steps) or (time / minutes),
and the number of steps that it comes to at its pace so far: a run by steps is the same every time, and one by minutes
ends on time, whatever else the machine does.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple


class Moment(NamedTuple):
    """A time between two steps of a run."""

    step: int  # how many were taken before
    share: float  # of the run that is over, in [0, 1]
    num_steps: float  # of the whole run, at the pace so far; infinite where nothing is known yet

    @property
    def is_last(self) -> bool:
        """Whether the run is over."""
        return self.share >= 1


@dataclass(frozen=True)
class Length:
    """How long a run is: at least one of both."""

    steps: int | None = None
    minutes: float | None = None

    @property
    def is_possible(self) -> bool:
        """Whether it is one."""
        given = [each for each in (self.steps, self.minutes) if each is not None]
        return bool(given) and min(given) > 0

    def moment(self, step: int, seconds: float) -> Moment:
        """How far a run is after so many steps and seconds."""
        shares, numbers = [], [math.inf]
        if self.steps is not None:
            shares.append(step / self.steps)
            numbers.append(self.steps)
        if self.minutes is not None:
            shares.append(seconds / (60 * self.minutes))
            if seconds > 0:
                numbers.append(step * 60 * self.minutes / seconds)
        return Moment(step, min(1.0, max(shares)), min(numbers))

    def __str__(self) -> str:
        texts = [] if self.steps is None else [f"{self.steps} steps"]
        texts += [] if self.minutes is None else [f"{self.minutes:g} minutes"]
        return ", at most ".join(texts)
