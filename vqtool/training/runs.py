"""What all training runs share: how long they are, and the files that they leave beside their output."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vqtool.errors import VqtoolError, count_text, warn
from vqtool.options import Checked, option
from vqtool.outputs import refuse_existing
from vqtool.progress import Notify, ignore
from vqtool.training._identity import read_identity, read_reached
from vqtool.training.clock import Length

SUFFIX = ".safetensors"  # of artifacts; side files have the rest of the output's name


@dataclass(frozen=True, kw_only=True)
class RunOptions(Checked):
    """How long a run is and how fast it learns."""

    steps: int | None = option(None, "Length of the run in steps.", minimum=1)
    minutes: float | None = option(None, "Length in minutes, whatever else the machine does.", minimum=0.01)
    learning_rate: float | None = option(
        None, "After the warm-up.", shown="suits the network", minimum=1e-8, advanced=True
    )
    preview_every: int = option(500, "Steps between previews; 0 is none.", minimum=0, advanced=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps is not None and self.minutes is not None:
            raise VqtoolError("give `steps` or `minutes`, not both")

    @property
    def length(self) -> Length | None:
        """How long a run is to be, if that is said."""
        return None if self.steps is None and self.minutes is None else Length(self.steps, self.minutes)


@dataclass(frozen=True, kw_only=True)
class FittedRunOptions(RunOptions):
    """How a run fits into the memory that there is, too."""

    accumulate: int = option(1, "Parts that a batch is worked through in, for less memory.", minimum=1, advanced=True)
    checkpoint: bool = option(
        False, "Compute blocks again for the gradient: less memory, a third slower.", advanced=True
    )


@dataclass(frozen=True, kw_only=True)
class MachineOptions(Checked):
    """What a GPU can do faster."""

    bf16: bool | None = option(None, "Compute in bfloat16.", shown="on a GPU", advanced=True)
    tf32: bool | None = option(
        None, "Let products in float32 round to TF32's 10 bits.", shown="with bf16", advanced=True
    )
    compile: bool = option(False, "Compile the network, for GPUs.", advanced=True)

    def settings(self) -> dict[str, Any]:
        """What a `LoopConfig` says of it on this machine.

        Raises:
            VqtoolError: something for GPUs without one.
        """
        gpu = torch.cuda.is_available()
        for name in ("bf16", "tf32", "compile"):
            if getattr(self, name) and not gpu:
                raise VqtoolError(
                    f"`{name}` goes with a CUDA GPU, and there is none: on a CPU bfloat16 gains nothing for small "
                    "networks and a fifth at best for large ones, and not every machine can compile; leave it out"
                )
        bf16 = gpu and self.bf16 is not False
        tf32 = bf16 if self.tf32 is None else self.tf32
        # A logged step waits for the GPU.
        return {"bf16": bf16, "tf32": tf32, "compile": self.compile, "log_steps": 20 if gpu else 1}


@dataclass(frozen=True)
class RunFiles:
    """The files of a training run, all beside its output and with the whole of its name."""

    output: Path
    resume: bool = False  # whether a run goes on that is there
    short: bool = False  # files of versions before 0.3, which cut off whatever follows a dot

    @classmethod
    def open(cls, output: str | Path, *, resume: bool | str, force: bool) -> "RunFiles":
        """The files of a run that is to begin or to go on; refuses early what cannot be.

        Args:
            output: of the run.
            resume: go on with an interrupted run; "auto": if there is one.
            force: overwrite an earlier result or run.

        Raises:
            VqtoolError: a result or an interrupted run would be overwritten, or there is none to go on with.
        """
        if resume not in (True, False, "auto"):
            raise VqtoolError(f"`resume` {resume}: True, False or auto is expected")
        files = cls(Path(output))
        before = next((each for each in (files, replace(files, short=True)) if each.state.exists()), None)
        if resume and before is not None:
            refuse_existing(files.output, force=True, kind="an artifact")
            return replace(before, resume=True)
        refuse_existing(files.output, force=force or files.state.exists(), kind="an artifact")
        if files.state.exists() and not force:
            if files.output.exists():
                remedy = "use `force` to start anew, or `resume` to go on with the run that made it"
                raise VqtoolError(f"{files.output}: exists; {remedy}")
            raise VqtoolError(f"{files.state}: an earlier run is there: `resume` goes on with it, `force` starts anew")
        if resume is True:
            raise VqtoolError(f"{files.state}: no earlier run is there to go on with: start without `resume`")
        return files

    @property
    def begun(self) -> Mapping[str, Any] | None:
        """What the run that goes on began with; None where none does."""
        return read_identity(self.state).settings if self.resume else None

    @property
    def state(self) -> Path:
        """What a resume reads."""
        return self._beside(".state.safetensors")

    @property
    def log(self) -> Path:
        """One JSON line a step."""
        return self._beside(".log.jsonl")

    @property
    def preview(self) -> Path:
        """The latest picture of the progress."""
        return self._beside(".preview.png")

    def _beside(self, suffix: str) -> Path:
        if self.short:
            return self.output.with_suffix(suffix)
        return self.output.with_name(self.output.name.removesuffix(SUFFIX) + suffix)

    def draw(self, write: Callable[[Path], None]) -> None:
        """Write the preview; where that fails, a warning: a run is worth more than its picture."""
        try:
            write(self.preview)
        except (VqtoolError, OSError) as error:
            warn(f"no preview: {error}")

    def describe(self) -> str:
        """Those of them that people may want to look at."""
        return f"{f'preview {self.preview}, ' if self.preview.exists() else ''}log {self.log}"


def choose_length(run: RunOptions, files: RunFiles, *, default: Length, notify: Notify = ignore) -> Length:
    """How long to train.

    Args:
        run: what is asked for.
        files: of the run; where one goes on, its length is kept if nothing is asked for.
        default: where nothing is asked for.
        notify: is told how long it is, and how far a run is that goes on.

    Raises:
        VqtoolError: a resumed run is to be shorter than it is already.
    """
    if not files.resume:
        length = run.length or default
        notify(f"a run of {length}")
        return length
    begun, reached = read_identity(files.state).length, read_reached(files.state)
    length = run.length or begun
    taken = f"{count_text(reached.step, 'step')} in {_duration(reached.seconds)}"
    if length == begun:
        is_over = length.moment(reached.step, reached.seconds).is_last
        more = "; it is over: give more `minutes` or `steps` to go on" if is_over else ""
        notify(f"resuming a run of {length} after {taken}{more}")
        return length
    if length.moment(reached.step, reached.seconds).is_last:
        name, value = ("steps", run.steps) if run.minutes is None else ("minutes", f"{run.minutes:g}")
        raise VqtoolError(
            f"`{name}` {value}: the run has taken {taken} already: give more, or leave it out for the {begun} that it "
            "began with"
        )
    notify(f"resuming a run of {begun} after {taken}; it is one of {length} now, and its learning rate follows")
    return length


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
