"""Tar shards of images (webdataset naming: key.jpg with key.txt, key.cls or key.json beside it).

A shard is indexed once; images are then read from their offsets, from any thread and in any order. A compressed shard
has no offsets to read from, so it is unpacked into a nameless temporary file, which lives as long as its items do.
"""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import tempfile
import threading
import weakref
import zlib
from dataclasses import dataclass
from pathlib import Path
from posixpath import normpath, splitext
from typing import IO, BinaryIO

from vqtool.errors import FormatError, VqtoolError
from vqtool.images.sources.items import LOOKED_FOR, Entry, class_folders, has_image_suffix, is_hidden, natural_key
from vqtool.images.sources.metadata import Words, clean, decode_text, read_sidecar

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
_BLOCK = 512  # bytes
_SIDECARS = (".txt", ".cls", ".json")


@dataclass(frozen=True)
class Span:
    """Where a member's data lies in the (unpacked) tar, in bytes."""

    offset: int
    size: int


class TarShard:
    """One open shard; reading is safe from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file = _open_unpacked(path)
        weakref.finalize(self, self._file.close)

    def read(self, span: Span) -> bytes:
        """Read one member's data."""
        with self._lock:
            self._file.seek(span.offset)
            data = self._file.read(span.size)
        if len(data) < span.size:
            raise FormatError(f"{self.path}: the shard is cut short ({span.size - len(data)} bytes are missing)")
        return data

    def index(self) -> dict[str, Span]:
        """Spans of the regular files in it by member name, in the shard's order; reads headers only.

        Raises:
            FormatError: not a tar, damaged or cut short.
        """
        spans: dict[str, Span] = {}
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                for member in tar:
                    name = _normalise(member.name)
                    if member.islnk() and _normalise(member.linkname) in spans:
                        spans[name] = spans[_normalise(member.linkname)]
                    elif member.isreg() and not member.issparse():
                        spans[name] = Span(member.offset_data, member.size)
                end = tar.offset
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            raise FormatError(f"{self.path}: not a whole tar archive ({error})") from error
        self._check_end(end, spans)
        return spans

    def _check_end(self, end: int, spans: dict[str, Span]) -> None:
        """`tarfile` takes a damaged header for the end of the archive; after the real one only zeros may follow."""
        self._file.seek(end)
        damaged = any(self._file.read(_BLOCK))
        size = self._file.seek(0, io.SEEK_END)
        if damaged or any(span.offset + span.size > size for span in spans.values()):
            raise FormatError(f"{self.path}: the tar archive is damaged or cut short after {len(spans)} files")


@dataclass(frozen=True)
class TarMember:
    """An image in a shard."""

    shard: TarShard
    name: str
    span: Span

    def open(self) -> BinaryIO:
        """Read the member."""
        return io.BytesIO(self.shard.read(self.span))

    def __str__(self) -> str:
        return f"{self.shard.path}: {self.name}"


def find_in_tar(path: Path) -> list[Entry]:
    """All images of a tar shard, in natural order, with the words that stand beside them.

    Raises:
        FormatError: a damaged shard, or a malformed sidecar in it.
        VqtoolError: no images in it.
    """
    shard = TarShard(path)
    spans = shard.index()
    names = sorted((name for name in spans if has_image_suffix(name) and not is_hidden(name)), key=natural_key)
    if not names:
        raise VqtoolError(f"{path}: no images in this tar; looked for {LOOKED_FOR}")
    words = [_find_words(shard, spans, name) for name in names]
    labels: list[str | None] = [found.label for found in words]
    if not any(labels):
        labels = class_folders(names)
    return [
        Entry((splitext(name)[0], name), TarMember(shard, name, spans[name]), label, found.caption)
        for name, label, found in zip(names, labels, words, strict=True)
    ]


def _find_words(shard: TarShard, spans: dict[str, Span], name: str) -> Words:
    """Words beside `a/b.c.jpg`: those of `a/b.c`, then those of `a/b`, which is webdataset's key."""
    folder, _, base = name.rpartition("/")
    key = f"{folder}/{base.split('.', 1)[0]}".lstrip("/")
    label = caption = None
    for stem in dict.fromkeys((splitext(name)[0], key)):
        texts = {ending: _read_text(shard, spans, stem + ending) for ending in _SIDECARS if stem + ending in spans}
        both = read_sidecar(texts[".json"], f"{shard.path}: {stem}.json") if ".json" in texts else Words()
        label = label or clean(texts.get(".cls")) or both.label
        caption = caption or clean(texts.get(".txt")) or both.caption
    return Words(label, caption)


def _normalise(name: str) -> str:
    return normpath(name).lstrip("/")


def _read_text(shard: TarShard, spans: dict[str, Span], name: str) -> str:
    return decode_text(shard.read(spans[name]), f"{shard.path}: {name}")


def _open_unpacked(path: Path) -> IO[bytes]:
    if not path.name.lower().endswith((".gz", ".tgz")):
        return path.open("rb")
    unpacked = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the shard
    try:
        with gzip.open(path) as packed:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        unpacked.seek(0)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        unpacked.close()
        raise FormatError(f"{path}: the compressed tar is damaged or cut short ({error})") from error
    except BaseException:
        unpacked.close()
        raise
    return unpacked
