"""Runs that write token grids and may be killed: what is done stands beside the output, and a later run goes on.

While a run lasts, the grids of x.h5 are in x.partial.h5: a stream of members without a last one (docs/formats.md), each
flushed to the disk before the next is made. When all are there the output is written whole, renamed, and the partial
file removed. Under `accelerate launch` every process has a partial file of its own: x.partial-0-of-2.h5 and so on.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from vqtool import distributed
from vqtool.artifacts import refuse_existing
from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.grids import GridBatch, GridHeader, GridWriter
from vqtool.grids.batch import GridDigest
from vqtool.grids.hdf5 import GridFileReader, SequenceCheck, member_image
from vqtool.grids.shared import shared_writer
from vqtool.grids.stream import SIGNATURE, explained, is_stream, read_members, refuse_terminal
from vqtool.grids.writer import checked_batch

_MAY_DIFFER = ("command", "time")  # of the last record of a history


def check_resumable(output: Path | str, *, resume: bool, force: bool) -> None:
    """Refuse early to overwrite a result or a run that could be resumed, or to resume nothing.

    Raises:
        VqtoolError: as said; or the output is a terminal, or cannot be written.
    """
    refuse_terminal(output)
    if is_stream(output):
        if resume:
            raise VqtoolError("--resume goes on with a file: name it with -o; of a stream nothing is kept")
        return
    refuse_existing(output, force=force or resume)
    own = partial_paths(output)
    others = [path for path in _find_partials(output) if path not in own]
    if others and not force:
        raise VqtoolError(f"{others[0]}: a run of another number of processes is there: --force starts anew")
    if own[distributed.rank()].exists() and not (resume or force):
        raise VqtoolError(
            f"{own[distributed.rank()]}: an earlier run is there: --resume goes on with it, --force starts anew"
        )
    if resume and not any(path.exists() for path in own):
        raise VqtoolError(f"{own[0]}: no earlier run is there to go on with: start without --resume")


def partial_paths(output: Path | str) -> list[Path]:
    """The partial files of an output, one for each process."""
    output, num = Path(output), distributed.world_size()
    endings = [f".partial-{rank}-of-{num}.h5" for rank in range(num)] if num > 1 else [".partial.h5"]
    return [output.with_name(output.stem + ending) for ending in endings]


def _find_partials(output: Path | str) -> list[Path]:
    pattern = re.compile(re.escape(Path(output).stem) + r"\.partial(-\d+-of-\d+)?\.h5")
    return sorted(path for path in Path(output).parent.iterdir() if pattern.fullmatch(path.name))


@contextmanager
def resumable_writer(
    output: Path | str, header: GridHeader, *, resume: bool = False, force: bool = False
) -> "Iterator[PartialWriter | GridWriter]":
    """A writer for this process's part of an output; see `distributed.own_range` for which part that is.

    Its `num_grids` says how many are there already. Every process has to enter and leave the block; when it has ended
    in the main one the output is complete. If it fails, what has been written can be gone on with. Of a stream nothing
    is kept.

    Args:
        output: a path, or "-" for standard output.
        header: what the grids have in common; the last record of its history says all that they depend on. When a run
            is gone on with, the header is that of its start.
        resume: go on with what is there.
        force: overwrite an existing file, and what is kept of another run.

    Raises:
        MismatchError: what is there is kept of another run; names the first difference.
        VqtoolError: the output cannot be written.
    """
    if is_stream(output):
        with shared_writer(output, header, force=force) as stream:
            yield stream
        return
    paths = partial_paths(output)
    if force and not resume:
        stale = [paths[distributed.rank()]]
        if distributed.is_main_process():
            stale += [path for path in _find_partials(output) if path not in paths]
        for path in stale:
            path.unlink(missing_ok=True)
    with PartialWriter(paths[distributed.rank()], header, resume=resume) as writer:
        try:
            yield writer
        except KeyboardInterrupt as error:
            kept = f"{writer.num_grids} grids are kept in {writer.path}; --resume goes on with them"
            raise KeyboardInterrupt(kept if writer.num_grids else "") from error
    distributed.wait_for_all()
    if distributed.is_main_process():
        with GridWriter(output, writer.header, force=force or resume) as whole:
            for path in filter(Path.exists, paths):
                for _, batch, _ in _read(path):
                    whole.write(batch)
        with Path(output).open("rb") as file:
            os.fsync(file.fileno())  # a power cut may come between this and the next
        for path in paths:
            path.unlink(missing_ok=True)


class PartialWriter:
    """Writes one partial file; every batch is on the disk when `write` returns.

    Args:
        path: of the file; it is made by the first batch.
        header: what the grids have in common.
        resume: go on with what is there, without a torn end.

    Raises:
        FormatError: the file is no grid file.
        MismatchError: it is of another run.
    """

    def __init__(self, path: Path, header: GridHeader, *, resume: bool = False) -> None:
        self.path = path
        self.header = header
        self.num_grids = 0
        self._members = 0
        self._digest = GridDigest(header)
        self._file: BinaryIO | None = None
        if resume and path.exists():
            self._go_on()

    def __enter__(self) -> "PartialWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, batch: GridBatch) -> None:
        """Write the next grids.

        Raises:
            ValueError: shapes, lengths or tokens do not fit the header.
            VqtoolError: the disk is full.
        """
        if not len(batch):
            return
        batch = checked_batch(self.header, batch)
        self._take(batch)
        place = {"member": self._members - 1, "last": False, "total": self.num_grids, "digest": self._digest.value()}
        with explained(self.path):
            if self._file is None:
                self._file = self.path.open("xb")
            self._file.write(member_image(self.header, batch, **place))
            self._file.flush()
            os.fsync(self._file.fileno())

    def _take(self, batch: GridBatch) -> None:
        self._digest.update(batch)
        self.num_grids += len(batch)
        self._members += 1

    def _go_on(self) -> None:
        """Count what is there and cut off what is not whole."""
        end = 0
        try:
            for member, batch, stop in _read(self.path):
                if self._members == 0:
                    _check_same_run(self.path, member.header, self.header)
                    self.header = member.header
                self._take(batch)
                end = stop
        except FormatError:
            with self.path.open("rb") as file:
                if not SIGNATURE.startswith(file.read(len(SIGNATURE))):
                    raise
        with explained(self.path):
            self._file = self.path.open("r+b")
            self._file.truncate(end)
            self._file.seek(end)


def _read(path: Path) -> Iterator[tuple[GridFileReader, GridBatch, int]]:
    """The members of a partial file with their grids, and where each ends, up to the first that is not whole.

    Raises:
        FormatError: some member is not whole.
    """
    check = None
    with path.open("rb") as stream, closing(read_members(stream, str(path))) as files:
        for file in files:
            member = GridFileReader(file, str(path))
            check = check or SequenceCheck(member.header, str(path))
            check.begin(member)
            batch = member.read(0, member.num_grids)
            check.update(batch)
            check.end(member)
            yield member, batch, stream.tell()


def _check_same_run(path: Path, old: GridHeader, new: GridHeader) -> None:
    """Raise MismatchError unless two headers are of the same run; names the first difference."""
    before, now = _settings(old), _settings(new)
    for name in dict.fromkeys([*now, *before]):
        if before.get(name) != now.get(name):
            shown = ["not given" if value is None else value for value in (before.get(name), now.get(name))]
            raise MismatchError(
                f"{path}: a run with {name.replace('_', ' ')} {shown[0]}, but now it is {shown[1]}: "
                "resume with what the run was started with, or start anew with --force"
            )


def _settings(header: GridHeader) -> Mapping[str, Any]:
    """All that the grids of a run depend on, by name."""
    fields: dict[str, Any] = json.loads(json.dumps(asdict(header)))
    history = fields.pop("history")
    record = {name: value for name, value in history[-1].items() if name not in _MAY_DIFFER} if history else {}
    return {**record.pop("inputs", {}), **record, **fields}
