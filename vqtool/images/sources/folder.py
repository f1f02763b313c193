"""Folders of images, searched to any depth, and image files that are named one by one."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from vqtool.errors import VqtoolError, count_text, warn
from vqtool.images.sources.items import CAPTION_FOLDERS, FileOrigin, counted, has_image_suffix, shown_names
from vqtool.images.sources.packed import Texts

_ARCHIVE_ENDINGS = (".tar", ".tar.gz", ".tgz", ".zip", ".parquet")
_SHARD_ENDINGS = (*_ARCHIVE_ENDINGS, ".h5", ".hdf5", ".npz", ".npy")


class FolderTree:
    """The files below a folder.

    Hidden files and folders are passed over; links to folders are followed, but no folder is entered twice.

    Args:
        folder: where to look.
        leave_out: folders that are not entered, and files that are not there.
        on_unreadable: called for a folder that cannot be read, which is then left out; None: raise.

    Raises:
        VqtoolError: a folder that cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        leave_out: Collection[Path] = (),
        on_unreadable: Callable[[Path, VqtoolError], None] | None = None,
    ) -> None:
        self.folder = folder
        self._prefix = str(folder / "_")[:-1]
        self._left_out = {_identity(path) for path in leave_out if path.is_dir()} - {_identity(folder)}
        self._files_left_out = {_identity(path) for path in leave_out if path.is_file()}
        self._on_unreadable = on_unreadable
        self._num_left_out = 0
        self.names = Texts(self._wanted())
        if self._num_left_out:
            warn(f"{counted(self._num_left_out, 'file')} left out of {folder}, since they are given on the other side")

    def read(self, name: str) -> bytes:
        """The content of a file."""
        return (self.folder / name).read_bytes()

    def origins(self, rows: Sequence[int], names: Sequence[str]) -> Callable[[int], FileOrigin]:
        """Where images lie."""
        prefix = self._prefix
        return lambda row: FileOrigin(names[row], prefix)

    def where(self, name: str) -> str:
        """The path of a file."""
        return str(self.folder / name)

    def __str__(self) -> str:
        return str(self.folder)

    def tell_archives(self) -> None:
        """Tell of archives among images, which are not looked into."""
        found = [name for name in self.names if name.lower().endswith(_ARCHIVE_ENDINGS)]
        if found and any(map(has_image_suffix, self.names)):
            listed = shown_names(found, len(found))
            warn(f"{self.folder}: {counted(len(found), 'archive')} among its files not looked into: {listed}")

    @property
    def hint(self) -> str:
        """What the user may have meant, where there is no image."""
        if self._num_left_out:
            return "; what it has is given on the other side"
        shards = [name for name in self.names if name.lower().endswith(_SHARD_ENDINGS)]
        if shards:
            return f"; shards are given as files, for example {shards[0]!r}"
        return f"; of its {count_text(len(self.names), 'file')} none is an image" if self.names else "; it is empty"

    def _wanted(self) -> Iterator[str]:
        for name in self._walk():
            path = self.folder / name if self._files_left_out else None
            if path is not None and path.is_file() and _identity(path) in self._files_left_out:
                self._num_left_out += 1
            else:
                yield name

    def _walk(self) -> Iterator[str]:
        """Relative posix paths of the files; links wait until all real folders have been seen."""
        entered: set[tuple[int, int]] = set()
        folders, links = [""], list[str]()
        while folders or links:
            prefix = folders.pop() if folders else links.pop(0)
            try:
                identity = _identity(self.folder / prefix)
                if identity in entered:
                    continue
                if identity in self._left_out:
                    warn(f"{self.folder / prefix}: left out of {self.folder}, since it is given on the other side")
                    continue
                entered.add(identity)
                files, below = _list(self.folder / prefix)
            except OSError as error:
                failure = VqtoolError(f"{self.folder / prefix}: cannot read this folder: {error.strerror}")
                if self._on_unreadable is None:
                    raise failure from error
                self._on_unreadable(self.folder / prefix, failure)
                continue
            for name, is_link in below:
                (links if is_link else folders).append(f"{prefix}{name}/")
            for name in files:
                yield f"{prefix}{name}"


class FileTree:
    """Image files that are named one by one, and what stands beside them, below the folder that they share."""

    def __init__(self, files: Sequence[Path]) -> None:
        places = [Path(os.path.abspath(file)) for file in files]
        self.folder = Path(os.path.commonpath([place.parent for place in places]))
        self.images = [place.relative_to(self.folder).as_posix() for place in places]
        folders = {place.parent for place in places} | {self.folder}
        folders |= {folder / name for folder in list(folders) for name in CAPTION_FOLDERS}
        self.names = [
            path.relative_to(self.folder).as_posix() for folder in sorted(folders) for path in _files_in(folder)
        ]

    def read(self, name: str) -> bytes:
        """The content of a file."""
        return (self.folder / name).read_bytes()

    def where(self, name: str) -> str:
        """The path of a file, as people write it."""
        return os.path.relpath(self.folder / name)

    def __str__(self) -> str:
        return f"{len(self.images):,} files of {os.path.relpath(self.folder)}"


def captions_beside(folder: Path) -> list[str]:
    """Files in folders of captions beside a folder of images, as paths that are relative to that: ../captions/x.txt."""
    found = []
    for name in CAPTION_FOLDERS:
        place = folder / ".." / name
        if place.is_dir():
            files = FolderTree(place, on_unreadable=lambda path, error: warn(str(error)))
            found += [f"../{name}/{file}" for file in files.names]
    return found


def _files_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as scan:
            return [folder / entry.name for entry in scan if entry.is_file()]
    except OSError:
        return []


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _list(folder: Path) -> tuple[list[str], list[tuple[str, bool]]]:
    """The files of a folder, and the folders in it with whether they are links; what is hidden is passed over."""
    files, folders = list[str](), list[tuple[str, bool]]()
    with os.scandir(folder) as scan:
        for entry in scan:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                folders.append((entry.name, entry.is_symlink()))
            elif entry.is_symlink() or entry.is_file():  # a link that leads nowhere cannot be read, and is named
                files.append(entry.name)
    files.sort()
    folders.sort()
    return files, folders


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
