"""Tar shards of images (webdataset naming: key.jpg with key.txt, key.cls or key.json beside it).

A shard is indexed once; images are then read from their offsets, from any thread and in any order. A compressed shard,
or one from standard input or a named pipe, has no offsets to read from: it goes into a nameless temporary file, which
lives as long as its items do.
"""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
import tempfile
import threading
import weakref
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from posixpath import normpath
from typing import IO, Any, BinaryIO

from vqtool import trust
from vqtool.errors import FormatError, count_text, warn
from vqtool.images.sources.items import counted, shown_names
from vqtool.images.sources.packed import Texts, repeated
from vqtool.inputs import describe_bytes

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
PAX_ID = "VQTOOL.id"  # a header of a member: the id that its name was made from
STANDARD_INPUT = "-"
_GZIP = b"\x1f\x8b"
_BLOCK = 512  # bytes
MOST_OPEN = 64  # shards at a time; a process may open 1,024 files, often
_COPIED = 1 << 20  # bytes at a time


@dataclass(frozen=True, slots=True)
class Span:
    """Where a member's data lies in the (unpacked) tar, in bytes."""

    offset: int
    size: int


class Spans:
    """Many of them."""

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self._offsets, self._sizes = array("Q"), array("Q")
        for span in spans:
            self.append(span)

    def append(self, span: Span) -> None:
        """Add one."""
        self._offsets.append(span.offset)
        self._sizes.append(span.size)

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, row: int) -> Span:
        return Span(self._offsets[row], self._sizes[row])

    def __iter__(self) -> Iterator[Span]:
        return map(Span, self._offsets, self._sizes)


class TarFile:
    """The file of a shard, which is opened and closed as it is wanted; reading is safe from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._held = [_open_unpacked(path)]  # the open file; none while others are open in its place
        self._named = isinstance(self._held[0], io.BufferedReader)  # it can be opened again
        weakref.finalize(self, _close, self._held)
        if self._named:
            _use(self)

    def __str__(self) -> str:
        return "standard input" if str(self.path) == STANDARD_INPUT else str(self.path)

    def where(self, name: str) -> str:
        """A member, for messages."""
        return f"{self}: {name}"

    def read(self, span: Span) -> bytes:
        """Read one member's data."""
        if self._named:
            _use(self)
        with self._lock:
            self.file.seek(span.offset)
            data = self.file.read(span.size)
        if len(data) < span.size:
            raise FormatError(f"{self}: the shard is cut short ({span.size - len(data)} bytes are missing)")
        return data

    @property
    def file(self) -> IO[bytes]:
        """The open file; nobody else may read it meanwhile."""
        if not self._held:
            self._held.append(self.path.open("rb"))
        return self._held[0]

    def let_go(self) -> None:
        """Close the file until it is read again."""
        with self._lock:
            _close(self._held)


class TarShard:
    """What is in a shard: its headers are read once. Images need its file alone.

    Args:
        path: a tar, compressed or not; "-" is standard input. A pipe is read once, here.
        allow_truncated: take the members that are whole of a shard that ends early.

    Attributes:
        names: paths of the regular files in it, in its order.
        spans: where they lie.
        ids: ids that vqtool wrote, by member.
        left_out: members that are not read, such as links, and why.

    Raises:
        FormatError: not a tar, damaged or cut short.
    """

    def __init__(self, path: Path, *, allow_truncated: bool = False) -> None:
        self.path, self._allow_truncated = path, allow_truncated
        self.file = TarFile(path)
        self.ids: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self.names, self.spans, end = self._read_headers()
        kept = _last_of_each(self.names, self._count_whole(end), str(self))
        if kept is not None:
            self.names = Texts(self.names[row] for row in kept)
            self.spans = Spans(self.spans[row] for row in kept)

    def __str__(self) -> str:
        return str(self.file)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names)}

    def read(self, name: str) -> bytes:
        """The content of a member."""
        return self.file.read(self.spans[self._rows[name]])

    def origins(self, rows: Sequence[int], names: Sequence[str]) -> Callable[[int], TarMember]:
        """Where images lie."""
        file, spans = self.file, Spans(self.spans[row] for row in rows)
        return lambda row: TarMember(file, names[row], spans[row])

    def where(self, name: str) -> str:
        """A member, for messages."""
        return self.file.where(name)

    def _read_headers(self) -> tuple[Texts, Spans, int | None]:
        """All regular files, hard links to them included, and where the headers end; None where that is unknown."""
        names, spans, rows = Texts(), Spans(), dict[str, int]()  # rows: as far as links need them, which are few
        file = self.file.file
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # `tarfile` would keep all of them
                    name, span = _normalise(member.name), None
                    if member.islnk():
                        rows.update((names[row], row) for row in range(len(rows), len(names)))
                        target = rows.get(_normalise(member.linkname))
                        span = None if target is None else spans[target]
                    elif member.isreg() and not member.issparse():
                        span = Span(member.offset_data, member.size)
                        if member.pax_headers.get(PAX_ID):
                            self.ids[name] = member.pax_headers[PAX_ID]
                    if span is not None:
                        names.append(name)
                        spans.append(span)
                    elif not member.isdir():
                        self.left_out[name] = _describe_member(member)
                return names, spans, tar.offset
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            if self._allow_truncated and len(spans):
                return names, spans, None
            file.seek(0)
            start = file.read(_BLOCK)
            found = "" if start[257:262] == b"ustar" or not start else f"; it begins as {describe_bytes(start)}"
            if len(spans):
                found = f" after {counted(len(spans), 'file')}; `allow_truncated` takes what is there"
            raise FormatError(f"{self}: not a whole tar archive ({error}){found}") from error

    def _count_whole(self, end: int | None) -> int:
        """How many members are whole, which are the first.

        `tarfile` takes a damaged header, and the end of the file, for the end of the archive. The real one is marked
        by blocks of zeros.
        """
        size = self.file.file.seek(0, io.SEEK_END)
        fit = (span.offset + span.size <= size for span in self.spans)
        num, all_fit = next(((row, False) for row, fits in enumerate(fit) if not fits), (len(self.spans), True))
        if end is not None:
            self.file.file.seek(end)
            block = self.file.file.read(_BLOCK)
            if all_fit and len(block) == _BLOCK and not any(block):
                return num
        damaged = end is not None and all_fit and any(block)
        unmarked = all_fit and not damaged
        what = "has no end marker: it was cut short" if unmarked else "is damaged or cut short"
        message = f"{self}: the tar archive {what} after {count_text(num, 'file')}"
        if not self._allow_truncated:
            raise FormatError(f"{message}; `allow_truncated` takes what is there")
        warn(f"{message}; these are taken")
        return num


@dataclass(frozen=True, slots=True)
class TarMember:
    """An image in a shard."""

    file: TarFile
    name: str
    span: Span

    @property
    def num_bytes(self) -> int:
        """Of the member."""
        return self.span.size

    def open(self) -> BinaryIO:
        """Read the member."""
        return io.BytesIO(self.file.read(self.span))

    def __str__(self) -> str:
        return self.file.where(self.name)


_used: OrderedDict[int, weakref.ref[TarFile]] = OrderedDict()  # shards whose files are open, by identity
_using = threading.Lock()


def _use(shard: TarFile) -> None:
    """Let the file of a shard be open, and close that of the one that was used least lately if there are many."""
    with _using:
        _used[id(shard)] = weakref.ref(shard)
        _used.move_to_end(id(shard))
        while len(_used) > MOST_OPEN:
            oldest = _used.popitem(last=False)[1]()
            if oldest is not None:
                oldest.let_go()


def _close(held: list[IO[bytes]]) -> None:
    while held:
        held.pop().close()


def _last_of_each(names: Texts, num: int, place: str) -> list[int] | None:
    """The rows of the first `num` names without those of members that another one of the same name follows.

    None where these are all of the names.
    """
    twice = repeated(lambda: islice(names, num), num)
    if not twice:
        return None if num == len(names) else list(range(num))
    last = {name: row for row, name in enumerate(islice(names, num)) if name in twice}
    before = [row for row, name in enumerate(islice(names, num)) if last.get(name, row) != row]
    tell_repeated(place, [names[row] for row in before])
    return sorted(set(range(num)).difference(before))


def tell_repeated(place: str, names: Sequence[str]) -> None:
    """Tell of members of an archive that another one of the same name stands before."""
    if names:
        listed = shown_names(names, len(names))
        warn(f"{place}: {counted(len(names), 'name')} given to several members, of which the last counts: {listed}")


def _describe_member(member: tarfile.TarInfo) -> str:
    """Why a member that is no folder is not read."""
    if member.issym():
        return f"a symbolic link to {member.linkname}, and links in archives are not followed"
    if member.islnk():
        return f"a hard link to {member.linkname}, which the archive does not have before it"
    return "a sparse file" if member.issparse() else "no regular file"


def _normalise(name: str) -> str:
    return normpath(name).lstrip("/")


def _open_unpacked(path: Path) -> IO[bytes]:
    if str(path) != STANDARD_INPUT and not path.is_fifo():
        file = path.open("rb")
        magic = file.read(len(_GZIP))
        file.seek(0)
        named = path.name.lower().endswith((".gz", ".tgz"))
        if magic != _GZIP and not named:
            return file
        if not named:
            warn(f"{path}: is compressed by gzip, whatever its name says")
        with file:
            return _unpack(file, path, path.stat().st_size)
    spool = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the shard
    with nullcontext(sys.stdin.buffer) if str(path) == STANDARD_INPUT else path.open("rb") as pipe:
        _copy(pipe, spool, None, path)
    magic = spool.read(len(_GZIP))
    spool.seek(0)
    if magic != _GZIP:
        return spool
    with spool:
        size = spool.seek(0, io.SEEK_END)
        spool.seek(0)
        return _unpack(spool, path, size)


def _unpack(packed: IO[bytes], path: Path, size: int) -> IO[bytes]:
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the shard
    try:
        with gzip.open(packed) as stream:
            _copy(stream, unpacked, trust.ALLOWANCE + trust.RATIO * size, path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        unpacked.close()
        raise FormatError(f"{path}: the compressed tar is damaged or cut short ({error})") from error
    except BaseException:
        unpacked.close()
        raise
    return unpacked


def _copy(source: Any, target: IO[bytes], most: int | None, path: Path) -> None:
    """Copy a stream, at most so many bytes of it, and go to the beginning."""
    done = 0
    while block := source.read(_COPIED):
        done += len(block)
        if most is not None and done > most:
            raise FormatError(f"{path}: unpacks to more than {most:,} bytes, too many for its size: unpack it first")
        target.write(block)
    target.seek(0)
