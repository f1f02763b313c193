"""Writing token grids: to a file, or to standard output as a file or a stream."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from vqtool.artifacts import atomic_path, refuse_existing
from vqtool.grids.batch import GridBatch, GridHeader, SequenceState, checked_batch
from vqtool.grids.hdf5 import ChunkFile, GrowingFile, create_grid_file
from vqtool.grids.stream import BLOCK_BYTES, takes_one_file
from vqtool.outputs import explained, is_stream, open_output, output_name, refuse_terminal

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
        self._state = SequenceState(header)
        self._stack = ExitStack()
        self._target: ChunkFile | GrowingFile | None = None
        check_output(output, force=force)

    @property
    def num_grids(self) -> int:
        """How many have been written."""
        return self._state.num_grids

    def __enter__(self) -> "GridWriter":
        with explained(self._output), ExitStack() as stack:
            self._target = self._open(stack)
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
        if self._target is None:
            raise ValueError("a GridWriter is used inside its with block only")
        batch = checked_batch(self.header, batch)
        for start in range(0, len(batch), CHUNK_GRIDS):
            part = batch[start : start + CHUNK_GRIDS]
            self._state.update(part)
            with explained(self._output):
                self._target.append(part, self._state.end_chunk(last=False))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        target, self._target = self._target, None
        if kind is not None or target is None:
            self._stack.__exit__(kind, error, traceback)
            return
        with explained(self._output), self._stack:
            target.finish(self._state.end_chunk(last=True))

    def _open(self, stack: ExitStack) -> ChunkFile | GrowingFile:
        if not is_stream(self._output):
            path = stack.enter_context(atomic_path(self._output, force=self._force))
            return stack.enter_context(create_grid_file(path, self.header))
        output = stack.enter_context(open_output(self._output))
        if takes_one_file(output):
            return stack.enter_context(_spooled_file(output, self.header))
        return ChunkFile(output, self.header)


def check_output(output: Path | str, *, force: bool) -> None:
    """Raise if token grids cannot go there; called early, before any work is done.

    Raises:
        VqtoolError: the output exists and `force` is off, or it is a terminal.
    """
    refuse_terminal(output)
    if not is_stream(output):
        refuse_existing(output, force=force)


@contextmanager
def _spooled_file(output: BinaryIO, header: GridHeader) -> Iterator[GrowingFile]:
    """A file that is built in a temporary folder and copied to an open output when the block ends well."""
    with tempfile.TemporaryDirectory(prefix="vqtool-") as folder:
        path = Path(folder) / "grids.h5"
        with create_grid_file(path, header) as file:
            yield file
        with path.open("rb") as built:
            shutil.copyfileobj(built, output, BLOCK_BYTES)
        output.flush()
