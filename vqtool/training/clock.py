"""How a run goes, how long it is, and how far: by steps, by minutes, or by both, whichever ends first.

All that a run does in the course of its time follows the share of it that is over, (step / steps) or (time / minutes),
and the number of steps that it comes to at its pace so far: a run by steps is the same every time, and one by minutes
ends on time, whatever else the machine does.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from vqtool.errors import count_text


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
        texts = [] if self.steps is None else [count_text(self.steps, "step")]
        texts += [] if self.minutes is None else [count_text(f"{self.minutes:g}", "minute")]
        return ", at most ".join(texts)


@dataclass(frozen=True)
class LoopConfig:
    """How a run goes."""

    num_steps: int | None  # of the run; None where minutes alone decide
    batch_size: int  # items a step over all processes
    learning_rate: float = 1e-3  # at the end of the warm-up
    rate_course: str = "cosine"  # how it goes on: falls to 0 along a cosine, or "constant"
    warmup_steps: int = 100
    warmup_share: float | None = None  # of the run, that the warm-up takes if that is less
    weight_decay: float = 0.01  # on matrices and kernels, not on biases, gains and what a module names `undecayed`
    decays_all: bool = False  # whether on all parameters instead
    betas: tuple[float, float] = (0.9, 0.96)
    ema_decay: float = 0.999  # of the weights, a step
    ema_share: float | None = None  # of the run, over which weights are averaged if that is less, but ten steps
    ema_rises: bool = True  # to this over the first steps, so that fresh weights are soon forgotten
    clip_norm: float = 1.0  # largest norm of the gradient
    seed: int = 0
    save_seconds: float = 120.0  # how often the state is written
    preview_steps: int = 0  # how often a preview is drawn; 0 is never
    log_steps: int = 1  # how often a line is logged
    accumulate: int = 1  # parts that each process works through its share of a batch in
    checkpoint: bool = False  # whether what blocks compute on the way is computed again for the gradient, not kept
    bf16: bool = False  # mixed precision, for GPUs
    tf32: bool = False  # whether a GPU rounds products in float32 to TF32
    compile: bool = False  # with torch.compile
    minutes: float | None = None  # after which the run is over

    @property
    def length(self) -> Length:
        """How long the run is."""
        return Length(self.num_steps, self.minutes)


def learning_rate(moment: Moment, config: LoopConfig) -> float:
    """Linear warm-up to `config.learning_rate`, then a half cosine to 0 at the end of the run, or no change."""
    steps: float = config.warmup_steps
    if config.warmup_share is not None:
        steps = min(steps, config.warmup_share * moment.num_steps)
    warm = min(1.0, (moment.step + 1) / max(1, steps))
    left = 0.5 * (1 + math.cos(math.pi * moment.share)) if config.rate_course == "cosine" else 1.0
    return config.learning_rate * warm * left


def ema_decay(moment: Moment, config: LoopConfig) -> float:
    """How much of the averaged weights stays in the step at that moment."""
    decay = config.ema_decay
    if config.ema_share is not None:
        decay = min(decay, max(0.9, 1 - 1 / (config.ema_share * moment.num_steps)))
    return min(decay, (1 + moment.step) / (10 + moment.step)) if config.ema_rises else decay
