"""Reading token grids: files, and streams of chunks through a pipe.

A stream is one or more sequences; a sequence is a number of chunks (complete HDF5 files) of which the last says that
it is the last, with the total. An ordinary file is a sequence of one chunk, so that concatenated files are a stream.
docs/formats.md has the whole description.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from vqtool.errors import FormatError, count_text
from vqtool.grids.batch import GridBatch, GridHeader, join_batches, merge_histories
from vqtool.grids.hdf5 import GridFileReader, SequenceCheck
from vqtool.grids.labels import LabelTable
from vqtool.grids.stream import is_one_file, read_files
from vqtool.grids.writer import CHUNK_GRIDS
from vqtool.hdf5 import open_hdf5
from vqtool.inputs import locate, open_input


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
        self._begun = False
        self._first = self._next_chunk()
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
        return self._first.place.digest if self.ordinary and self._first else None

    @property
    def columns(self) -> list[str]:
        """Which of id, label and caption are known; of a stream, as its first chunk tells."""
        return list(self._first.columns) if self._first else []

    def read_column(self, name: str) -> list[str]:
        """A column of text of an ordinary file, without its tokens; "" where unknown."""
        return self._first.read_column(name) if self._first else []

    def number_labels(self, table: LabelTable) -> NDArray[np.int32]:
        """The labels of an ordinary file, (N,) by their numbers in a table; "" where unknown."""
        return self._first.number_labels(table) if self._first else np.empty(0, np.int32)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The records of all sequences met so far, each once."""
        return merge_histories(self.headers)

    def batches(self, batch_size: int = 256, *, most: int | None = None) -> Iterator[GridBatch]:
        """The grids in order. A stream can be read once, an ordinary file again and again.

        Args:
            batch_size: at most so many at once; the chunks of a stream are split, never joined, so nothing waits.
            most: give so many of the first. The chunk that the last of them is in (an ordinary file is one) is read to
                its end all the same, so that its digest is compared; nothing after it is.

        Raises:
            FormatError: damaged, or the stream ends early; raised after all that arrived has been yielded.
            MismatchError: a later sequence comes from another tokenizer, or has another grid size.
        """
        if self._begun and not self.ordinary:
            raise ValueError(f"{self.name}: the grids of a stream can be read only once")
        self._begun = True
        arrived = 0
        check = SequenceCheck(self.header, self.name)
        chunk = self._first
        try:
            while chunk is not None:
                self.header.check_same(chunk.header, "what came before", f"{self.name}: what comes next")
                check.begin(chunk)
                rows = chunk.batch_rows(batch_size)
                for start in range(0, chunk.num_grids, rows):
                    batch = chunk.read(start, start + rows)
                    check.update(batch)
                    if most is None or arrived < most:
                        yield batch if most is None else batch[: most - arrived]
                    arrived += len(batch)
                check.end(chunk)
                if most is not None and arrived >= most:
                    return
                if chunk.place.last:
                    check = SequenceCheck(self.header, self.name)
                chunk = self._next_chunk()
                if chunk is not None and not check.begun:
                    self.headers.append(chunk.header)
        except FormatError as error:
            raise FormatError(f"{error}; {count_text(arrived, 'grid')} arrived before that") from error
        if check.begun:
            raise FormatError(f"{self.name}: the producer stopped early: {count_text(arrived, 'grid')} arrived")

    def _next_chunk(self) -> GridFileReader | None:
        file = next(self._files, None)
        return None if file is None else GridFileReader(file, self.name)


@contextmanager
def open_grids(source: Path | str, *, masked: bool = False) -> Iterator[GridReader]:
    """Open token grids for reading: a file, a file that holds a stream, a pipe, or standard input ("-").

    Args:
        source: what to read.
        masked: take grids with masked cells too.

    Yields:
        A reader whose header is already there.

    Raises:
        FormatError: not token grids, or cut short, or with masked cells where none are taken.
        VqtoolError: cannot be read.
    """
    with open_input(source) as (stream, name), ExitStack() as stack:
        ordinary = is_one_file(stream, name)
        if ordinary:
            file = stack.enter_context(open_hdf5(locate(source), name))
            reader = GridReader(iter([file]), name, ordinary=True)
        else:
            reader = GridReader(stack.enter_context(closing(read_files(stream, name))), name, ordinary=False)
        if reader.header.masked and not masked:
            raise FormatError(f"{name}: masked grids: fill them first with `vqtool complete {source}`")
        yield reader


def read_grids(source: Path | str) -> tuple[GridHeader, GridBatch]:
    """All grids of a file or stream at once, with the header of its first sequence."""
    with open_grids(source) as reader:
        return reader.header, join_batches(reader.header, list(reader.batches(CHUNK_GRIDS)))
