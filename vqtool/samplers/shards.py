"""Samples in shards: a file each, by any number of processes that know nothing of each other; see `vqtool.shards`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from vqtool.distributed import Part, alone, choose_device
from vqtool.errors import VqtoolError, count_text
from vqtool.grids.resume import check_same_run
from vqtool.grids.whole import find_whole, unfinished
from vqtool.locks import claims
from vqtool.priors import Prior
from vqtool.progress import Notify, Progress, ignore, silent
from vqtool.samplers.drawing import Drawing, check_numbers
from vqtool.samplers.runs import RunOptions, take_run_options
from vqtool.shards import MadeShards, Sharing

Plan = Callable[[], Drawing]  # how samples are drawn, by the process that asks


def sample_shards(
    prior: Prior,
    output: str | Path,
    num: int,
    shards: int | None,
    *,
    start: int = 0,
    tokenizer: str | Path | None = None,
    partial: str | None = None,
    engine: str = "local",
    device: str = "auto",
    resume: bool | str = False,
    force: bool = False,
    notify: Notify = ignore,
    progress: Progress = silent,
    **how: Any,
) -> MadeShards:
    """Draw token grids from a prior into many files: those of this process's part, see `distributed.own_part`.

    Each shard is a range of the samples, all of one length but for one grid, so that the grids of all files together
    are those that `sample_to_file` draws into one.

    Args:
        prior: from `vqtool.load_prior`; its device does the work.
        output: names of files, with {shard} or {shard:05d} for the number of the shard, from 0 on.
        num: how many grids the files have together.
        shards: how many files.
        start: number of the first sample.
        tokenizer: of a `trajectory`; both are refused here.
        partial: such as "3/8", in place of what the environment says.
        engine: "local": this process; "ray": tasks of a Ray cluster, the one at hand or one of this machine's cores.
        device: of tasks.
        resume: pass over files that are complete, and go on with what is kept of others.
        force: overwrite files.
        notify: is told which shards this process does, and what they take.
        progress: shows how many of them are done.
        how: all further arguments of `sample_to_file`; `dry_run` says what this process's part would take.

    Raises:
        MismatchError: a file is there, and was drawn in another way.
        VqtoolError: no name for each shard, more shards than grids, or as `sample_to_file`.
    """
    options = take_run_options(how)
    check_numbers(num, start)
    if shards is None:
        raise VqtoolError("`shards`, how many files there are, is what `partial`, `engine` and {shard} in names need")
    if not 1 <= shards <= num:
        raise VqtoolError(f"`shards` {shards}: 1 to {num} files are expected, for {count_text(num, 'grid')}")
    if options.trajectory is not None:
        raise VqtoolError("`trajectory` is of one file of grids: leave it or `shards` out")
    if tokenizer is not None:
        raise VqtoolError("`tokenizer` is what `trajectory` decodes with, and `shards` have none: leave it out")
    overwrites = force or options.dry_run  # which writes nothing, so that no file is in its way
    sharing = Sharing(output=str(output), partial=partial, engine=engine, resume=bool(resume), force=overwrites)
    if options.dry_run and engine != "local":
        raise VqtoolError(f"`dry_run` tries this machine, not those of `engine` {engine}: leave one out")
    outputs = sharing.own(shards, notify)
    ranges = {number: Part(number + 1, shards).range(num) for number in outputs}
    work = [(range(start + ranges[n].start, start + ranges[n].stop), path) for n, path in outputs.items()]
    plan: Plan = _plan(prior, notify, how) if engine == "local" else _Elsewhere(prior.to("cpu"), how, device)
    if engine == "local" and work:
        drawing, own = plan(), range(work[0][0].start, work[-1][0].stop)
        with alone():
            drawing.tell(len(own), notify)
            if options.dry_run:
                drawing.write(own, output, options, resume=False, force=force, notify=notify)
    if options.dry_run:
        return MadeShards(0, 0, 0, 0)
    make = _Draw(plan, options, sharing.goes_on, force)
    return sharing.make(make, work, name="sample", on_error=None, progress=progress)


def _plan(prior: Prior, notify: Notify, how: dict[str, Any]) -> Plan:
    """How this process draws, found out once."""
    return cache(partial(Drawing.plan, prior, notify=notify, **how))


@dataclass(frozen=True)
class _Elsewhere:
    """How another machine draws."""

    prior: Prior  # on the CPU
    how: dict[str, Any]
    device: str

    def __call__(self) -> Drawing:
        return Drawing.plan(self.prior.to(choose_device(self.device)), **self.how)


@dataclass(frozen=True)
class _Draw:
    """Makes the file of a range of samples."""

    plan: Plan
    options: RunOptions
    resume: bool
    force: bool

    @claims()
    def __call__(self, samples: range, output: str, *, on_error: object) -> tuple[int, bool]:
        """The number of grids, and whether the file was complete before; there is no bad input to tell of."""
        drawing = self.plan()
        whole = find_whole(output, resume=self.resume, force=self.force)
        if whole is not None:
            check_same_run(output, whole.header, drawing.header(samples))
            return whole.num_grids, True
        with unfinished(output, resume=self.resume, force=self.force) as (path, goes_on, replaces):
            drawing.write(samples, path, self.options, resume=goes_on, force=replaces)
        return len(samples), False
