"""Writing token grids: to a file, or to standard output as a file or a stream.

Whatever the output, each batch becomes a chunk at once. A pipe gets the chunks; for a file they go to a journal, of
which the file is made in the end.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from vqtool.grids.batch import GridBatch, GridHeader, SequenceState, checked_batch, join_batches
from vqtool.grids.hdf5 import GridFileReader, SequenceCheck, encode_file
from vqtool.grids.stream import read_files, takes_one_file
from vqtool.locks import locked
from vqtool.outputs import atomic_path, explained, is_stream, open_output, output_name, refuse_existing, refuse_terminal

CHUNK_GRIDS = 1024  # a larger batch leaves as several chunks


class GridWriter:
    """Writes token grids to a file, or to standard output as a file or a stream.

    A path gets one HDF5 file, written under a temporary name and renamed when the block ends well. Standard output gets
    the same if it is a fresh regular file, and otherwise (a pipe, a device, appending) one chunk a batch, sent at
    once, and a last one that carries the total. A failed block leaves no file, and no last chunk.

    Args:
        output: a path, or "-" for standard output.
        header: what the grids have in common.
        force: overwrite an existing file.

    Raises:
        VqtoolError: the output exists and `force` is off, cannot be written, or is a terminal.
    """

    def __init__(self, output: Path | str, header: GridHeader, *, force: bool = False) -> None:
        self.header = header
        self.name = output_name(output)
        self._output = output
        self._force = force
        self.state = SequenceState(header)
        self._stack = ExitStack()
        self._chunks: BinaryIO | None = None  # where they go
        self._fresh: BinaryIO | None = None  # standard output, where it gets one file
        check_output(output, force=force)

    @property
    def num_grids(self) -> int:
        """How many have been written."""
        return self.state.num_grids

    def __enter__(self) -> "GridWriter":
        with explained(self._output), ExitStack() as stack:
            if is_stream(self._output):
                self._chunks = stack.enter_context(open_output(self._output))
                self._fresh = self._chunks if takes_one_file(self._chunks) else None
            else:
                stack.enter_context(locked(self._output))
            if not is_stream(self._output) or self._fresh is not None:
                folder = None if self._fresh else Path(self._output).parent
                self._chunks = stack.enter_context(tempfile.TemporaryFile(dir=folder))
            self._stack = stack.pop_all()
        return self

    def write(self, batch: GridBatch) -> None:
        """Write the next grids.

        Args:
            batch: B >= 0 grids; tokens of any integer type.

        Raises:
            ValueError: shapes, lengths or tokens do not fit the header.
            VqtoolError: a text is too long, or the output cannot be written.
        """
        batch = checked_batch(self.header, batch)
        for start in range(0, len(batch), CHUNK_GRIDS):
            self._send(batch[start : start + CHUNK_GRIDS])

    def _send(self, batch: GridBatch, *, last: bool = False) -> None:
        if self._chunks is None:
            raise ValueError("a GridWriter is used inside its with block only")
        self.state.update(batch)
        place = self.state.end_chunk(last=last)
        widths = {name: self.state.widths[name] for name, column in batch.texts.items() if column is not None}
        image = encode_file(self.header, [batch], lambda: place, num_grids=len(batch), widths=widths)
        with explained(self._output):
            self._chunks.write(image.getbuffer())
            self._chunks.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, traceback)
            return
        with explained(self._output), self._stack:
            if self._fresh is not None and self._chunks is not None:
                self._fresh.write(merge_journals(self.header, [self._chunks], self.state)[0])
                self._fresh.flush()
            elif self._chunks is not None and not is_stream(self._output):
                write_file(self._output, self.header, [self._chunks], self.state, force=self._force)
            else:
                self._send(join_batches(self.header, []), last=True)


def check_output(output: Path | str, *, force: bool) -> None:
    """Raise if token grids cannot go there; called early, before any work is done.

    Raises:
        VqtoolError: the output exists and `force` is off, or it is a terminal.
    """
    refuse_terminal(output)
    if not is_stream(output):
        refuse_existing(output, force=force, kind="token grids")


def write_file(
    output: Path | str, header: GridHeader, journals: Sequence[BinaryIO], state: SequenceState | None, *, force: bool
) -> int:
    """Write the grids of journals to one file, under a temporary name until it is whole; says how many they are."""
    with atomic_path(output, force=force) as path:
        image, num_grids = merge_journals(header, journals, state)
        with path.open("wb") as file:
            file.write(image)
            file.flush()
            os.fsync(file.fileno())  # a power cut may come when the journals are removed
    return num_grids


def merge_journals(
    header: GridHeader, journals: Sequence[BinaryIO], state: SequenceState | None
) -> tuple[memoryview, int]:
    """One HDF5 file of the grids of several journals, in memory, and how many they are.

    Args:
        header: of the file.
        journals: with the grids, in order.
        state: what the grids amount to; None finds it out.
    """
    num_grids, widths = (state.num_grids, state.widths) if state else _measure(journals)
    found = SequenceState(header)

    def batches() -> Iterator[GridBatch]:
        for journal in journals:
            for batch, _ in read_journal(journal, "journal", header):
                found.update(batch)
                yield batch

    image = encode_file(header, batches(), lambda: found.end_chunk(last=True), num_grids=num_grids, widths=widths)
    return image.getbuffer(), num_grids


def _measure(journals: Sequence[BinaryIO]) -> tuple[int, dict[str, int]]:
    """How many grids journals have, and the bytes of the longest text of each column."""
    num_grids, widths = 0, dict[str, int]()
    for journal in journals:
        journal.seek(0)
        with closing(read_files(journal, "journal")) as files:
            for chunk in (GridFileReader(file, "journal") for file in files):
                num_grids += chunk.num_grids
                widths |= {name: max(width, widths.get(name, 1)) for name, width in chunk.widths.items()}
    return num_grids, widths


def read_journal(journal: BinaryIO, name: str, header: GridHeader | None = None) -> Iterator[tuple[GridBatch, int]]:
    """The grids of a journal from its beginning, chunk by chunk, and where each ends; all are checked.

    Args:
        journal: the file.
        name: for messages.
        header: of its grids; None reads it.

    Raises:
        FormatError: some chunk is damaged or torn.
    """
    journal.seek(0)
    check: SequenceCheck | None = None
    with closing(read_files(journal, name)) as files:
        for file in files:
            chunk = GridFileReader(file, name, header=header)
            check = check or SequenceCheck(chunk.header, name)
            yield check.read(chunk), journal.tell()
