"""Work that is cut into shards, a file each, by any number of processes that know nothing of each other.

`encode_shards` and `sample_shards` say what a shard is and how its file is made. Here stands the rest: which shards are
this process's own, and who makes them, this process or tasks of a Ray cluster. A file appears under its name when it is
whole; its history says what it was made of, so that a run which is resumed passes over it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqtool import distributed
from vqtool.cluster import Ended, call_here, run_by_ray
from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.images import ImageItem, OnError
from vqtool.images.sources.items import FileOrigin, counted
from vqtool.inputs import input_name
from vqtool.outputs import check_pattern, is_stream, is_there, shard_path
from vqtool.progress import Notify, Progress
from vqtool.registry import check_known
from vqtool.tally import Tally

ENGINES = ("local", "ray")  # what makes shards

Make = Callable[..., tuple[int, bool]]  # (shard, output, on_error=) -> its number of grids, whether it was complete


@dataclass(frozen=True)
class MadeShards:
    """What this process did, or had done."""

    num_shards: int  # of this process
    num_before: int  # of them, those that were complete
    num_failed: int  # of them, those that could not be read, or were made of something else
    num_grids: int  # in the others

    @property
    def line(self) -> str:
        """All in one line."""
        num = self.num_shards - self.num_before - self.num_failed
        before = f"; {counted(self.num_before, 'file')} complete before" if self.num_before else ""
        failed = f"; {counted(self.num_failed, 'shard')} left out" if self.num_failed else ""
        return f"wrote {counted(num, 'file')}{before}{failed}: {counted(self.num_grids, 'grid')} in all"


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Which shards are made here, and by whom.

    Args:
        output: names of files, with {shard} or {shard:05d} for the number of the shard, from 0 on.
        partial: such as "3/8", in place of what the environment says: see `distributed.own_part`.
        engine: "local": this process; "ray": tasks of a Ray cluster, the one at hand or one of this machine's cores.
        resume: pass over files that are complete, and go on with what is kept of others.
        force: overwrite files.

    Raises:
        VqtoolError: no name for each shard, no part, or an unknown engine.
    """

    output: str
    partial: str | None
    engine: str
    resume: bool
    force: bool

    def __post_init__(self) -> None:
        check_pattern(self.output)
        check_known("engine", self.engine, ENGINES)
        distributed.own_part(self.partial)

    @property
    def goes_on(self) -> bool:
        """Whether a shard is gone on with: always by tasks, which are begun again where a machine was lost."""
        return self.resume or (self.engine == "ray" and not self.force)

    def own(self, num: int, notify: Notify) -> dict[int, str]:
        """The files of this process's shards of `num`, by their numbers; it is told which they are.

        Raises:
            VqtoolError: one is there, without `resume` or `force`.
        """
        part = distributed.own_part(self.partial)
        own = part.range(num)
        outputs = {number: shard_path(self.output, number) for number in own}
        for path in outputs.values() if not (self.resume or self.force) else ():
            if is_there(path):
                raise VqtoolError(f"{path}: exists; `resume` goes on with what is left to do, `force` overwrites it")
        with distributed.alone():
            notify(f"{f'shards {own[0]} to {own[-1]}' if own else 'no shards'} of {num:,}, part {part}")
        return outputs

    def make(
        self,
        make: Make,
        work: Sequence[tuple[Any, str]],
        *,
        name: str,
        on_error: OnError | None,
        progress: Progress,
        before: Callable[[int], None] = lambda number: None,
    ) -> MadeShards:
        """Make files.

        Args:
            make: makes one: make(shard, output, on_error=) -> how many grids it has, and whether it was complete. Tasks
                call it on other machines, again where one was lost: it can be pickled, and goes on with what is there.
            work: shards, and the file of each.
            name: of what is done.
            on_error: told of an image or shard that cannot be read, which is left out; None raises.
            progress: shows how many are done.
            before: is told the place of each that this process is about to make.
        """
        num_before = num_failed = num_grids = 0
        shown = progress(name, len(work), "shards", detail=lambda: counted(num_grids, "grid"))  # by the main process
        with shown as advance, distributed.alone():
            for ended in self._run(make, work, on_error, before):
                num, was_there = ended.value or (0, False)
                num_grids += num
                num_before += was_there
                num_failed += ended.error is not None
                if ended.error is not None:
                    _tell(on_error, work[ended.number][1], ended.error)
                advance(1)
        return MadeShards(len(work), num_before, num_failed, num_grids)

    def _run(
        self, make: Make, work: Sequence[tuple[Any, str]], on_error: OnError | None, before: Callable[[int], None]
    ) -> Iterator[Ended[tuple[int, bool]]]:
        """What became of shards, as they end.

        Raises:
            VqtoolError: what no other shard can be made for either.
        """
        if self.engine == "ray":
            for ended in run_by_ray(make, work):
                retell(ended, on_error, work[ended.number][1])
                yield _spared(ended)
            return
        for number, each in enumerate(work):
            before(number)
            yield _spared(call_here(make, number, each, on_error))
            if isinstance(on_error, Tally):
                on_error.settle()


def refuse_streams(sources: Sequence[str | Path]) -> None:
    """Raise if tasks of a cluster cannot read a source.

    Raises:
        VqtoolError: it is standard input or a pipe, which this process alone can read.
    """
    for source in sources:
        if is_stream(source):
            raise VqtoolError(f"{input_name(source)}: can be read here alone, not by `engine` ray: name files or URLs")


def retell(ended: Ended[Any], on_error: OnError | None, place: str) -> None:
    """Tell here what a task was told of images that cannot be read.

    Raises:
        FormatError: there is nobody to tell.
    """
    for text in ended.tally.skipped:
        _tell(on_error, place, FormatError(text))
    if isinstance(on_error, Tally):
        on_error.add(ended.tally)


def _spared(ended: Ended[Any]) -> Ended[Any]:
    """The same; an error that is not this shard's own is raised."""
    if ended.error is not None and not isinstance(ended.error, FormatError | MismatchError):
        raise ended.error
    return ended


def _tell(on_error: OnError | None, place: str, error: VqtoolError) -> None:
    if on_error is None:
        raise error
    on_error(ImageItem(place, None, None, FileOrigin(place)), error)
