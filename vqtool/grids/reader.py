"""Token grids in HDF5: files, and streams of HDF5 members through a pipe.

A stream is one or more sequences; a sequence is a number of members (complete HDF5 files) of which the last says that
it is the last, with the total. An ordinary file is a sequence of one member, so that concatenated files are a stream.
docs/formats.md has the whole description.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py

from vqtool.errors import FormatError, VqtoolError
from vqtool.grids.batch import GridBatch, GridHeader, join_batches, merge_histories
from vqtool.grids.hdf5 import GridFileReader, SequenceCheck
from vqtool.grids.stream import is_one_file, open_hdf5, open_input, read_members
from vqtool.grids.writer import MEMBER_GRIDS


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

    @property
    def columns(self) -> list[str]:
        """Which of id, label and caption are known; of a stream, as its first member tells."""
        return list(self._first.columns) if self._first else []

    @property
    def history(self) -> list[dict[str, Any]]:
        """The records of all sequences met so far, each once."""
        return merge_histories(self.headers)

    def batches(self, batch_size: int = 256) -> Iterator[GridBatch]:
        """The grids in order. A stream can be read once, an ordinary file again and again.

        Args:
            batch_size: at most so many at once; the members of a stream are split, never joined, so nothing waits.

        Raises:
            FormatError: damaged, or the stream ends early; raised after all that arrived has been yielded.
            MismatchError: a later sequence comes from another tokenizer, or has another grid size.
        """
        if self._begun and not self.ordinary:
            raise ValueError(f"{self.name}: the grids of a stream can be read only once")
        self._begun = True
        arrived = 0
        sequence = SequenceCheck(self.header, self.name)
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
                    sequence = SequenceCheck(self.header, self.name)
                member = self._next_member()
                if member is not None and sequence.member == 0:
                    self.headers.append(member.header)
        except FormatError as error:
            raise FormatError(f"{error}; {arrived} grids arrived before that") from error
        if sequence.member:
            raise FormatError(f"{self.name}: the producer stopped early: {arrived} grids arrived")

    def first(self, num: int) -> Iterator[GridBatch]:
        """The first grids in order, as many as there are but `num` at most; nothing more is read."""
        if num == 0:
            return
        for batch in self.batches():
            yield batch[:num]
            num -= len(batch)
            if num <= 0:
                return

    def _next_member(self) -> GridFileReader | None:
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
            file = stack.enter_context(open_hdf5(Path(source), name))
            reader = GridReader(iter([file]), name, ordinary=True)
        else:
            reader = GridReader(stack.enter_context(closing(read_members(stream, name))), name, ordinary=False)
        if reader.header.masked and not masked:
            raise FormatError(f"{name}: masked grids: fill them first with `vqtool complete {source}`")
        yield reader


def read_grids(source: Path | str) -> tuple[GridHeader, GridBatch]:
    """All grids of a file or stream at once, with the header of its first sequence."""
    with open_grids(source) as reader:
        return reader.header, join_batches(reader.header, list(reader.batches(MEMBER_GRIDS)))


class JoinedGrids:
    """The grids of several sources, one after the other; made by `concatenate`.

    Attributes:
        header: of the first source, with the history of all.
        digests: source -> digest, of those that are ordinary files.
    """

    def __init__(self, sources: Sequence[str], streams: dict[str, GridReader]) -> None:
        self._sources = sources
        self._streams = streams
        self.digests: dict[str, str] = {}
        headers = []
        for source in sources:
            with self._reader(source) as reader:
                headers.append(reader.header)
                headers[0].check_same(reader.header, sources[0], source)
                if reader.digest is not None:
                    self.digests[source] = reader.digest
        self.header = replace(headers[0], history=tuple(merge_histories(headers)))

    def batches(self, batch_size: int = 256) -> Iterator[GridBatch]:
        """The grids in order, at most `batch_size` at once; raises what `GridReader.batches` does."""
        for source in self._sources:
            with self._reader(source) as reader:
                yield from reader.batches(batch_size)

    @contextmanager
    def _reader(self, source: str) -> Iterator[GridReader]:
        if source in self._streams:
            yield self._streams[source]
        else:
            with open_grids(source, masked=True) as reader:
                yield reader


@contextmanager
def concatenate(sources: Sequence[str]) -> Iterator[JoinedGrids]:
    """Open several sources of token grids, all or none masked, as one; headers are compared before all is read.

    Files on disk are open one at a time, pipes all along.

    Raises:
        MismatchError: they come from different tokenizers, or their grids differ in size.
        VqtoolError: a pipe is named twice, or a source cannot be read.
    """
    pipes = [source for source in sources if source == "-" or not Path(source).is_file()]
    for source in pipes:
        if pipes.count(source) > 1:
            raise VqtoolError(f"{source}: named twice, but a pipe can be read only once")
    with ExitStack() as stack:
        streams = {source: stack.enter_context(open_grids(source, masked=True)) for source in pipes}
        yield JoinedGrids(sources, streams)
