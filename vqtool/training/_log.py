"""What people and the JSON-lines log are told of a run."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vqtool import distributed
from vqtool.codebooks.usage import perplexity, usage
from vqtool.errors import VqtoolError, warn
from vqtool.training._validation import Course
from vqtool.training.clock import Moment

Report = Callable[[int, Mapping[str, float]], None]


class RunLog:
    """One line a logged step, written by the main process; on resume the lines after the resumed step are cut off.

    Lines that are damaged stay where they are: what counts is the state of the run.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._file, self._path = None, path
        if not distributed.is_main_process():
            return
        self._file = path.open("r+b" if step and path.exists() else "wb+")
        end, position, damaged, unclear = 0, 0, list[int](), list[int]()
        for number, line in enumerate(self._file, 1):
            position += len(line)
            found = _read_step(line)
            if found is None:
                unclear.append(number)
            elif found > step:
                break
            else:
                end, damaged, unclear = position, damaged + unclear, []
        if damaged:
            numbers = ", ".join(map(str, damaged))
            warn(f"{path}: damaged lines are skipped: {numbers}")
        self._file.truncate(end)
        self._file.seek(end)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record."""
        if self._file is not None:
            try:
                self._file.write(json.dumps(record).encode() + b"\n")
                self._file.flush()
            except OSError as error:
                raise VqtoolError(f"{self._path}: cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close the file; what could not be written to it has been told."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()


class Account:
    """Of the steps of a run: to its log, to whoever asked, and to people beside its progress."""

    def __init__(self, log: RunLog, course: Course, report: Report | None, told: Sequence[str]) -> None:
        self._log, self._course, self._report, self._told = log, course, report, told
        self._values: dict[str, float] = {}  # the latest of each

    def detail(self) -> str:
        """The metrics that are shown with the progress."""
        return ", ".join(f"{name} {self._values[name]:.4g}" for name in self._told if name in self._values)

    def tell(self, step: int, values: Mapping[str, float], seconds: float, measured: Iterable[str]) -> None:
        """Account for a step.

        Args:
            step: its number.
            values: of it.
            seconds: that the run has taken.
            measured: names of what was measured after it, if that was looked at.
        """
        self._values |= values
        if [*measured] and (turn := self._course.describe_turn(step, values)):
            warn(turn)
        self._log.write({"step": step, **values, "seconds": round(seconds, 3)})
        if self._report is not None:
            self._report(step, values)


def describe_stop(moment: Moment, *, by_clock: bool, state_path: Path) -> str:
    """What people are told of a run that was interrupted."""
    of = ""
    if math.isfinite(moment.num_steps):  # a step that took longer than the run was to last makes it longer
        of = f" of {'about ' if by_clock else ''}{max(moment.step, round(moment.num_steps))}"
    return (
        f"stopped after step {moment.step}{of}; the state is in {state_path}: the same command with `resume` goes "
        "on from there"
    )


def describe_use(counts: ArrayLike) -> dict[str, float]:
    """Perplexity and usage of a codebook of which each code is used so often, (K,), whole numbers or not."""
    return {"perplexity": perplexity(counts), "usage": usage(np.asarray(counts) > 0)}


def check_finite(values: Mapping[str, float], step: int, state_path: Path) -> None:
    """Raise VqtoolError, which says where the state of the run is, unless loss and gradient are finite."""
    for name, word in (("loss", "the loss"), ("gradient_norm", "the norm of the gradient")):
        if not math.isfinite(values[name]):
            kept = f"; the state before that is in {state_path}" if state_path.exists() else ""
            raise VqtoolError(
                f"{word} became {values[name]} at step {step}: start anew with a smaller `learning_rate`{kept}"
            )


def _read_step(line: bytes) -> int | None:
    """The step of a line of the log; None if it is damaged."""
    try:
        step = json.loads(line)["step"] if line.endswith(b"}\n") else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if isinstance(step, int) else None
