"""Runs: how many grids are drawn at once, what that takes, and how far it is; `drawing` writes them to a file.

None of the options of a run changes a sample.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from vqtool.artifacts import find_named
from vqtool.errors import VqtoolError, count_text, size_text
from vqtool.grids import GridHeader
from vqtool.options import Checked, option
from vqtool.outputs import check_reader, is_stream
from vqtool.priors import Prior
from vqtool.progress import Notify, Progress
from vqtool.samplers import Method, Observer, Walk, estimates
from vqtool.samplers._caches import kept_bytes
from vqtool.tokenizers import BUILTIN

T = TypeVar("T", bound="Drawn")

MOST_LOST = 64  # grids, or one microbatch, that a killed run draws again
_GB = 1e9


@dataclass(frozen=True, kw_only=True)
class RunOptions(Checked):
    """How a run proceeds."""

    batch_size: int | str = option(
        "auto", "How many are drawn at once; auto goes by the free memory.", flag="-b", advanced=True
    )
    trajectory: Path | None = option(None, "Animation of the first samples: x.webp, x.gif or x.png.")
    dry_run: bool = option(False, "Say what it would take (calls, memory, time), and write nothing.")

    def __post_init__(self) -> None:
        super().__post_init__()
        size = str(self.batch_size)
        if size != "auto" and not (size.isascii() and size.isdigit() and 0 < int(size) < 10**9):
            raise VqtoolError(f"`batch_size` {size}: auto, or a number from 1 on, is expected")


@dataclass(frozen=True)
class Summary:
    """What a run did."""

    num: int  # grids drawn by this process
    num_calls: float  # of the denoiser, a grid
    seconds: float
    was_complete: bool = False  # before it

    def __str__(self) -> str:
        rate = self.num / max(self.seconds, 1e-9)
        return f"{count_text(_digits(self.num_calls), 'network call')} a grid, {self.seconds:.1f} s, {rate:.2g} grids/s"


class Drawn(Protocol):
    """Samples that were drawn together, such as a `SampleBatch`."""

    @property
    def samples(self) -> range:
        """Their numbers."""

    @property
    def num_calls(self) -> float:
        """Of the denoiser, the mean of the samples."""


class Run:
    """A run of some samples."""

    def __init__(
        self,
        method: Method,
        num: int | None,
        options: RunOptions,
        *,
        notify: Notify,
        progress: Progress,
        output: str | Path,
    ) -> None:
        """Choose the size of the batches.

        Args:
            method: how samples are drawn.
            num: of this process's samples; None if unknown.
            options: how it proceeds.
            notify: is told what it takes.
            progress: shows how far it is.
            output: where samples go. Of a file each batch is kept at once, so that small ones lose little when the run
                is killed.
        """
        self.method, self.num, self.options = method, num, options
        self._notify, self._progress, self._output = notify, progress, output
        self.num_drawn = 0
        self._calls = self._seconds = 0.0
        self._under_way: dict[range, float] = {}  # calls of the samples that are being drawn
        if options.batch_size == "auto":
            free = estimates.find_free_memory(method.prior.device)
            wanted = estimates.USEFUL_CELLS if num is None else max(1, num)
            most = None if is_stream(output) else MOST_LOST
            kept = kept_bytes(method.prior, method.settings, method.tiling)
            self.batch_size = estimates.find_batch_size(method.prior, method.tiling, wanted, free, most=most, kept=kept)
        else:
            self.batch_size = int(options.batch_size)

    def tell_estimates(self) -> None:
        """Say what passes the network at once, and what memory that takes."""
        tiling = self.method.tiling
        if len(tiling) > 1:
            at_once = min(tiling.at_once, len(tiling) * tiling.microbatch)
            self._notify(
                f"grids of {size_text(tiling.grid_size)}: {len(tiling)} tiles of {size_text(tiling.size)} a call, "
                f"{at_once} of them in the network at once"
            )
        kept = kept_bytes(self.method.prior, self.method.settings, tiling)
        memory = estimates.estimate_memory(self.method.prior, tiling, self.batch_size, kept) / _GB
        free = estimates.find_free_memory(self.method.prior.device) / _GB
        self._notify(f"batches of {self.batch_size}: about {memory:.2g} GB of memory; {free:.3g} GB are free")

    def rehearse(self, samples: range, done: int = 0, **rows: Any) -> Summary:
        """Say how many calls and how much time it would take.

        Args:
            samples: the numbers of some or all samples.
            done: how many of all have been drawn before.
            rows: condition, known, source and strength of these, as for `Method.batches`.
        """
        if done:
            self._notify(f"{done} of {self.num} are kept of an earlier run")
        if done == self.num:
            return Summary(0, 0.0, 0.0)
        least, most = estimates.rehearse(self.method, samples, **rows)
        seconds, size = estimates.time_call(*self.method.measured), self.method.tiling.microbatch
        num = size if self.num is None else self.num - done
        whole = seconds * -(-num // size)
        at_once = min(size, num)
        calls = count_text(_between(least, most), "network call")
        self._notify(f"{calls} a grid, each {seconds:.2g} s for {count_text(at_once, 'grid')} at once")
        every = "every " if self.num is None else ""
        self._notify(
            f"about {_between(least * whole, most * whole)} s for {every}{count_text(num, 'grid')}; nothing is written"
        )
        return Summary(0, (least + most) / 2, 0.0)

    def batches(
        self,
        draw: Callable[..., Iterator[T]],
        observe: Observer | None = None,
        *,
        name: str = "sample",
        done: int = 0,
    ) -> Iterator[T]:
        """Draw, and show how far it is.

        Args:
            draw: draw(batch_size=..., observe=...) draws what is left, as `Method.batches` does.
            observe: is told of every call.
            name: of what is done.
            done: how many of the samples have been drawn before.
        """
        begun = time.monotonic()
        num = None if self.num is None else self.num - done  # that are left

        def grids() -> str:
            return f"{done + self.num_drawn} of {count_text('?' if num is None else done + num, 'grid')}"

        with self._progress(name, None, "calls", detail=grids) as advance:
            told = 0

            def tell(total: float | None) -> None:
                nonlocal told
                calls = round(self._calls + sum(self._under_way.values()))
                advance(calls - told, total=None if total is None else max(calls, round(total)))
                told = calls

            def notice(walk: Walk, x_t: Tensor) -> None:
                self._under_way[walk.samples] = walk.num_calls * len(walk.samples)
                tell(self._find_total(walk, num))
                check_reader(self._output)
                if observe is not None:
                    observe(walk, x_t)

            for batch in draw(batch_size=self.batch_size, observe=notice):
                self._calls += batch.num_calls * len(batch.samples)
                self._under_way.clear()
                self.num_drawn += len(batch.samples)
                yield batch
                tell(None if num is None else self._calls * num / max(1, self.num_drawn))
        self._seconds = time.monotonic() - begun

    def _find_total(self, walk: Walk, num: int | None) -> float | None:
        """Calls of `num` grids, at those that this walk comes to; None where that is not known yet."""
        if num is None or walk.num_planned is None or not walk.num_asked:
            return None
        each = walk.num_calls / walk.num_asked * walk.num_planned
        begun = sum(len(samples) for samples in self._under_way if samples != walk.samples)
        calls = self._calls + sum(self._under_way.values()) - walk.num_calls * len(walk.samples)
        return calls + (num - self.num_drawn - begun) * each

    @property
    def summary(self) -> Summary:
        """What was drawn by this process."""
        return Summary(self.num_drawn, self._calls / max(1, self.num_drawn), self._seconds)


def take_run_options(how: dict[str, Any]) -> RunOptions:
    """The options of a run among arguments, which lose them."""
    return RunOptions(**{name: how.pop(name) for name in ("batch_size", "trajectory", "dry_run") if name in how})


def grid_header(prior: Prior, grid_size: tuple[int, int], record: dict[str, Any]) -> GridHeader:
    """The header of grids that a prior makes: as those of its training, but for their size."""
    spec = prior.grid_spec
    height, width = (
        cells * pixels // of for cells, pixels, of in zip(grid_size, spec.image_size, spec.grid_size, strict=True)
    )
    return GridHeader(
        codebook_size=prior.codebook_size,
        grid_size=grid_size,
        image_size=(height, width),
        tokenizer_fingerprint=spec.tokenizer_fingerprint,
        tokenizer_location=_find_tokenizer(prior),
        preprocessing=spec.preprocessing,
        history=(*prior.history, record),
    )


def _find_tokenizer(prior: Prior) -> str:
    """Where the tokenizer of a prior is: its own account, or the file beside the prior, which a pipe does not know."""
    spec = prior.grid_spec
    if spec.tokenizer_location in ("", BUILTIN) or not Path(prior.location).is_file():
        return spec.tokenizer_location
    found = find_named(spec.tokenizer_fingerprint, spec.tokenizer_location, near=Path(prior.location).parent)
    if found is None or found == Path(spec.tokenizer_location):
        return spec.tokenizer_location
    return str(found.resolve())


def _between(least: float, most: float) -> str:
    low, high = _digits(least), _digits(most)
    return low if low == high else f"{low} to {high}"


def _digits(number: float) -> str:
    """Three digits, or all that stand before the point."""
    return f"{number:.3g}" if number < 100 else f"{number:.0f}"
