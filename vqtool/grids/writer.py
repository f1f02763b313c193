"""Writing token grids: to a file, or to standard output as a file or a stream."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from vqtool.artifacts import atomic_path, refuse_existing
from vqtool.errors import VqtoolError
from vqtool.grids.batch import GridBatch, GridDigest, GridHeader, clean_text, join_batches
from vqtool.grids.hdf5 import GrowingFile, create_grid_file, member_image
from vqtool.grids.stream import (
    BLOCK_BYTES,
    explained,
    is_stream,
    open_output,
    output_name,
    refuse_terminal,
    takes_one_file,
)

MEMBER_GRIDS = 1024  # a larger batch leaves as several members
MAX_TEXT_BYTES = 1 << 16  # of one id, label or caption


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
        self.name = output_name(output)
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
        with explained(self._output), ExitStack() as stack:
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
        batch = checked_batch(self.header, batch)
        for start in range(0, len(batch), MEMBER_GRIDS):
            part = batch[start : start + MEMBER_GRIDS]
            self._digest.update(part)
            self.num_grids += len(part)
            with explained(self._output):
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
        with explained(self._output), self._stack:
            if self._file is not None:
                self._file.finish(**self._place(last=True))
            else:
                self._send(join_batches(self.header, []), last=True)

    def _place(self, *, last: bool) -> dict[str, Any]:
        return {"member": self._members, "last": last, "total": self.num_grids, "digest": self._digest.value()}

    def _send(self, batch: GridBatch, *, last: bool) -> None:
        if self._pipe is None:
            raise ValueError("a GridWriter is used inside its with block only")
        self._pipe.write(member_image(self.header, batch, **self._place(last=last)))
        self._pipe.flush()
        self._members += 1


def checked_batch(header: GridHeader, batch: GridBatch) -> GridBatch:
    """A batch as it is written: tokens of the header's type, texts that HDF5 can hold.

    Raises:
        ValueError: shapes, lengths or tokens do not fit the header.
        VqtoolError: a text is too long.
    """
    size, tokens = header.num_states, batch.tokens
    if tokens.shape[1:] != header.grid_size or tokens.dtype.kind not in "iu":
        raise ValueError(f"tokens are {tokens.dtype} {tokens.shape}, not integers (B, {header.grid_size})")
    for name, column in batch.texts.items():
        if column is not None and len(column) != len(tokens):
            raise ValueError(f"{len(tokens)} grids, but {len(column)} {name}s")
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < size):
        raise ValueError(f"tokens from {tokens.min()} to {tokens.max()} are not in [0, {size})")
    texts = [
        None if column is None else [_checked_text(text, name) for text in column]
        for name, column in batch.texts.items()
    ]
    return GridBatch(tokens.astype(header.dtype, copy=False), texts[0] or [], texts[1], texts[2])


def _checked_text(text: str, name: str) -> str:
    text = clean_text(text)
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise VqtoolError(f"the {name} {text[:40]!r}... is longer than {MAX_TEXT_BYTES} bytes: shorten it")
    return text


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
