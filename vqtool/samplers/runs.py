"""Runs: samples to a file or stream, with estimates, progress, an animation, and resume after an interruption.

None of the options of a run changes a sample.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from torch import Tensor

from vqtool.artifacts import find_named, history_record, text_digest
from vqtool.distributed import own_range
from vqtool.errors import VqtoolError, size_text
from vqtool.grids import GridBatch, GridHeader
from vqtool.grids.resume import check_resumable, count_kept, resumable_writer
from vqtool.options import Checked, option
from vqtool.outputs import check_reader, is_stream
from vqtool.priors import Prior
from vqtool.progress import Notify, Progress, ignore, silent
from vqtool.samplers import (
    MAX_NUMBER,
    Method,
    Observer,
    SampleBatch,
    Walk,
    choose_texts,
    describe,
    estimates,
)
from vqtool.samplers._best import Best, Judge
from vqtool.samplers._caches import kept_bytes
from vqtool.samplers._published import published, shown
from vqtool.samplers._texts import PLURALS, in_turn
from vqtool.samplers.trajectories import animated
from vqtool.tokenizers import BUILTIN, tokenizer_of

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

    def __str__(self) -> str:
        rate = self.num / max(self.seconds, 1e-9)
        return f"{_digits(self.num_calls)} network calls a grid, {self.seconds:.1f} s, {rate:.2g} grids/s"


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
        self._notify(f"{_between(least, most)} network calls a grid, each {seconds:.2g} s for {at_once} grids at once")
        every = "every " if self.num is None else ""
        self._notify(f"about {_between(least * whole, most * whole)} s for {every}{num} grids; nothing is written")
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
            return f"{done + self.num_drawn} of {'?' if num is None else done + num} grids"

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


def sample_to_file(
    prior: Prior,
    output: str | Path,
    num: int,
    *,
    labels: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    start: int = 0,
    best: int = 1,
    judge: Judge | None = None,
    tokenizer: str | Path | None = None,
    resume: bool | str = False,
    force: bool = False,
    notify: Notify = ignore,
    progress: Progress = silent,
    **how: Any,
) -> Summary:
    """Draw token grids from a prior into a grid file; under `accelerate launch` every process draws a part of them.

    Sample i is the same for every batch size, number of samples and processes, if it is `exact`. A killed run can be
    resumed.

    Args:
        prior: from `vqtool.load_prior`; its device does the work.
        output: grid file to write; "-" is a stream on standard output.
        num: how many.
        labels: drawn in turn, if the prior takes labels. Without labels and captions its own examples are.
        captions: drawn in turn, if the prior takes captions.
        start: number of the first sample.
        best: candidates of each sample, of which the judge keeps one.
        judge: who chooses among them, as from `vqtool.metrics.judges.build`.
        tokenizer: that a trajectory is decoded with; None for the one that the prior names.
        resume: go on with an interrupted run of the same arguments, to the same file; "auto": if there is one.
        force: overwrite what is there.
        notify: is told, line by line, what is done and what it takes.
        progress: shows how far it is; see `vqtool.progress`.
        how: all further arguments of `vqtool.sample` but those that name rows; and `batch_size` ("auto" goes by the
            free memory), `trajectory` (a file for an animation of the first samples) and `dry_run` (count the calls,
            estimate memory and time, and write nothing).

    Raises:
        MismatchError: what is to be resumed was another run.
        VqtoolError: the output exists or cannot be written, or as for `vqtool.sample`.
    """
    options = take_run_options(how)
    _check_numbers(num, start)
    if tokenizer is not None and options.trajectory is None:
        raise VqtoolError("`tokenizer` is what `trajectory` decodes with: give that too, or leave both out")
    go_on = False if options.dry_run else check_resumable(output, resume=resume, force=force)
    texts, kind = choose_texts(prior, labels, captions, notify), prior.conditioner.kind
    method = Method.build(prior, has_condition=bool(texts), **how)
    _tell_method(method, num, published(prior, how.get("sampler"), how, has_condition=bool(texts)), notify)
    own = own_range(num)
    chosen = Best(method, judge, best, texts)
    samples = chosen.candidates(range(start + own.start, start + own.stop))

    rows: dict[str, Any] = {"condition": chosen.rows(in_turn(prior, texts))}
    run = Run(method, len(samples), options, notify=notify, progress=progress, output=output)
    run.tell_estimates()
    chosen.tell(notify)
    if options.dry_run:
        return run.rehearse(samples, count_kept(output) * best if resume else 0, **rows)
    named = {PLURALS[kind]: text_digest(texts)} if texts else {}
    details = {"num": num, "start": start, **method.record, **chosen.record, **named}
    record = history_record("sample", inputs={"prior": prior.fingerprint}, seed=method.seed, **details)
    header = grid_header(prior, method.grid_size, record)
    find = partial(tokenizer_of, header, prior.location or None, given=tokenizer)
    with (
        animated(options.trajectory, samples, find, texts=texts, force=force, notify=notify) as observe,
        resumable_writer(output, header, resume=go_on, force=force) as writer,
    ):
        left = samples[writer.num_grids * best :]
        draw = partial(chosen.batches, len(left), start=left.start, **rows)
        for batch in run.batches(draw, observe, done=writer.num_grids * best):
            writer.write(_grid_batch(kind, chosen.choose(batch), texts))
    done = run.summary
    return Summary(done.num // best, chosen.calls(done.num_calls), done.seconds)


def _check_numbers(num: int, start: int) -> None:
    if num < 1:
        raise VqtoolError(f"`num` {num}: at least 1 grid has to be drawn")
    if not 0 <= start <= MAX_NUMBER - num:
        raise VqtoolError(f"`start` {start}: the numbers of the samples must lie in 0 to 2**63 - 1")


def _tell_method(method: Method, num: int, theirs: Mapping[str, Any], notify: Notify) -> None:
    """Say how the grids are drawn, and which of it is what the prior's makers published."""
    prior = method.prior
    place = f"prior {prior.fingerprint}" + (f" ({prior.location})" if prior.location else "")
    notify(f"{place}: {num} grids by {method.sampler} sampling, seed {method.seed}")
    if theirs:
        notify(shown(describe(theirs)))


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


def _grid_batch(kind: str, batch: SampleBatch, texts: Sequence[str]) -> GridBatch:
    ids = [f"sample-{number:06}" for number in batch.samples]
    own = [texts[number % len(texts)] for number in batch.samples] if texts else None
    tokens = batch.grids.numpy().astype(np.uint64)
    return GridBatch(tokens, ids, own if kind == "class" else None, own if kind == "caption" else None)


def _between(least: float, most: float) -> str:
    low, high = _digits(least), _digits(most)
    return low if low == high else f"{low} to {high}"


def _digits(number: float) -> str:
    """Three digits, or all that stand before the point."""
    return f"{number:.3g}" if number < 100 else f"{number:.0f}"
