"""Samples to a grid file or stream: planned once, then drawn, kept while they last, and gone on with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vqtool.artifacts import history_record, text_digest
from vqtool.distributed import own_range
from vqtool.errors import VqtoolError, count_text
from vqtool.grids import GridBatch, GridHeader
from vqtool.grids.resume import check_resumable, count_finished, count_kept, resumable_writer
from vqtool.priors import Prior
from vqtool.progress import Notify, Progress, ignore, silent
from vqtool.samplers import MAX_NUMBER, Method, SampleBatch, choose_texts, describe
from vqtool.samplers._best import Best, Judge
from vqtool.samplers._published import published, shown
from vqtool.samplers._texts import PLURALS, in_turn
from vqtool.samplers.runs import Run, RunOptions, Summary, grid_header, take_run_options
from vqtool.samplers.trajectories import animated
from vqtool.tokenizers import tokenizer_of


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
        resume: go on with an interrupted run of the same arguments, to the same file; "auto": if there is one, and
            nothing is done if the file is complete.
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
    check_numbers(num, start)
    if tokenizer is not None and options.trajectory is None:
        raise VqtoolError("`tokenizer` is what `trajectory` decodes with: give that too, or leave both out")
    go_on = False if options.dry_run else check_resumable(output, resume=resume, force=force)
    drawing = Drawing.plan(prior, labels=labels, captions=captions, best=best, judge=judge, notify=notify, **how)
    drawing.tell(num, notify)
    header = drawing.header(range(start, start + num))
    if not options.dry_run and count_finished(output, header, resume=resume, force=force) is not None:
        return Summary(0, 0.0, 0.0, was_complete=True)
    rehearsal = options.dry_run and bool(resume)  # of what is left
    return drawing.write(
        range(start, start + num),
        output,
        options,
        tokenizer=tokenizer,
        resume=go_on or rehearsal,
        force=force,
        notify=notify,
        progress=progress,
    )


@dataclass(frozen=True)
class Drawing:
    """What samples are drawn from, and how: for any numbers of them. Made by `plan`."""

    prior: Prior  # as it was given
    method: Method
    texts: Sequence[str]  # in turn
    chosen: Best
    theirs: Mapping[str, Any]  # what the prior's makers published of how it is sampled

    @classmethod
    def plan(
        cls,
        prior: Prior,
        *,
        labels: Sequence[str] | None = None,
        captions: Sequence[str] | None = None,
        best: int = 1,
        judge: Judge | None = None,
        notify: Notify = ignore,
        **how: Any,
    ) -> "Drawing":
        """Check the arguments of `sample_to_file` that say what a sample is.

        Raises:
            VqtoolError: as `vqtool.sample`.
        """
        texts = choose_texts(prior, labels, captions, notify)
        method = Method.build(prior, has_condition=bool(texts), **how)
        theirs = published(prior, how.get("sampler"), how, has_condition=bool(texts))
        return cls(prior, method, texts, Best(method, judge, best, texts), theirs)

    def tell(self, num: int, notify: Notify) -> None:
        """Say how the grids are drawn, and which of it is what the prior's makers published."""
        prior, method = self.prior, self.method
        place = f"prior {prior.fingerprint}" + (f" ({prior.location})" if prior.location else "")
        notify(f"{place}: {count_text(num, 'grid')} by {method.sampler} sampling, seed {method.seed}")
        if self.theirs:
            notify(shown(describe(self.theirs)))

    def header(self, samples: range) -> GridHeader:
        """The header of the grids of these samples."""
        method, kind = self.method, self.prior.conditioner.kind
        named = {PLURALS[kind]: text_digest(self.texts)} if self.texts else {}
        details = {"num": len(samples), "start": samples.start, **method.record, **self.chosen.record, **named}
        record = history_record("sample", inputs={"prior": self.prior.fingerprint}, seed=method.seed, **details)
        return grid_header(self.prior, method.grid_size, record)

    def write(
        self,
        all_samples: range,
        output: str | Path,
        options: RunOptions,
        *,
        tokenizer: str | Path | None = None,
        resume: bool,
        force: bool,
        notify: Notify = ignore,
        progress: Progress = silent,
    ) -> Summary:
        """Draw samples into a grid file, this process its share of them; arguments are those of `sample_to_file`."""
        num, start, best, chosen = len(all_samples), all_samples.start, self.chosen.num, self.chosen
        own = own_range(num)
        samples = chosen.candidates(range(start + own.start, start + own.stop))
        rows: dict[str, Any] = {"condition": chosen.rows(in_turn(self.prior, self.texts))}
        run = Run(self.method, len(samples), options, notify=notify, progress=progress, output=output)
        run.tell_estimates()
        chosen.tell(notify)
        if options.dry_run:
            return run.rehearse(samples, count_kept(output) * best if resume else 0, **rows)
        header = self.header(all_samples)
        find = partial(tokenizer_of, header, self.prior.location or None, given=tokenizer)
        with (
            animated(options.trajectory, samples, find, texts=self.texts, force=force, notify=notify) as observe,
            resumable_writer(output, header, resume=resume, force=force) as writer,
        ):
            left = samples[writer.num_grids * best :]
            draw = partial(chosen.batches, len(left), start=left.start, **rows)
            for batch in run.batches(draw, observe, done=writer.num_grids * best):
                writer.write(_grid_batch(self.prior.conditioner.kind, chosen.choose(batch), self.texts))
        done = run.summary
        return Summary(done.num // best, chosen.calls(done.num_calls), done.seconds)


def check_numbers(num: int, start: int) -> None:
    """Raise VqtoolError unless there may be so many samples, with such a first number."""
    if num < 1:
        raise VqtoolError(f"`num` {num}: at least 1 grid has to be drawn")
    if not 0 <= start <= MAX_NUMBER - num:
        raise VqtoolError(f"`start` {start}: the numbers of the samples must lie in 0 to 2**63 - 1")


def _grid_batch(kind: str, batch: SampleBatch, texts: Sequence[str]) -> GridBatch:
    ids = [f"sample-{number:06}" for number in batch.samples]
    own = [texts[number % len(texts)] for number in batch.samples] if texts else None
    tokens = batch.grids.numpy().astype(np.uint64)
    return GridBatch(tokens, ids, own if kind == "class" else None, own if kind == "caption" else None)
