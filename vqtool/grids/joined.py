"""Token grids of several sources as one, and copies of some: what `cat` and `head` do."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from vqtool.artifacts import history_record
from vqtool.errors import VqtoolError
from vqtool.grids.batch import GridBatch, GridHeader, merge_histories
from vqtool.grids.found import find_grids, find_index, list_grids
from vqtool.grids.index import check_index_output, write_index
from vqtool.grids.listing import Listing, tell_empty
from vqtool.grids.reader import GridReader, open_grids
from vqtool.grids.writer import GridWriter, check_output
from vqtool.inputs import locate


class JoinedGrids:
    """The grids of several sources, one after the other; made by `concatenate`.

    Attributes:
        header: of the first source, with the history of all.
        digests: source -> digest, of those that are ordinary files.
    """

    def __init__(self, sources: Sequence[str], streams: dict[str, GridReader], known: Listing | None = None) -> None:
        self._sources = sources
        self._streams = streams
        self.digests: dict[str, str] = {}
        if known is not None:
            self.header, self.digests = known.header, {str(file.path): file.digest for file in known.files}
            return
        headers, empty = [], []
        for source in sources:
            with self._reader(source) as reader:
                headers.append(reader.header)
                headers[0].check_same(reader.header, sources[0], source)
                if reader.digest is not None:
                    self.digests[source] = reader.digest
                if reader.num_grids == 0:
                    empty.append(source)
        if len(empty) < len(sources):
            tell_empty(empty, len(sources))
        self.header = replace(headers[0], history=tuple(merge_histories(headers)))

    def batches(self, batch_size: int = 256) -> Iterator[GridBatch]:
        """The grids in order, at most `batch_size` at once; raises what `GridReader.batches` does."""
        for source in self._sources:
            with self._reader(source) as reader:
                self.header.check_same(reader.header, self._sources[0], source)
                yield from reader.batches(batch_size)

    @contextmanager
    def _reader(self, source: str) -> Iterator[GridReader]:
        if source in self._streams:
            yield self._streams[source]
        else:
            with open_grids(source, masked=True) as reader:
                yield reader


@contextmanager
def concatenate(sources: Sequence[str], known: Listing | None = None) -> Iterator[JoinedGrids]:
    """Open several sources of token grids, all or none masked, as one; headers are compared before all is read.

    Files on disk are open one at a time, pipes all along.

    Args:
        sources: files, or pipes.
        known: of all of them, if they have been looked at.

    Raises:
        MismatchError: they come from different tokenizers, or their grids differ in size.
        VqtoolError: a pipe is named twice, or a source cannot be read.
    """
    pipes = [source for source in sources if source == "-" or not locate(source).is_file()]
    for source in pipes:
        if pipes.count(source) > 1:
            raise VqtoolError(f"{source}: named twice, but a pipe can be read only once")
    with ExitStack() as stack:
        streams = {source: stack.enter_context(open_grids(source, masked=True)) for source in pipes}
        yield JoinedGrids(sources, streams, known)


def cat(sources: Sequence[str | Path], output: str | Path, *, index: bool = False, force: bool = False) -> int:
    """Write the grids of several files and streams as one; says how many they were.

    Args:
        sources: paths, also of folders, or globs, or of indexes; "-" is standard input.
        output: a path, or "-" for standard output.
        index: write a small file that names the files and says what they hold, in place of their grids.
        force: overwrite an existing file.

    Raises:
        MismatchError: the grids come from different tokenizers, or differ in size.
        VqtoolError: a source cannot be read, or the output cannot be written.
    """
    if index:
        return _write_index(sources, output, force=force)
    check_output(output, force=force)
    known = None if find_index(sources) is None else list_grids(sources, masked=True)
    paths = find_grids(sources) if known is None else [file.path for file in known.files]
    with concatenate(list(map(str, paths)), known) as joined:
        header = joined.header.with_step(history_record("cat", inputs=joined.digests))
        return _copy(joined.batches(), output, header, force=force)


def _write_index(sources: Sequence[str | Path], output: str | Path, *, force: bool) -> int:
    check_index_output(output, force=force)
    listing = list_grids(sources, once=True, masked=True)
    if listing is None:
        raise VqtoolError(
            "`index` names ordinary files of token grids, and no pipes or streams: `vqtool cat` stores them"
        )
    empty = [file.path for file in listing.files if not file.num_grids]
    tell_empty(empty, len(listing.files))
    write_index(listing, output, force=force)
    return listing.num_grids


def head(source: str | Path, output: str | Path, *, num: int = 10, force: bool = False) -> int:
    """Write the first grids of a file or stream, `num` at most; says how many they were. Raises what `cat` does.

    Args:
        source: a path, or "-" for standard input.
        output: a path, or "-" for standard output.
        num: at most so many.
        force: overwrite an existing file.
    """
    check_output(output, force=force)
    with open_grids(source, masked=True) as reader:
        inputs = {str(source): reader.digest} if reader.digest else {}
        header = reader.header.with_step(history_record("head", inputs=inputs))
        return _copy(reader.batches(most=num), output, header, force=force)


def _copy(batches: Iterator[GridBatch], output: str | Path, header: GridHeader, *, force: bool) -> int:
    with GridWriter(output, header, force=force) as writer:
        for batch in batches:
            writer.write(batch)
    return writer.num_grids
