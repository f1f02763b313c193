"""Where images come from -> a list of items, not yet read: each kind of source is a file here.

Folders, tars and zips are trees of files; `annotations` decides their captions and labels in one way. Arrays and tables
(HDF5, NumPy, parquet) have them in columns.
"""

import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from posixpath import basename, splitext
from typing import Any, Literal

from vqtool.errors import VqtoolError, warn
from vqtool.images.sources import annotations
from vqtool.images.sources.arrays import HDF5_ENDINGS, HDF5_SIGNATURE, find_in_hdf5
from vqtool.images.sources.folder import FileTree, FolderTree
from vqtool.images.sources.items import (
    LOOKED_FOR,
    NO_WORDS,
    Entry,
    FileOrigin,
    ImageItem,
    Tree,
    Words,
    fold,
    has_image_suffix,
    is_hidden,
    natural_key,
    shown_names,
)
from vqtool.images.sources.numpy_arrays import NUMPY_ENDINGS, find_in_numpy
from vqtool.images.sources.options import DEFAULTS, SourceOptions
from vqtool.images.sources.parquet import PARQUET_ENDINGS, find_in_parquet
from vqtool.images.sources.tables import read_table
from vqtool.images.sources.tars import STANDARD_INPUT, TAR_ENDINGS, TarShard
from vqtool.images.sources.zips import ZIP_ENDINGS, ZipArchive
from vqtool.tally import Tally

__all__ = ["ImageItem", "SourceOptions", "WordsNeeded", "find_images", "holds_grids"]

WordsNeeded = Literal["all", "some", "none"]
OnError = Callable[[ImageItem, VqtoolError], None]

_FILES = ""  # the group of files named one by one; any other group is one source, under its name
_ENDINGS = {
    "tar": TAR_ENDINGS,
    "zip": ZIP_ENDINGS,
    "hdf5": HDF5_ENDINGS,
    "numpy": NUMPY_ENDINGS,
    "parquet": PARQUET_ENDINGS,
}
_SIGNATURES = {HDF5_SIGNATURE: "hdf5", b"PK\x03\x04": "zip", b"\x93NUMPY": "numpy", b"PAR1": "parquet"}
_EXPECTED = "expected images, tar shards or an HDF5 of images"


def find_images(
    sources: Sequence[str | Path],
    options: SourceOptions = DEFAULTS,
    *,
    words: WordsNeeded = "all",
    leave_out: Collection[str | Path] = (),
    on_error: OnError | None = None,
) -> list[ImageItem]:
    """Find the images of the given sources, without reading them.

    Args:
        sources: folders (searched with all below them), image files, tar shards (.tar, .tar.gz, .tgz; "-" is one on
            standard input), .zip, HDF5 files, .npy, .npz, .parquet.
        options: which images are taken, and where their captions and labels come from.
        words: "all": captions and labels are needed, and what cannot be read of them is an error; "some": it is told
            and left out; "none": only ids are read.
        leave_out: folders that are passed over where they lie in a source, with a warning.
        on_error: called for each folder that cannot be read, which is then left out; None: raise. A `Tally` is also
            told what is found.

    Returns:
        Items in the order of the sources, natural order within each. An id is the path relative to the given folder
        (a file: its name; a shard: the member's path; HDF5: its `id` or the row) without extension, or what vqtool
        wrote beside an image. Where two ids of one source collide, both keep their extension; where two sources
        collide, theirs begin with the source's name.

    Warns:
        VqtoolWarning: captions or labels that are there but cannot be used, and why.

    Raises:
        VqtoolError: a missing path, a source without images.
        FormatError: a damaged shard, or malformed metadata.
    """
    if isinstance(sources, str | Path):
        raise ValueError(f"sources is a list of paths, not one path: {sources!r}")
    if not sources:
        raise VqtoolError("no images given; give a folder, image files, tar shards or an HDF5 of images")
    finder = _Finder(options, words, tuple(map(Path, leave_out)), on_error)
    groups: dict[str, list[Entry]] = {_FILES: []}
    files: list[Path] = []
    for path in map(Path, sources):
        try:
            found = finder.find(path)
        except OSError as error:
            raise VqtoolError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error
        if found is None:
            files.append(path)
        else:
            groups[_unused(_source_name(path), groups)] = found
    if files:
        groups[_FILES] = finder.find_files(files)
    if words != "none":
        groups = finder.finish(groups, list(map(Path, sources)))
    items = _make_items(groups)
    if words == "all":
        _tell_alike({item.label for item in items if item.label})
    if isinstance(on_error, Tally):
        on_error.found(items, with_words=words != "none")
    return items


def holds_grids(source: str | Path) -> bool:
    """Whether an input is token grids rather than images: an HDF5 file without images, or a pipe that begins as one.

    Of standard input ("-") the first bytes are looked at and stay there to be read.
    """
    import h5py

    if str(source) == STANDARD_INPUT:
        peek = getattr(sys.stdin.buffer, "peek", None)
        start = peek(len(HDF5_SIGNATURE)) if peek is not None and not sys.stdin.isatty() else b""
        return HDF5_SIGNATURE.startswith(start[: len(HDF5_SIGNATURE)])
    path = Path(source)
    if not path.is_file():
        return path.exists() and not path.is_dir()
    with path.open("rb") as stream:
        if stream.read(len(HDF5_SIGNATURE)) != HDF5_SIGNATURE:
            return False
    try:
        with h5py.File(path, "r") as file:
            return "images" not in file
    except (OSError, RuntimeError):
        return True  # damaged: reading says how


@dataclass(frozen=True)
class _Finder:
    options: SourceOptions
    words: WordsNeeded
    leave_out: tuple[Path, ...]
    on_error: OnError | None

    def find(self, path: Path) -> list[Entry] | None:
        """The images of one source; None if it is one image file."""
        kind = _kind_of(path)
        if kind == "image":
            return None
        if kind == "folder":
            skip = None if self.on_error is None else self._skip
            folder = FolderTree(path, leave_out=self.leave_out, on_unreadable=skip)
            return self._find_in(folder, f"{path}: no images here; looked for {LOOKED_FOR}{folder.hint}", path)
        if kind == "tar":
            shard = TarShard(path, allow_truncated=self.options.allow_truncated)
            found = self._find_in(shard, f"{shard}: no images in this tar; looked for {LOOKED_FOR}")
            return [_with_id(entry, shard.ids.get(entry.names[-1])) for entry in found]
        if kind == "zip":
            return self._find_in(ZipArchive(path), f"{path}: no images in this zip; looked for {LOOKED_FOR}")
        needed = self.words != "none"
        if kind == "numpy":
            return find_in_numpy(path, words=needed, split=self.options.split)
        return (find_in_hdf5 if kind == "hdf5" else find_in_parquet)(path, words=needed)

    def find_files(self, files: Sequence[Path]) -> list[Entry]:
        """Images that are named one by one, with the words beside them."""
        tree = FileTree(files)
        words = self._words(tree, tree.images, tree.folder, whole=False)
        own = dict(zip(tree.images, words, strict=True))
        return [
            Entry((splitext(path.name)[0], splitext(path.as_posix())[0], path.as_posix()), FileOrigin(path), own[name])
            for path, name in zip(files, tree.images, strict=True)
            if self._is_wanted(path.as_posix())
        ]

    def finish(self, groups: dict[str, list[Entry]], sources: Sequence[Path]) -> dict[str, list[Entry]]:
        """Entries with what the user said of their captions and labels."""
        if self.options.labels == "folder":
            groups = {name: _label_by_source(name, entries) for name, entries in groups.items()}
        elif self.options.labels is None:
            _tell_cut_folders(groups, sources)
        entries = [entry for group in groups.values() for entry in group]
        for kind, said in (("captions", self.options.captions), ("labels", self.options.labels)):
            if said == "none" or (said is not None and (kind == "captions" or said != "folder")):
                entries = _with_table(entries, kind, said)
        ordered = iter(entries)
        return {name: [next(ordered) for _ in group] for name, group in groups.items()}

    def _find_in(self, tree: Tree, nothing: str, outer: Path | None = None) -> list[Entry]:
        images = [name for name in tree.names if has_image_suffix(name) and not is_hidden(name)]
        if not images:
            raise VqtoolError(nothing)
        images = [name for name in images if self._is_wanted(name)]
        if not images:
            raise VqtoolError(f"{tree}: `include` and `exclude` leave no image")
        images.sort(key=natural_key)
        among = images
        images = annotations.choose_split(images, self.options.split, str(tree), told=self.words == "all")
        words = self._words(tree, images, outer, among=among)
        return [
            _with_id(Entry((splitext(name)[0], name), tree.origin(name), each), each.id)
            for name, each in zip(images, words, strict=True)
        ]

    def _words(self, tree: Tree, images: Sequence[str], outer: Path | None, **how: Any) -> list[Words]:
        if self.words == "none":
            return annotations.read_ids(tree, images)
        try:
            return annotations.annotate(tree, images, self.options, outer=outer, **how)
        except (VqtoolError, OSError) as error:
            if self.words == "all":
                raise
            warn(f"no captions and labels are taken: {error}")
            return [NO_WORDS] * len(images)

    def _is_wanted(self, name: str) -> bool:
        options = self.options
        if options.exclude is not None and _matches(name, options.exclude):
            return False
        return options.include is None or _matches(name, options.include)

    def _skip(self, folder: Path, error: VqtoolError) -> None:
        if self.on_error is not None:
            self.on_error(ImageItem(str(folder), None, None, FileOrigin(folder)), error)


def _matches(name: str, patterns: str) -> bool:
    """Whether a path, or the name at its end, fits one of several patterns."""
    return any(fnmatch(name, each) or fnmatch(basename(name), each) for each in patterns.split(","))


def _with_id(entry: Entry, id: str | None) -> Entry:
    return entry if id is None else replace(entry, names=(id, *entry.names[1:]))


def _label_by_source(name: str, entries: list[Entry]) -> list[Entry]:
    """Entries of a source without class folders get its own name."""
    if name == _FILES or any(entry.words.label for entry in entries):
        return entries
    return [replace(entry, words=replace(entry.words, label=name)) for entry in entries]


def _tell_cut_folders(groups: dict[str, list[Entry]], sources: Sequence[Path]) -> None:
    """Tell of folders side by side that were given instead of the folder that holds them, as imgs/* does."""
    if any(entry.words.label for group in groups.values() for entry in group):
        return
    folders = [path for path in sources if path.is_dir()]
    parents = {path.absolute().parent for path in folders}
    if len(folders) > 1 and len(parents) == 1 and len(folders) == len(sources):
        warn(
            f"no labels: {folders[0]}, {folders[1]}, ... are sources of their own: give the folder that holds them to "
            "take them for classes, or `labels` folder"
        )


def _tell_alike(labels: Collection[str]) -> None:
    """Tell of labels that differ in case only."""
    by_fold: dict[str, list[str]] = {}
    for label in sorted(labels):
        by_fold.setdefault(fold(label), []).append(label)
    alike = [same for same in by_fold.values() if len(same) > 1]
    if alike:
        listed = shown_names(map(" and ".join, alike), len(alike))
        warn(f"labels that differ in case only are different classes: {listed}")


def _with_table(entries: list[Entry], kind: str, said: str) -> list[Entry]:
    """Entries with the captions or labels of a table that the user named, FILE or FILE:COLUMN; or with none."""
    if said == "none":
        words: list[Words] = [NO_WORDS] * len(entries)
    else:
        file, column = said, None
        if not Path(file).is_file() and ":" in said:
            file, column = said.rsplit(":", 1)
        try:
            data = Path(file).read_bytes()
        except OSError as error:
            raise VqtoolError(f"`{kind}` {said}: {file} cannot be read: {error.strerror}") from error
        table = read_table(data, file, **{"caption" if kind == "captions" else "label": column})
        words = annotations.match_table(table, [entry.names for entry in entries], file)
        if not any(each.captions if kind == "captions" else each.label for each in words):
            raise VqtoolError(
                f"`{kind}` {said}: no {kind} in its columns {', '.join(table.columns)}; name one: {file}:COLUMN"
            )
    if kind == "captions":
        return [
            replace(entry, words=replace(entry.words, captions=each.captions))
            for entry, each in zip(entries, words, strict=True)
        ]
    return [
        replace(entry, words=replace(entry.words, label=each.label)) for entry, each in zip(entries, words, strict=True)
    ]


def _kind_of(path: Path) -> str:
    """By extension; by content where the extension says nothing."""
    if str(path) == STANDARD_INPUT:
        return "tar"
    if not path.exists():
        raise VqtoolError(f"{path}: no such file or folder; {_EXPECTED}")
    if path.is_dir():
        return "folder"
    name = path.name.lower()
    by_name = next((kind for kind, endings in _ENDINGS.items() if name.endswith(endings)), None)
    if by_name is not None:
        return by_name
    if has_image_suffix(name) or not path.is_file():
        return "image"
    with path.open("rb") as file:
        head = file.read(512)
    by_content = next((kind for signature, kind in _SIGNATURES.items() if head.startswith(signature)), None)
    return by_content or ("tar" if head[257:262] == b"ustar" else "image")


def _source_name(path: Path) -> str:
    if str(path) == STANDARD_INPUT:
        return "stdin"
    name = Path(os.path.abspath(path)).name or "root"
    ending = next((end for endings in _ENDINGS.values() for end in endings if name.lower().endswith(end)), "")
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
    return [_make_item(one, entry) for one, entry in zip(unique, entries, strict=True)]


def _make_item(id: str, entry: Entry) -> ImageItem:
    captions, label = entry.words.captions, entry.words.label
    return ImageItem(
        id, None if label is None else _printable(label), captions[0] if captions else None, entry.origin, captions[1:]
    )


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
    """Text in Unicode's composed form. File names need not be UTF-8; ids must be, to stand in HDF5 and JSON."""
    return unicodedata.normalize("NFC", text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
