"""Zip archives of images: the members as files, with the words that stand beside them."""

from __future__ import annotations

import io
import stat
import threading
import weakref
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from posixpath import normpath
from typing import BinaryIO

from vqtool.errors import FormatError
from vqtool.images.sources.tars import tell_repeated
from vqtool.trust import check_size

ZIP_ENDINGS = (".zip",)


class ZipArchive:
    """One open zip; reading is safe from several threads.

    Raises:
        FormatError: not a zip, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise FormatError(f"{path}: not a whole zip archive ({error})") from error
        weakref.finalize(self, self._zip.close)

    def __str__(self) -> str:
        return str(self.path)

    @cached_property
    def _members(self) -> dict[str, zipfile.ZipInfo]:
        found: dict[str, zipfile.ZipInfo] = {}
        repeated = []
        for member in self._zip.infolist():
            name = normpath(member.filename).lstrip("/")
            if member.is_dir() or name.startswith("__MACOSX/"):
                continue
            if name in found:
                repeated.append(name)
            found[name] = member
        tell_repeated(str(self), repeated)
        return found

    @cached_property
    def left_out(self) -> dict[str, str]:
        """Members that are not read, and why."""
        links = (name for name, member in self._members.items() if stat.S_ISLNK(member.external_attr >> 16))
        return dict.fromkeys(links, "a symbolic link, and links in archives are not followed")

    @cached_property
    def names(self) -> Sequence[str]:
        """The members' paths."""
        return [name for name in self._members if name not in self.left_out]

    def read(self, name: str) -> bytes:
        """The content of a member.

        Raises:
            FormatError: it is damaged, encrypted, or unpacks to more than is believable.
        """
        member = self._members[name]
        check_size(member.file_size, member.compress_size, self.where(name))
        try:
            with self._lock:
                return self._zip.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, OSError) as error:
            raise FormatError(f"{self.where(name)}: cannot be unpacked ({error})") from error

    def num_bytes(self, name: str) -> int:
        """Length of a member, unpacked."""
        return self._members[name].file_size

    def origins(self, rows: Sequence[int], names: Sequence[str]) -> Callable[[int], ZipMember]:
        """Where images lie."""
        return lambda row: ZipMember(self, names[row])

    def where(self, name: str) -> str:
        """A member, for messages."""
        return f"{self.path}: {name}"


@dataclass(frozen=True, slots=True)
class ZipMember:
    """An image in a zip."""

    archive: ZipArchive
    name: str

    @property
    def num_bytes(self) -> int:
        """Of the member, unpacked."""
        return self.archive.num_bytes(self.name)

    def open(self) -> BinaryIO:
        """Read the member."""
        return io.BytesIO(self.archive.read(self.name))

    def __str__(self) -> str:
        return self.archive.where(self.name)
