"""Zip archives of images: the members as files, with the words that stand beside them."""

from __future__ import annotations

import io
import threading
import weakref
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from posixpath import normpath
from typing import BinaryIO

from vqtool.errors import FormatError
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
        members = (member for member in self._zip.infolist() if not member.is_dir())
        found = {normpath(member.filename).lstrip("/"): member for member in members}
        return {name: member for name, member in found.items() if not name.startswith("__MACOSX/")}

    @property
    def names(self) -> list[str]:
        """The members' paths."""
        return list(self._members)

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

    def origin(self, name: str) -> ZipMember:
        """Where an image lies."""
        return ZipMember(self, name)

    def where(self, name: str) -> str:
        """A member, for messages."""
        return f"{self.path}: {name}"


@dataclass(frozen=True)
class ZipMember:
    """An image in a zip."""

    archive: ZipArchive
    name: str

    def open(self) -> BinaryIO:
        """Read the member."""
        return io.BytesIO(self.archive.read(self.name))

    def __str__(self) -> str:
        return self.archive.where(self.name)
