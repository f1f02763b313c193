"""Where images come from: a folder, files, tar shards or an HDF5 of images -> a list of items, not yet read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from posixpath import splitext

from vqtool.errors import VqtoolError
from vqtool.images.sources.arrays import HDF5_ENDINGS, HDF5_SIGNATURE, find_in_hdf5
from vqtool.images.sources.folder import describe_file, find_in_folder
from vqtool.images.sources.items import Entry, FileOrigin, ImageItem, has_image_suffix
from vqtool.images.sources.tars import TAR_ENDINGS, find_in_tar

__all__ = ["ImageItem", "find_images", "holds_grids"]

_FILES = ""  # the group of files named one by one; any other group is one source, under its name


def find_images(sources: Sequence[str | Path]) -> list[ImageItem]:
    """Find the images of the given sources, without reading them.

    Args:
        sources: folders (searched with all below them), image files, tar shards (.tar, .tar.gz, .tgz), HDF5 files.

    Returns:
        Items in the order of the sources, natural order within each. An id is the path relative to the given folder
        (a file: its name; a shard: the member's path; HDF5: its `id` or the row) without extension. Where two ids of
        one source collide, both keep their extension; where two sources collide, theirs begin with the source's name.

    Raises:
        VqtoolError: a missing path, a source without images.
        FormatError: a damaged shard, or malformed metadata.
    """
    if isinstance(sources, str | Path):
        raise ValueError(f"sources is a list of paths, not one path: {sources!r}")
    if not sources:
        raise VqtoolError("no images given; give a folder, image files, tar shards or an HDF5 of images")
    groups: dict[str, list[Entry]] = {_FILES: []}
    for source in sources:
        path = Path(source)
        try:
            name, entries = _find_in(path)
        except OSError as error:
            raise VqtoolError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error
        groups.setdefault(name if name == _FILES else _unused(name, groups), []).extend(entries)
    return _make_items(groups)


def holds_grids(source: str | Path) -> bool:
    """Whether an input is token grids rather than images: an HDF5 file without images, a pipe, or standard input."""
    import h5py

    path = Path(source)
    if str(source) == "-" or not path.is_file():
        return str(source) == "-" or (path.exists() and not path.is_dir())
    with path.open("rb") as stream:
        if stream.read(len(HDF5_SIGNATURE)) != HDF5_SIGNATURE:
            return False
    try:
        with h5py.File(path, "r") as file:
            return "images" not in file
    except (OSError, RuntimeError):
        return True  # damaged: reading says how


def _find_in(path: Path) -> tuple[str, list[Entry]]:
    """The source's name and its images."""
    if not path.exists():
        raise VqtoolError(f"{path}: no such file or folder; expected images, tar shards or an HDF5 of images")
    if path.is_dir():
        return _source_name(path), find_in_folder(path)
    kind = _guess_kind(path)
    if kind == "tar":
        return _source_name(path), find_in_tar(path)
    if kind == "hdf5":
        return _source_name(path), find_in_hdf5(path)
    words = describe_file(path)
    stem, spelled = splitext(path.name)[0], path.as_posix()
    return _FILES, [Entry((stem, splitext(spelled)[0], spelled), FileOrigin(path), words.label, words.caption)]


def _guess_kind(path: Path) -> str:
    """By extension; by content where the extension says nothing."""
    name = path.name.lower()
    if name.endswith(TAR_ENDINGS):
        return "tar"
    if name.endswith(HDF5_ENDINGS):
        return "hdf5"
    if has_image_suffix(name) or not path.is_file():
        return "image"
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(HDF5_SIGNATURE):
        return "hdf5"
    return "tar" if head[257:262] == b"ustar" else "image"


def _source_name(path: Path) -> str:
    name = Path(os.path.abspath(path)).name or "root"
    ending = next((ending for ending in (*TAR_ENDINGS, *HDF5_ENDINGS) if name.lower().endswith(ending)), "")
    return name if path.is_dir() or len(name) == len(ending) else name[: len(name) - len(ending)]


def _unused(name: str, groups: dict[str, list[Entry]]) -> str:
    return name if name not in groups else next(f"{name}-{n}" for n in range(2, 10**9) if f"{name}-{n}" not in groups)


def _make_items(groups: dict[str, list[Entry]]) -> list[ImageItem]:
    """Entries by source name -> items with unique ids."""
    ids = {name: _ids_within(entries) for name, entries in groups.items()}
    seen = Counter(one for own in ids.values() for one in set(own))
    for name, own in ids.items():
        if name != _FILES and any(seen[one] > 1 for one in own):
            ids[name] = [f"{name}/{one}" for one in own]
    entries = [entry for group in groups.values() for entry in group]
    unique = _number_repeats([_printable(one) for own in ids.values() for one in own])
    return [
        ImageItem(one, entry.label, entry.caption, entry.origin) for one, entry in zip(unique, entries, strict=True)
    ]


def _ids_within(entries: list[Entry]) -> list[str]:
    """Each entry's first name; its next one as long as another entry is called the same."""
    level = [0] * len(entries)
    for _ in range(max((len(entry.names) for entry in entries), default=1) - 1):
        names = [entry.names[i] for entry, i in zip(entries, level, strict=True)]
        counts = Counter(names)
        level = [
            min(i + (counts[name] > 1), len(entry.names) - 1)
            for entry, i, name in zip(entries, level, names, strict=True)
        ]
    return [entry.names[i] for entry, i in zip(entries, level, strict=True)]


def _number_repeats(ids: list[str]) -> list[str]:
    """Append -2, -3, ... to ids that are still the same: an image given twice."""
    taken: set[str] = set()
    numbers: Counter[str] = Counter()
    given = set(ids)
    for i, one in enumerate(ids):
        while ids[i] in taken or (ids[i] != one and ids[i] in given):
            numbers[one] += 1
            ids[i] = f"{one}-{numbers[one] + 1}"
        taken.add(ids[i])
    return ids


def _printable(text: str) -> str:
    """File names need not be UTF-8; ids must be, to stand in HDF5 and JSON."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
