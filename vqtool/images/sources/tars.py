"""Tar shards of images (webdataset naming: key.jpg with key.txt, key.cls or key.json beside it).

A shard is indexed once; images are then read from their offsets, from any thread and in any order. A compressed shard,
or one from standard input, has no offsets to read from: it goes into a nameless temporary file, which lives as long as
its items do.
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
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from posixpath import normpath
from typing import IO, Any, BinaryIO

from vqtool import trust
from vqtool.errors import FormatError, warn
from vqtool.images.sources.items import counted, shown_names
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


class TarShard:
    """One open shard; reading is safe from several threads.

    Args:
        path: a tar, compressed or not; "-" is standard input.
        allow_truncated: take the members that are whole of a shard that ends early.
    """

    def __init__(self, path: Path, *, allow_truncated: bool = False) -> None:
        self.path, self._allow_truncated = path, allow_truncated
        self.ids: dict[str, str] = {}  # ids that vqtool wrote, by member; after `spans`
        self._left_out: dict[str, str] = {}
        self._lock = threading.Lock()
        self._held = [_open_unpacked(path)]  # the open file; none while others are open in its place
        self._named = isinstance(self._held[0], io.BufferedReader)  # it can be opened again
        weakref.finalize(self, _close, self._held)
        if self._named:
            _use(self)

    def __str__(self) -> str:
        return "standard input" if str(self.path) == STANDARD_INPUT else str(self.path)

    def read_span(self, span: Span) -> bytes:
        """Read one member's data."""
        if self._named:
            _use(self)
        with self._lock:
            self._file.seek(span.offset)
            data = self._file.read(span.size)
        if len(data) < span.size:
            raise FormatError(f"{self}: the shard is cut short ({span.size - len(data)} bytes are missing)")
        return data

    @property
    def _file(self) -> IO[bytes]:
        if not self._held:
            self._held.append(self.path.open("rb"))
        return self._held[0]

    def let_go(self) -> None:
        """Close the file until it is read again."""
        with self._lock:
            _close(self._held)

    @cached_property
    def spans(self) -> dict[str, Span]:
        """Where the regular files in it lie, by member name, in the shard's order; reads headers only.

        Raises:
            FormatError: not a tar, damaged or cut short.
        """
        spans: dict[str, Span] = {}
        repeated: list[str] = []
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                for member in tar:
                    name = _normalise(member.name)
                    if name in spans and not member.isdir():
                        repeated.append(name)
                    if member.islnk() and _normalise(member.linkname) in spans:
                        spans[name] = spans[_normalise(member.linkname)]
                    elif member.isreg() and not member.issparse():
                        spans[name] = Span(member.offset_data, member.size)
                        if member.pax_headers.get(PAX_ID):
                            self.ids[name] = member.pax_headers[PAX_ID]
                    elif not member.isdir():
                        self._left_out[name] = _describe_member(member)
                end = tar.offset
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            if not (self._allow_truncated and spans):
                self._file.seek(0)
                start = self._file.read(_BLOCK)
                found = "" if start[257:262] == b"ustar" or not start else f"; it begins as {describe_bytes(start)}"
                if spans:
                    found = f" after {counted(len(spans), 'file')}; `allow_truncated` takes what is there"
                raise FormatError(f"{self}: not a whole tar archive ({error}){found}") from error
            end = None
        tell_repeated(str(self), repeated)
        return self._check_end(end, spans)

    @property
    def left_out(self) -> dict[str, str]:
        """Members that are not read, such as links, and why."""
        return self._left_out if self.spans else {}

    @property
    def names(self) -> list[str]:
        """The members' paths."""
        return list(self.spans)

    def read(self, name: str) -> bytes:
        """The content of a member."""
        return self.read_span(self.spans[name])

    def origin(self, name: str) -> TarMember:
        """Where an image lies."""
        return TarMember(self, name, self.spans[name])

    def where(self, name: str) -> str:
        """A member, for messages."""
        return f"{self}: {name}"

    def _check_end(self, end: int | None, spans: dict[str, Span]) -> dict[str, Span]:
        """The members that are whole.

        `tarfile` takes a damaged header, and the end of the file, for the end of the archive. The real one is marked
        by blocks of zeros.
        """
        size = self._file.seek(0, io.SEEK_END)
        whole = {name: span for name, span in spans.items() if span.offset + span.size <= size}
        if end is not None:
            self._file.seek(end)
            block = self._file.read(_BLOCK)
            if len(whole) == len(spans) and len(block) == _BLOCK and not any(block):
                return spans
        damaged = end is not None and len(whole) == len(spans) and any(block)
        unmarked = len(whole) == len(spans) and not damaged
        what = "has no end marker: it was cut short" if unmarked else "is damaged or cut short"
        message = f"{self}: the tar archive {what} after {len(whole)} files"
        if not self._allow_truncated:
            raise FormatError(f"{message}; `allow_truncated` takes what is there")
        warn(f"{message}; these are taken")
        return whole


@dataclass(frozen=True, slots=True)
class TarMember:
    """An image in a shard."""

    shard: TarShard
    name: str
    span: Span

    @property
    def num_bytes(self) -> int:
        """Of the member."""
        return self.span.size

    def open(self) -> BinaryIO:
        """Read the member."""
        return io.BytesIO(self.shard.read_span(self.span))

    def __str__(self) -> str:
        return self.shard.where(self.name)


_used: OrderedDict[int, weakref.ref[TarShard]] = OrderedDict()  # shards whose files are open, by identity
_using = threading.Lock()


def _use(shard: TarShard) -> None:
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
    if str(path) != STANDARD_INPUT:
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
    _copy(sys.stdin.buffer, spool, None, path)
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
