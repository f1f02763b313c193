"""How commands that sample go about it: batches, progress, what it takes, and the animation of how it went."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from vqtool.cli.console import echo, progress, shape, warn
from vqtool.distributed import is_main_process
from vqtool.errors import VqtoolError

if TYPE_CHECKING:
    from torch import Tensor

    from vqtool.priors import Prior
    from vqtool.samplers import Observer, Walk
    from vqtool.tokenizers import Tokenizer

T = TypeVar("T", bound="Drawn")

MOST_LOST = 64  # grids, or one group that passes the network together, that a killed run draws anew
_GB = 1e9
_FRAME = 120  # milliseconds, of an animation of few frames
_FILM = 5000  # milliseconds, of one of many


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """How a run goes."""

    overlap: Annotated[
        int | None,
        typer.Option("--overlap", help="Cells that windows of a larger grid share at least. Default: half a window."),
    ] = None
    grid_mode: Annotated[
        str | None,
        typer.Option(
            "--grid-mode", help="Larger grids: windows of the training grid (the default), or stretch its layout."
        ),
    ] = None
    batch_size: Annotated[
        str, typer.Option("--batch-size", "-b", help="How many are drawn at once; auto looks at the free memory.")
    ] = "auto"
    trajectory: Annotated[
        Path | None,
        typer.Option("--trajectory", help="Animation of the first samples: a .webp, .gif or .png file."),
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take (calls, memory, time) and write nothing.")
    ] = False

    def choose(self) -> dict[str, Any]:
        """The arguments of `vqtool.sample` that these flags stand for; only those that are given."""
        given = {"overlap": self.overlap, "grid_mode": self.grid_mode}
        return {name: value for name, value in given.items() if value is not None}


class Drawn(Protocol):
    """Samples that were drawn together, such as a `SampleBatch`."""

    @property
    def samples(self) -> range:
        """Their numbers."""

    @property
    def num_calls(self) -> float:
        """Of the denoiser, the mean of the samples."""


class Run:
    """A run of some samples; what it draws does not depend on how it goes."""

    def __init__(
        self, prior: "Prior", num: int | None, options: dict[str, Any], flags: RunFlags, *, is_kept: bool = False
    ) -> None:
        """Check the flags.

        Args:
            prior: on the device to use.
            num: of this process's samples; None if unknown.
            options: further arguments of `vqtool.sample`; what differs between samples as functions of their numbers.
            flags: how it goes.
            is_kept: whether each batch is kept at once, so that small ones lose little when the run is killed.

        Raises:
            VqtoolError: a flag that cannot be.
        """
        from vqtool import samplers

        self.prior, self.num, self.options = prior, num, options
        self.num_drawn = 0
        names = {"overlap": "overlap", "grid_mode": "mode"}
        how = {name: options[option] for option, name in names.items() if option in options}
        self.windows = samplers.cover(prior, options.get("grid_size") or prior.grid_spec.grid_size, **how)
        self.batch_size = self._choose_batch_size(flags.batch_size, MOST_LOST if is_kept else None)
        self._calls = self._seconds = 0.0
        self._under_way: dict[range, float] = {}  # calls of the samples that are being drawn

    def _choose_batch_size(self, text: str, most: int | None) -> int:
        from vqtool.samplers import estimates

        if text != "auto":
            if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
                raise VqtoolError(f"--batch-size {text}: auto, or a number from 1 on, is expected")
            return int(text)
        free = estimates.find_free_memory(self.prior.device)
        num = estimates.USEFUL_CELLS if self.num is None else max(1, self.num)
        return estimates.find_batch_size(self.prior, self.windows, num, free, most=most)

    def echo_cost(self) -> None:
        """Say what passes the network at once, and what memory that takes."""
        from vqtool.samplers import estimates

        windows = self.windows
        if len(windows) > 1:
            at_once = min(windows.at_once, len(windows) * windows.group_size)
            echo(
                f"grids of {shape(windows.grid_size)}: {len(windows)} windows of {shape(windows.size)} a call, "
                f"{at_once} of them in the network at once"
            )
        memory = estimates.estimate_memory(self.prior, windows, self.batch_size) / _GB
        free = estimates.find_free_memory(self.prior.device) / _GB
        echo(f"batches of {self.batch_size}: about {memory:.2g} GB of memory; {free:.3g} GB are free")

    def rehearse(self, samples: range, **rows: Any) -> None:
        """Say how many calls and how much time it would take.

        Args:
            samples: the numbers of some or all samples.
            rows: further arguments of `vqtool.sample` for these.
        """
        from vqtool.samplers import estimates

        least, most = estimates.count_calls(self.prior, samples, **{**self.options, **rows})
        seconds, size = estimates.time_call(self.prior, self.windows), self.windows.group_size
        num = size if self.num is None else self.num
        whole = seconds * -(-num // size)
        echo(f"{_between(least, most)} network calls a grid, each {seconds:.2g} s for {min(size, num)} grids at once")
        every = "every " if self.num is None else ""
        echo(f"about {_between(least * whole, most * whole)} s for {every}{num} grids; nothing is written")

    def batches(
        self,
        draw: Callable[..., Iterator[T]],
        observe: "Observer | None" = None,
        *,
        name: str = "sample",
        done: int = 0,
    ) -> Iterator[T]:
        """Draw, and show how far it is.

        Args:
            draw: draw(batch_size=..., observe=...) draws what is left, as `sample_batches` does.
            observe: is told of every call.
            name: of what is done.
            done: how many of the samples have been drawn before.
        """
        begun = time.monotonic()

        def rate() -> str:
            calls = self._calls + sum(self._under_way.values())
            return f"{calls / max(time.monotonic() - begun, 1e-9):.1f} calls/s" if calls else ""

        with progress(name, self.num, "grids", done=done, detail=rate) as advance:

            def notice(walk: "Walk", x_t: "Tensor") -> None:
                self._under_way[walk.samples] = walk.num_calls * len(walk.samples)
                advance(0)
                if observe is not None:
                    observe(walk, x_t)

            for batch in draw(batch_size=self.batch_size, observe=notice):
                self._calls += batch.num_calls * len(batch.samples)
                self._under_way.clear()
                self.num_drawn += len(batch.samples)
                yield batch
                advance(len(batch.samples))
        self._seconds = time.monotonic() - begun

    @property
    def summary(self) -> str:
        """Calls a grid, seconds, grids a second: what was drawn by this process."""
        calls, rate = self._calls / max(1, self.num_drawn), self.num_drawn / max(self._seconds, 1e-9)
        return f"{calls:g} network calls a grid, {self._seconds:.1f} s, {rate:.2g} grids/s"


@contextmanager
def filmed(
    flags: RunFlags,
    samples: range,
    find_tokenizer: "Callable[[], Tokenizer]",
    *,
    texts: Sequence[str] = (),
    force: bool = False,
) -> Iterator["Observer | None"]:
    """What watches a run, and at its end writes the animation that --trajectory asks for; None if it does not.

    Args:
        flags: how the run goes.
        samples: the numbers of this process's samples.
        find_tokenizer: finds what the grids decode with.
        texts: captions of the samples, in turn.
        force: overwrite the file.

    Raises:
        VqtoolError: it cannot be written, or its tokenizer is not there; early, before anything is drawn.
    """
    if flags.trajectory is None or not is_main_process():
        yield None
        return
    from vqtool.images.animations import check_animation, save_animation
    from vqtool.samplers.trajectories import Trajectory, draw_frames

    check_animation(flags.trajectory, force=force)
    model, trajectory = find_tokenizer(), Trajectory(samples)
    yield trajectory.observe
    grids = trajectory.grids()
    if not len(grids):
        warn(f"{flags.trajectory}: not written; none of the first samples was drawn by this run")
        return
    captions = [texts[number % len(texts)] for number in trajectory.seen] if texts else None
    frames = draw_frames(grids, model, captions)
    save_animation(frames, flags.trajectory, milliseconds=min(_FRAME, _FILM // len(frames)), force=force)
    echo(f"wrote {flags.trajectory}: {len(frames)} frames of {len(trajectory.seen)} grids")


def image_size(prior: "Prior", grid_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) pixels of what grids of a size decode to, by those that the prior was trained on."""
    cells, pixels = prior.grid_spec.grid_size, prior.grid_spec.image_size
    return grid_size[0] * pixels[0] // cells[0], grid_size[1] * pixels[1] // cells[1]


def _between(least: float, most: float) -> str:
    low, high = f"{least:.3g}", f"{most:.3g}"
    return low if low == high else f"{low} to {high}"
