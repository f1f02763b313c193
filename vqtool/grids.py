"""Token grids in HDF5: files, and streams of HDF5 members through a pipe.

A stream is one or more sequences; a sequence is a number of members (complete HDF5 files) of which the last says that
it is the last, with the total. An ordinary file is a sequence of one member, so that concatenated files are a stream.
docs/formats.md has the whole description.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import h5py

from vqtool._grid_batches import GridBatch, GridDigest, GridHeader, clean_text, join_batches
from vqtool._grid_files import GridFileReader, GrowingFile, create_grid_file, member_image
from vqtool.artifacts import atomic_path, refuse_existing
from vqtool.errors import FormatError, VqtoolError
from vqtool.streams import (
    BLOCK_BYTES,
    STANDARD_OUTPUT,
    is_one_file,
    is_stream,
    open_hdf5,
    open_input,
    open_output,
    read_members,
    refuse_terminal,
    takes_one_file,
)

MEMBER_GRIDS = 1024  # a larger batch leaves as several members
__all__ = [
    "GridBatch",
    "GridHeader",
    "GridReader",
    "GridWriter",
    "check_output",
    "join_batches",
    "open_grids",
    "read_grids",
]


class GridWriter:
    """Writes token grids to a file, or to standard output as a file or a stream.

    A path gets one HDF5 file, written under a temporary name and renamed when the block ends well. Standard output gets
    the same if it is a fresh regular file, and otherwise (a pipe, a device, appending) one member a batch, sent at
    once, and a last one that carries the total. A failed block leaves no file, and no last member.

    Args:
        output: a path, or "-" for standard output.
        header: what the grids have in common.
        force: overwrite an existing file.

    Raises:
        VqtoolError: the output exists and `force` is off, cannot be written, or is a terminal.
    """

    def __init__(self, output: Path | str, header: GridHeader, *, force: bool = False) -> None:
        self.header = header
        self.num_grids = 0
        self._output = output
        self._force = force
        self._digest = GridDigest(header)
        self._members = 0
        self._stack = ExitStack()
        self._pipe: BinaryIO | None = None
        self._file: GrowingFile | None = None
        check_output(output, force=force)

    def __enter__(self) -> "GridWriter":
        with _explained(self._output), ExitStack() as stack:
            if is_stream(self._output):
                pipe = stack.enter_context(open_output(self._output))
                if takes_one_file(pipe):
                    self._file = stack.enter_context(_spooled_file(pipe, self.header))
                else:
                    self._pipe = pipe
            else:
                path = stack.enter_context(atomic_path(self._output, force=self._force))
                self._file = stack.enter_context(create_grid_file(path, self.header))
            self._stack = stack.pop_all()
        return self

    def write(self, batch: GridBatch) -> None:
        """Write the next grids.

        Args:
            batch: B >= 0 grids; tokens of any integer type.

        Raises:
            ValueError: shapes, lengths or tokens do not fit the header.
        """
        batch = self._checked(batch)
        for start in range(0, len(batch), MEMBER_GRIDS):
            part = batch[start : start + MEMBER_GRIDS]
            self._digest.update(part)
            self.num_grids += len(part)
            with _explained(self._output):
                if self._file is not None:
                    self._file.append(part)
                else:
                    self._send(part, last=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stack.__exit__(kind, error, traceback)
            return
        with _explained(self._output), self._stack:
            if self._file is not None:
                self._file.finish(**self._place(last=True))
            else:
                self._send(join_batches(self.header, []), last=True)

    def _checked(self, batch: GridBatch) -> GridBatch:
        size, tokens = self.header.codebook_size, batch.tokens
        if tokens.shape[1:] != self.header.grid_size or tokens.dtype.kind not in "iu":
            raise ValueError(f"tokens are {tokens.dtype} {tokens.shape}, not integers (B, {self.header.grid_size})")
        for name, column in batch.texts.items():
            if column is not None and len(column) != len(tokens):
                raise ValueError(f"{len(tokens)} grids, but {len(column)} {name}s")
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < size):
            raise ValueError(f"tokens from {tokens.min()} to {tokens.max()} are not in [0, {size})")
        texts = [None if column is None else [clean_text(text) for text in column] for column in batch.texts.values()]
        return GridBatch(tokens.astype(self.header.dtype, copy=False), texts[0] or [], texts[1], texts[2])

    def _place(self, *, last: bool) -> dict[str, Any]:
        return {"member": self._members, "last": last, "total": self.num_grids, "digest": self._digest.value()}

    def _send(self, batch: GridBatch, *, last: bool) -> None:
        if self._pipe is None:
            raise ValueError("a GridWriter is used inside its with block only")
        self._pipe.write(member_image(self.header, batch, **self._place(last=last)))
        self._pipe.flush()
        self._members += 1


def check_output(output: Path | str, *, force: bool) -> None:
    """Raise if token grids cannot go there; called early, before any work is done.

    Raises:
        VqtoolError: the output exists and `force` is off, or it is a terminal.
    """
    refuse_terminal(output)
    if not is_stream(output):
        refuse_existing(output, force=force)


@contextmanager
def _explained(output: Path | str) -> Iterator[None]:
    """Say which output could not be written; a closed pipe is nobody's fault and passes."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        name = "standard output" if str(output) in STANDARD_OUTPUT else output
        raise VqtoolError(f"{name}: cannot be written: {error.strerror or error}") from error


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


class _Sequence:
    """Where a reader stands in a sequence: what the next member has to say about itself."""

    def __init__(self, header: GridHeader, name: str) -> None:
        self._name = name
        self._digest = GridDigest(header)
        self.member = 0
        self.num_grids = 0

    def begin(self, member: GridFileReader) -> None:
        """Check that this member comes next."""
        if member.member != self.member:
            raise FormatError(
                f"{self._name}: member {member.member} of a stream came where member {self.member} was expected: "
                "the producer stopped early, or a part was lost"
            )

    def update(self, batch: GridBatch) -> None:
        """Take in the next grids."""
        self.num_grids += len(batch)
        self._digest.update(batch)

    def end(self, member: GridFileReader) -> None:
        """Check that what came so far is what was written."""
        self.member += 1
        if member.total != self.num_grids:
            raise FormatError(f"{self._name}: damaged: it says {member.total} grids, but {self.num_grids} are there")
        if member.digest != self._digest.value():
            raise FormatError(f"{self._name}: damaged: its content does not match its digest")


class GridReader:
    """Reads token grids from a file, a file that holds a stream, or a pipe; made by `open_grids`.

    Attributes:
        header: of the first sequence; all others have to fit it.
        headers: of every sequence met so far; they differ in history, location and preprocessing at most.
    """

    def __init__(self, files: Iterator[h5py.File], name: str, *, ordinary: bool) -> None:
        self.name = name
        self.ordinary = ordinary  # one whole HDF5 file on disk
        self._files = files
        self._first = self._next_member()
        if self._first is None:
            raise FormatError(f"{name}: empty: token grids were expected, but not a single byte came")
        self.header = self._first.header
        self.headers = [self.header]

    @property
    def num_grids(self) -> int | None:
        """How many grids there are; None for a stream, whose end is not known before it is read."""
        return self._first.num_grids if self.ordinary and self._first else None

    @property
    def digest(self) -> str | None:
        """What the header of an ordinary file says about its content; None for a stream."""
        return self._first.digest if self.ordinary and self._first else None

    def batches(self, batch_size: int = 256) -> Iterator[GridBatch]:
        """The grids in order; to be called once.

        Args:
            batch_size: at most so many at once; the members of a stream are split, never joined, so nothing waits.

        Raises:
            FormatError: damaged, or the stream ends early; raised after all that arrived has been yielded.
            MismatchError: a later sequence comes from another tokenizer, or has another grid size.
        """
        arrived = 0
        sequence = _Sequence(self.header, self.name)
        member = self._first
        try:
            while member is not None:
                self.header.check_same(member.header, "what came before", f"{self.name}: what comes next")
                sequence.begin(member)
                for start in range(0, member.num_grids, batch_size):
                    batch = member.read(start, start + batch_size)
                    sequence.update(batch)
                    yield batch
                    arrived += len(batch)
                sequence.end(member)
                if member.last:
                    sequence = _Sequence(self.header, self.name)
                member = self._next_member()
                if member is not None and sequence.member == 0:
                    self.headers.append(member.header)
        except FormatError as error:
            raise FormatError(f"{error}; {arrived} grids arrived before that") from error
        if sequence.member:
            raise FormatError(f"{self.name}: the producer stopped early: {arrived} grids arrived")

    def _next_member(self) -> GridFileReader | None:
        file = next(self._files, None)
        return None if file is None else GridFileReader(file, self.name)


@contextmanager
def open_grids(source: Path | str) -> Iterator[GridReader]:
    """Open token grids for reading: a file, a file that holds a stream, a pipe, or standard input ("-").

    Yields:
        A reader whose header is already there.

    Raises:
        FormatError: not token grids, or cut short.
        VqtoolError: cannot be read.
    """
    with open_input(source) as (stream, name), ExitStack() as stack:
        ordinary = is_one_file(stream, name)
        if ordinary:
            file = stack.enter_context(open_hdf5(Path(source), name))
            yield GridReader(iter([file]), name, ordinary=True)
        else:
            yield GridReader(stack.enter_context(closing(read_members(stream, name))), name, ordinary=False)


def read_grids(source: Path | str) -> tuple[GridHeader, GridBatch]:
    """All grids of a file or stream at once, with the header of its first sequence."""
    with open_grids(source) as reader:
        return reader.header, join_batches(reader.header, list(reader.batches(MEMBER_GRIDS)))
