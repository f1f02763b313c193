"""Long runs that write token grids: by one process or several, kept while they last, and gone on with.

While a run lasts, the grids of x.h5 are in a journal, x.partial.h5: a stream without a last chunk (docs/formats.md), to
which every batch is appended. Under `accelerate launch` every process has one, for a contiguous part of the work:
x.partial-0-of-2.h5 and so on. When all are done the main process writes the output from the journals, in their order,
renames it and removes them; the result is the same for any number of processes and interruptions. A stream gets the
main process's grids at once, and those of the others, from journals in a temporary folder, after that.
"""

import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from vqtool import distributed, signals
from vqtool.errors import FormatError, MismatchError, VqtoolError, count_text, size_text
from vqtool.grids.batch import GridBatch, GridHeader, checked_batch, join_batches
from vqtool.grids.hdf5 import GridFileReader
from vqtool.grids.reader import open_grids
from vqtool.grids.stream import SIGNATURE, read_files
from vqtool.grids.writer import CHUNK_GRIDS, GridWriter, read_journal, write_file
from vqtool.locks import lock_path, locked
from vqtool.outputs import explained, is_stream, refuse_existing, refuse_terminal, remove_stale, side_file

HOLD_SECONDS = (1.0, 5.0)  # work of so long may be lost, so that batches share a chunk: at least, and at most
HOLD_CHUNKS = 200.0  # in between, so often the time that a chunk took: on a busy machine or a slow disk that is long
SYNC_SECONDS = 1.0  # a power cut may take so much of a journal
_DIGEST = re.compile("(sha256:)?[0-9a-f]{16,64}")  # says nothing to people
_MAY_DIFFER = ("command", "version", "time", "stamp")  # of the last record of a history


def check_resumable(output: Path | str, *, resume: bool | str, force: bool) -> bool:
    """Refuse early to overwrite a result or a run that could be resumed, or to resume nothing.

    Args:
        output: of the run.
        resume: go on with a run that is there; "auto": if there is one.
        force: overwrite an existing file or run.

    Returns:
        Whether a run is gone on with.

    Raises:
        VqtoolError: as said; or the output is a terminal, or cannot be written.
    """
    if resume not in (True, False, "auto"):
        raise VqtoolError(f"`resume` {resume}: True, False or auto is expected")
    refuse_terminal(output)
    if is_stream(output):
        if resume:
            raise VqtoolError("`resume` goes on with a file: name it with `output`; of a stream nothing is kept")
        return False
    own = partial_paths(output)
    if resume == "auto":
        resume = any(path.exists() for path in own)
        if not (resume or force) and Path(output).is_file():
            return False  # `count_finished` says whether it is that of this run
    refuse_existing(output, force=force or bool(resume), kind="token grids")
    others = [path for path in _find_partials(output) if path not in own]
    if others and not force:
        raise VqtoolError(f"{others[0]}: a run of another number of processes is there: `force` starts anew")
    if own[distributed.rank()].exists() and not (resume or force):
        raise VqtoolError(
            f"{own[distributed.rank()]}: an earlier run is there: `resume` goes on with it, `force` starts anew"
        )
    if resume and not any(path.exists() for path in own):
        raise VqtoolError(f"{own[0]}: no earlier run is there to go on with: start without `resume`")
    return bool(resume)


def count_finished(output: Path | str, header: GridHeader, *, resume: bool | str, force: bool) -> int | None:
    """How many grids an output has that `resume` auto finds complete, and of this run; None if something is left to do.

    Raises:
        MismatchError: it is of another run; names the first difference.
    """
    if resume != "auto" or force or not Path(output).is_file() or any(map(Path.exists, partial_paths(output))):
        return None
    with open_grids(output) as reader:
        check_same_run(output, reader.header, header)
        return sum(map(len, reader.batches())) if reader.num_grids is None else reader.num_grids


def partial_paths(output: Path | str) -> list[Path]:
    """The journals of an output, one for each process."""
    num = distributed.world_size()
    endings = [f".partial-{rank}-of-{num}.h5" for rank in range(num)] if num > 1 else [".partial.h5"]
    return [side_file(output, ending) for ending in endings]


def count_kept(output: Path | str) -> int:
    """How many grids this process has kept of a run that was stopped."""
    path, num = partial_paths(output)[distributed.rank()], 0
    if path.is_file():
        with path.open("rb") as file, suppress(FormatError):  # the end may be torn
            for batch, _ in read_journal(file, str(path)):
                num += len(batch)
    return num


def _find_partials(output: Path | str) -> list[Path]:
    stem = side_file(output, "").name
    pattern = re.compile(re.escape(stem) + r"\.partial(-\d+-of-\d+)?\.h5")
    return sorted(path for path in Path(output).parent.iterdir() if pattern.fullmatch(path.name))


def remove_leftovers(output: Path | str) -> None:
    """Remove what a killed run has left of an output that is complete: its lock, torn files and journal.

    Raises:
        VqtoolError: another process is writing it.
    """
    if not lock_path(output).exists():
        return
    with locked(output):
        remove_stale(output)
        for path in partial_paths(output):
            with locked(path):
                path.unlink(missing_ok=True)


class Journal(GridWriter):
    """Keeps the grids of a run in a stream without a last chunk: each batch is there when `write` returns.

    The disk has it, even if the power fails, a second later. Batches that follow each other within `hold` seconds, or
    within HOLD_CHUNKS times what a chunk takes, wait for each other, so that a chunk costs little.

    Args:
        path: of the file; it is made by the first batch.
        header: what the grids have in common.
        resume: go on with what is there, without a torn end; the header is then that of the start.
        output: what messages call it.
        hold: seconds, at least and at most.

    Raises:
        FormatError: the file is no grid file.
        MismatchError: it is of another run.
    """

    def __init__(
        self,
        path: Path,
        header: GridHeader,
        *,
        resume: bool = False,
        output: Path | str | None = None,
        hold: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        super().__init__(path, header, force=True)
        self.path = path
        self._output = output or path
        self._hold = hold
        self._held: list[GridBatch] = []
        self._sent = self._synced = -math.inf
        self._cost = 0.0  # seconds of the latest chunk
        self.kept_ids: list[str] = []  # of the grids that were there
        if resume and path.exists():
            self._go_on()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._stack, suppress(VqtoolError) if kind else nullcontext():
                self.flush()
        finally:
            if self.path.is_file() and not self.path.stat().st_size:
                self.path.unlink()  # nothing could be written, so there is nothing to go on with

    @property
    def num_grids(self) -> int:
        """How many have been written."""
        return self.state.num_grids + sum(map(len, self._held))

    def write(self, batch: GridBatch) -> None:
        """Write the next grids; see `GridWriter.write`."""
        self._held.append(checked_batch(self.header, batch))
        least, most = self._hold
        wait = min(max(least, HOLD_CHUNKS * self._cost), most)
        if time.monotonic() - self._sent >= wait or sum(map(len, self._held)) >= CHUNK_GRIDS:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        held, self._held, begun = self._held, [], time.monotonic()
        super().write(held[0] if len(held) == 1 else join_batches(self.header, held))
        self._sent = time.monotonic()
        self._cost = self._sent - begun

    def _send(self, batch: GridBatch, *, last: bool = False) -> None:
        if self._chunks is None:
            self._append_to("xb", 0)
        super()._send(batch, last=last)
        if self._chunks is not None and time.monotonic() - self._synced > SYNC_SECONDS:
            with explained(self._output):
                os.fsync(self._chunks.fileno())
            self._synced = time.monotonic()

    def count_all(self, num_grids: int) -> None:
        """Let `num_grids` be that of the output, to which all processes have contributed."""
        self.state.num_grids = num_grids

    def check_there(self) -> None:
        """Raise unless the file is still the one that was written.

        Raises:
            VqtoolError: somebody has removed or replaced it.
        """
        if self._chunks is None:
            return
        try:
            same = os.path.samestat(os.fstat(self._chunks.fileno()), self.path.stat())
        except FileNotFoundError:
            same = False
        if not same:
            raise VqtoolError(f"{self.path}: is gone or another's: what this run kept there is lost; start anew")

    def _append_to(self, mode: str, end: int) -> None:
        with explained(self._output):
            file = self._stack.enter_context(self.path.open(mode))
            file.truncate(end)
            file.seek(end)
        self._chunks = file  # type: ignore[assignment]

    def _take_header(self, file: BinaryIO) -> None:
        """Take the header of the start, if it is of the same run."""
        with closing(read_files(file, str(self.path))) as files:
            for first in files:
                header = GridFileReader(first, str(self.path)).header
                check_same_run(self.path, header, self.header)
                self.header = header
                return

    def _go_on(self) -> None:
        """Count what is there and cut off what is not whole."""
        end, name = 0, str(self.path)
        with self.path.open("rb") as file:
            try:
                self._take_header(file)
                for batch, stop in read_journal(file, name, self.header):
                    self.state.update(batch)
                    self.state.end_chunk(last=False)
                    self.kept_ids += batch.ids
                    end = stop
            except FormatError:
                file.seek(0)
                if not SIGNATURE.startswith(file.read(len(SIGNATURE))):
                    raise
        self._append_to("r+b", end)


@contextmanager
def resumable_writer(
    output: Path | str, header: GridHeader, *, resume: bool = False, force: bool = False
) -> Iterator[GridWriter]:
    """A writer for this process's part of an output; see `distributed.own_range` for which part that is.

    Its `num_grids` says how many are there already. Every process has to enter and leave the block; when it has ended
    in the main one the output is complete. If it fails, what has been written can be gone on with. Of a stream nothing
    is kept.

    Args:
        output: a path, or "-" for standard output, which only the main process writes to.
        header: what the grids have in common; the last record of its history says all that they depend on. When a run
            is gone on with, the header is that of its start.
        resume: go on with what is there.
        force: overwrite an existing file, and what is kept of another run.

    Raises:
        MismatchError: what is there is kept of another run; names the first difference.
        VqtoolError: the output cannot be written.
    """
    replaces = force or (resume and Path(output).exists())
    with ExitStack() as stack:
        if distributed.is_main_process() and not is_stream(output):
            stack.enter_context(locked(output))
        distributed.wait_for_all()  # until the main process has the lock, and with it all files of the run
        paths = stack.enter_context(_journals(output, anew=force and not resume))
        if is_stream(output) and distributed.is_main_process():
            stream = stack.enter_context(GridWriter(output, header, force=force))
            yield stream
            distributed.wait_for_all()
            for path in filter(Path.exists, paths[1:]):
                with path.open("rb") as journal:
                    for batch, _ in read_journal(journal, str(path), header):
                        stream.write(batch)
            return
        own = paths[distributed.rank()]
        stack.enter_context(locked(own))
        writer = stack.enter_context(Journal(own, header, resume=resume, output=output, hold=HOLD_SECONDS))
        try:
            with signals.caught(signals.interrupt):
                yield writer
        except KeyboardInterrupt as error:
            writer.flush()
            if writer.num_grids:
                kept = f"{count_text(writer.num_grids, 'grid')} {'is' if writer.num_grids == 1 else 'are'} kept"
                error.args = (f"{kept} in {writer.path}; `resume` goes on with them",)
            raise
        writer.flush()
        writer.check_there()
        distributed.wait_for_all()
        if is_stream(output) or not distributed.is_main_process():
            return
        with explained(output):
            journals = [stack.enter_context(path.open("rb")) for path in paths if path.exists()]
            state = writer.state if len(paths) == 1 else None
            writer.count_all(write_file(output, writer.header, journals, state, force=replaces))
        for path in paths:
            path.unlink(missing_ok=True)


@contextmanager
def _journals(output: Path | str, *, anew: bool) -> Iterator[list[Path]]:
    """The journals of all processes: beside a file, and of a stream in a folder that the main process removes.

    Args:
        output: of the run.
        anew: remove what is kept of earlier runs.
    """
    if not is_stream(output):
        paths = partial_paths(output)
        if anew:
            stale = [path for path in _find_partials(output) if path not in paths]
            for path in [paths[distributed.rank()], *(stale if distributed.is_main_process() else [])]:
                path.unlink(missing_ok=True)
        yield paths
    elif distributed.world_size() == 1:
        yield []
    else:
        with ExitStack() as stack:
            name = None
            if distributed.is_main_process():
                name = stack.enter_context(tempfile.TemporaryDirectory(prefix="vqtool-", ignore_cleanup_errors=True))
            yield partial_paths(Path(distributed.broadcast(name) or "") / "grids.h5")


def check_same_run(path: str | Path, old: GridHeader, new: GridHeader) -> None:
    """Raise MismatchError unless two headers are of the same run; names the first difference.

    Args:
        path: what is of the first one.
        old: the header of what is there.
        new: the header of the run.
    """
    before, now = _settings(old), _settings(new)
    for name in dict.fromkeys([*now, *before]):
        if before.get(name) != now.get(name):
            shown = [_shown(values.get(name)) for values in (before, now)]
            called = f"`{name}`" if name.isidentifier() else name
            what = f"a run with {called} {shown[0]}, but now it is {shown[1]}"
            if any(_DIGEST.fullmatch(each) for each in shown):
                what = f"a run with other {called}"
            raise MismatchError(
                f"{path}: {what}: resume with what the run was started with, or start anew with `force`"
            )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return size_text(value)
    return "not given" if value is None else str(value)


def _settings(header: GridHeader) -> Mapping[str, Any]:
    """All that the grids of a run depend on, by the names of parameters or in words."""
    fields: dict[str, Any] = json.loads(json.dumps(asdict(header)))
    history = fields.pop("history")
    fields.pop("tokenizer_location")  # wherever it lies: its fingerprint says which one it is
    record = {name: value for name, value in history[-1].items() if name not in _MAY_DIFFER} if history else {}
    if record.get("step") == "encode":  # where no parameter says it
        record = {"images, of which there are" if name == "num" else name: value for name, value in record.items()}
    return {**record.pop("inputs", {}), "images of": fields.pop("image_size"), **record, **fields}
