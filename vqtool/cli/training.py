"""What `train-tokenizer` and `train-prior` share: how long a run is, where its files lie, what is said as it goes."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from vqtool.artifacts import read_header, refuse_existing
from vqtool.cli.console import echo, progress
from vqtool.errors import VqtoolError

Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Length of the run in steps.", show_default=False)]
Minutes = Annotated[
    float | None,
    typer.Option("--minutes", min=0.01, help="Length in minutes: a few steps are timed and turned into --steps."),
]
LearningRate = Annotated[float, typer.Option("--learning-rate", min=1e-8, help="Reached after the warm-up.")]
SheetEvery = Annotated[int, typer.Option("--sheet-every", min=0, help="Steps between sheets; 0 is none.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run, exactly.")]


Report = Callable[[int, Mapping[str, float]], None]


@dataclass(frozen=True)
class RunFiles:
    """The files of a training run, all beside its output."""

    output: Path

    @property
    def state(self) -> Path:
        """What --resume reads."""
        return self.output.with_suffix(".state.safetensors")

    @property
    def log(self) -> Path:
        """One JSON line a step."""
        return self.output.with_suffix(".log.jsonl")

    @property
    def sheet(self) -> Path:
        """The latest picture of the progress."""
        return self.output.with_suffix(".sheet.png")

    def steps_done(self, *, resume: bool) -> int:
        """How many steps the run that is to be resumed has taken."""
        if not (resume and self.state.exists()):
            return 0
        return int(read_header(self.state).summary["step"])

    def check(self, *, resume: bool, force: bool) -> None:
        """Refuse early to overwrite a result or an interrupted run that could be resumed, or to resume nothing."""
        refuse_existing(self.output, force=force or resume)
        if self.state.exists() and not (resume or force):
            raise VqtoolError(f"{self.state}: an earlier run is there: --resume goes on with it, --force starts anew")
        if resume and not self.state.exists():
            raise VqtoolError(f"{self.state}: no earlier run is there to go on with: start without --resume")


def choose_steps(
    steps: int | None,
    minutes: float | None,
    *,
    resume_from: Path | None,
    default: int | Callable[[float], int],
    step_seconds: Callable[[], float],
) -> int:
    """How many steps to train, announced with the time they take.

    Args:
        steps: asked for; wins.
        minutes: asked for, turned into steps by timing a few.
        resume_from: state file whose length is kept when neither is given.
        default: steps, or what makes them of the seconds a step takes, when nothing is asked for.
        step_seconds: times a step.
    """
    if steps is not None and minutes is not None:
        raise typer.BadParameter("give --steps or --minutes, not both")
    if resume_from is not None and steps is None and resume_from.exists():
        kept = int(read_header(resume_from).config["loop.num_steps"])
        echo(f"resuming a run of {kept} steps")
        return kept
    seconds = step_seconds()
    otherwise = default if isinstance(default, int) else default(seconds)
    num_steps = steps or (max(1, int(minutes * 60 / seconds)) if minutes else otherwise)
    echo(f"{num_steps} steps of {seconds:.3g} s: about {_duration(num_steps * seconds)}")
    return num_steps


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def reporting(num_steps: int, names: tuple[str, ...], *, done: int = 0, every: float = 20.0) -> Iterator[Report]:
    """Show progress, and the named metrics every so many seconds.

    Args:
        num_steps: of the run.
        names: of the metrics to print.
        done: steps that an earlier run has taken.
        every: seconds between two prints.

    Yields:
        report(step, metrics), what the training loop calls.
    """
    with progress("train", num_steps, "steps", done=done) as advance:
        last_step, last_time = done, time.monotonic()

        def report(step: int, metrics: Mapping[str, float]) -> None:
            nonlocal last_step, last_time
            advance(step - last_step)
            last_step = step
            if time.monotonic() - last_time >= every:
                last_time = time.monotonic()
                echo(f"step {step}: " + ", ".join(f"{name} {metrics[name]:.4g}" for name in names if name in metrics))

        yield report
