"""Where images come from -> a list of items, not yet read: each kind of source is a file here.

Folders, tars and zips are trees of files; `annotations` decides their captions and labels in one way. Arrays and tables
(HDF5, NumPy, parquet) have them in columns.
"""

import os
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import partial
from itertools import chain, compress, islice
from pathlib import Path
from posixpath import basename, splitext
from typing import Any, Literal

from vqtool.errors import FormatError, VqtoolError, warn
from vqtool.images.sources import annotations
from vqtool.images.sources.arrays import HDF5_ENDINGS, HDF5_SIGNATURE, find_in_hdf5
from vqtool.images.sources.beginnings import holds_grids, pipes_images
from vqtool.images.sources.class_folders import choose_split, split_of
from vqtool.images.sources.folder import FileTree, FolderTree
from vqtool.images.sources.ids import Items, make_items
from vqtool.images.sources.items import (
    LOOKED_FOR,
    NO_WORDS,
    FileOrigin,
    ImageItem,
    PlacedTree,
    Tree,
    Words,
    counted,
    has_image_suffix,
    is_hidden,
    shown_names,
)
from vqtool.images.sources.numpy_arrays import NUMPY_ENDINGS, find_in_numpy
from vqtool.images.sources.options import DEFAULTS, SourceOptions
from vqtool.images.sources.packed import Group, Texts, natural_order
from vqtool.images.sources.parquet import PARQUET_ENDINGS, find_in_parquet
from vqtool.images.sources.tars import STANDARD_INPUT, TAR_ENDINGS, TarShard
from vqtool.images.sources.zips import ZIP_ENDINGS, ZipArchive
from vqtool.inputs import expand, locate
from vqtool.tally import Tally
from vqtool.urls import Fetched

__all__ = ["ImageItem", "SourceOptions", "WordsNeeded", "find_images", "holds_grids", "pipes_images"]

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
) -> Items:
    """Find the images of the given sources, without reading them.

    Args:
        sources: folders (searched with all below them), image files, tar shards (.tar, .tar.gz, .tgz; "-" is one on
            standard input, any other pipe is one too), .zip, HDF5 files, .npy, .npz, .parquet.
        options: which images are taken, and where their captions and labels come from.
        words: "all": captions and labels are needed, and what cannot be read of them is an error; "some": it is told
            and left out; "none": only ids are read.
        leave_out: folders and files that are passed over where they lie in a source that is a folder, with a warning.
        on_error: called for each folder that cannot be read, which is then left out; None: raise. A `Tally` is also
            told what is found.

    Returns:
        Items in the order of the sources, natural order within each; they are kept in some 50 bytes each, and made
        when they are asked for. An id is the path relative to the given folder
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
    groups = finder.find_groups(list(map(locate, expand(sources))))
    if words != "none":
        groups = finder.finish(groups)
    items = make_items(groups)
    if words == "all":
        annotations.tell_alike({words.label for group in groups.values() for words in group.words if words.label})
        annotations.tell_long(items)
    if isinstance(on_error, Tally):
        on_error.found(items, with_words=words != "none")
    return items


@dataclass(frozen=True)
class _Finder:
    options: SourceOptions
    words: WordsNeeded
    leave_out: tuple[Path, ...]
    on_error: OnError | None
    folders: list[Path] = field(default_factory=list)  # sources that are folders of images
    texts: list[Path] = field(default_factory=list)  # sources that hold words, as a glob gives them
    used: list[tuple[Tree, set[str]]] = field(default_factory=list)  # the files that words were taken from
    left_out: list[str] = field(default_factory=list)  # names of images that the user does not want

    def find_groups(self, sources: Sequence[Path]) -> dict[str, Group]:
        """The images of all sources, by the name of the source."""
        groups = {_FILES: _no_images()}
        files: list[Path] = []
        for path in sources:
            try:
                kind = _kind_of(path)
                found = None if kind in ("image", "text") else self._find(path, kind)
            except OSError as error:
                raise VqtoolError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error
            if kind in ("image", "text") and isinstance(path, Fetched):
                raise VqtoolError(
                    f"{path}: single files are not taken from URLs: give a tar, zip, parquet or HDF5 of them"
                )
            if kind == "image":
                files.append(path)
            elif found is None:
                self.texts.append(path)
            else:
                groups[_unused(_source_name(path), groups)] = found
        if files:
            groups[_FILES] = self._find_files(files)
        elif len(groups) == 1:
            raise VqtoolError(f"{self.texts[0]}: no images here, but words; looked for {LOOKED_FOR}")
        return groups

    def _find(self, path: Path, kind: str) -> Group | None:
        """The images of one source; None if it is a folder that holds words alone."""
        if kind == "folder":
            skip = None if self.on_error is None else self._skip
            folder = FolderTree(path, leave_out=self.leave_out, on_unreadable=skip)
            if folder.names and all(map(annotations.is_text, folder.names)):
                return None
            self.folders.append(path)
            folder.tell_archives()
            return self._find_in(folder, f"{path}: no images here; looked for {LOOKED_FOR}{folder.hint}", path)
        if kind == "tar":
            shard = TarShard(path, allow_truncated=self.options.allow_truncated)
            self._tell_left_out(shard)
            return self._find_in(shard, f"{shard}: no images in this tar; looked for {LOOKED_FOR}", ids=shard.ids)
        if kind == "zip":
            archive = ZipArchive(path)
            self._tell_left_out(archive)
            return self._find_in(archive, f"{path}: no images in this zip; looked for {LOOKED_FOR}")
        found = self._find_rows(path, kind)
        kept = self._wanted(path, range(len(found)), lambda row: found.names(row)[0])
        return found if len(kept) == len(found) else found.pick(kept)

    def _find_rows(self, path: Path, kind: str) -> Group:
        """The images of an array or table, with those of their words that are needed."""
        options, find = self.options, {"hdf5": find_in_hdf5, "parquet": find_in_parquet, "numpy": find_in_numpy}[kind]
        if options.split and not path.name.lower().endswith(".npz"):
            raise VqtoolError(f"{path}: `split` {options.split}: it has no splits")
        if options.split:
            find = partial(find_in_numpy, split=options.split)
        needed = {"label": options.labels in (None, "folder"), "caption": options.captions is None}
        kinds = [name for name, is_needed in needed.items() if is_needed and self.words != "none"]
        try:
            return find(path, kinds)
        except VqtoolError as error:
            if self.words != "some" or not kinds:
                raise
            rows = find(path, ())
            warn(f"no captions and labels are taken: {error}")
            return rows

    def _find_files(self, files: Sequence[Path]) -> Group:
        """Images that are named one by one, with the words beside them."""
        tree = FileTree(files)
        rows = self._wanted(tree, range(len(files)), lambda row: files[row].as_posix())
        rows = [rows[place] for place in self._of_split(tree, [tree.images[row] for row in rows])]
        words = self._words(tree, [tree.images[row] for row in rows], tree.folder, among=tree.images, whole=False)
        paths = Texts(str(files[row]) for row in rows)

        def names(row: int) -> tuple[str, ...]:
            path = Path(paths[row])
            return splitext(path.name)[0], splitext(path.as_posix())[0], path.as_posix()

        return Group(len(paths), names, lambda row: FileOrigin(paths[row]), words)

    def finish(self, groups: dict[str, Group]) -> dict[str, Group]:
        """Images with what the user said of their captions and labels."""
        if self.options.labels == "folder":
            groups = _label_by_source(groups)
        elif self.options.labels is None:
            _tell_cut_folders(groups, self.folders)
        self._tell_texts()
        for kind, said in (("captions", self.options.captions), ("labels", self.options.labels)):
            if said == "none" or (said is not None and (kind == "captions" or said != "folder")):
                names = [group.names(row) for group in groups.values() for row in range(len(group))]
                before = chain.from_iterable(group.words for group in groups.values())
                words = annotations.with_table(before, names, kind, said, self.left_out)
                groups = {name: group.with_words(islice(words, len(group))) for name, group in groups.items()}
        return groups

    def _find_in(
        self, tree: PlacedTree, nothing: str, outer: Path | None = None, ids: Mapping[str, str] | None = None
    ) -> Group:
        """The images of a tree, in natural order; `ids` are those of some of them, by their names."""
        found = array("Q", (row for row, name in enumerate(tree.names) if _is_image(name)))
        if not found:
            raise VqtoolError(nothing)
        rows = self._wanted(tree, found, tree.names.__getitem__)
        order = natural_order(Texts(tree.names[row] for row in rows))
        rows = array("Q", (rows[place] for place in order))
        images = among = Texts(tree.names[row] for row in rows)
        places = self._of_split(tree, among)
        if len(places) < len(rows):
            rows, images = [rows[place] for place in places], Texts(among[place] for place in places)
        words = self._words(tree, images, outer, among=among)
        named = enumerate(zip(images, words, strict=True))
        own = {row: id for row, (name, each) in named if (id := (ids or {}).get(name, each.id)) is not None}

        def names(row: int) -> tuple[str, ...]:
            name = images[row]
            return own.get(row, splitext(name)[0]), name

        return Group(len(rows), names, tree.origins(rows, images), None if self.words == "none" else words)

    def _words(self, tree: Tree, images: Sequence[str], outer: Path | None, **how: Any) -> list[Words]:
        if self.words == "none":
            return annotations.read_ids(tree, images)
        try:
            used = None if outer is None else self.used  # texts that are sources lie in no archive
            return annotations.annotate(tree, images, self.options, outer=outer, used=used, **how)
        except (VqtoolError, OSError) as error:
            if self.words == "all":
                raise
            warn(f"no captions and labels are taken: {error}")
            return [NO_WORDS] * len(images)

    def _wanted(self, source: object, rows: Sequence[int], name: Callable[[int], str]) -> Sequence[int]:
        """Those of some images, by number, whose names the user wants."""
        if self.options.include is None and self.options.exclude is None:
            return rows
        is_kept = [self._is_wanted(name(row)) for row in rows]
        if not any(is_kept):
            raise VqtoolError(f"{source}: `include` and `exclude` leave no image")
        self.left_out.extend(name(row) for row, kept in zip(rows, is_kept, strict=True) if not kept)
        return list(compress(rows, is_kept))

    def _of_split(self, tree: Tree, images: Sequence[str]) -> Sequence[int]:
        """The places of those of some images that are of the split that the user wants."""
        chosen = choose_split(images, self.options.split, str(tree), told=self.words == "all")
        if len(chosen) < len(images):
            self.left_out.extend(images[place] for place in sorted(set(range(len(images))).difference(chosen)))
        return chosen

    def _is_wanted(self, name: str) -> bool:
        options = self.options
        if options.exclude is not None and _matches(name, options.exclude):
            return False
        return options.include is None or _matches(name, options.include)

    def _skip(self, path: Path, error: VqtoolError) -> None:
        if self.on_error is None:
            raise error
        self.on_error(ImageItem(str(path), None, None, FileOrigin(str(path))), error)

    def _tell_left_out(self, archive: TarShard | ZipArchive) -> None:
        """Name the members of an archive that cannot be read, such as links; images are counted as skipped."""
        words = {name: why for name, why in archive.left_out.items() if annotations.is_text(name)}
        for name, why in archive.left_out.items():
            if name not in words and not is_hidden(name) and self._is_wanted(name):
                self._skip(archive.path, FormatError(f"{archive.where(name)}: is left out: {why}"))
        if words and self.words != "none":
            listed = shown_names((f"{name} ({why})" for name, why in words.items()), len(words))
            warn(f"{archive}: {counted(len(words), 'file')} of words left out: {listed}")

    def _tell_texts(self) -> None:
        """Tell of files and folders of words that were given as sources and lie where no image has use for them."""
        if not self.texts or self.options.captions is not None or self.options.labels is not None:
            return
        used = {os.path.abspath(tree.where(name)) for tree, names in self.used for name in names}
        if any(map(Path.is_dir, self.texts)):
            used |= {str(folder) for path in used for folder in Path(path).parents}
        unused = [
            str(path)
            for path in self.texts
            if os.path.abspath(path) not in used and (path.is_dir() or annotations.holds_words(path.name))
        ]
        if unused:
            warn(
                f"{counted(len(unused), 'source')} of words, not images, and not used for any: "
                f"{shown_names(unused, len(unused))}; `captions` FILE and `labels` FILE take a table"
            )


def _matches(name: str, patterns: str) -> bool:
    """Whether a path, or the name at its end, fits one of several patterns."""
    return any(fnmatch(name, each) or fnmatch(basename(name), each) for each in patterns.split(","))


def _no_images() -> Group:
    def origin(row: int) -> FileOrigin:
        raise IndexError(row)

    return Group(0, lambda row: (), origin, None)


def _is_image(name: str) -> bool:
    return has_image_suffix(name) and not is_hidden(name)


def _label_by_source(groups: dict[str, Group]) -> dict[str, Group]:
    """Images of sources without class folders get the name of their source, which is told if it makes one class."""
    labelled, filled = dict(groups), [name for name, group in groups.items() if len(group)]
    for name in filled:
        group = groups[name]
        if any(words.label for words in group.words):
            continue
        if name == _FILES and len(filled) > 1:
            stray = shown_names(map(str, map(group.origin, range(len(group)))), len(group))
            warn(f"{counted(len(group), 'image')} beside the folders have no label: {stray}")
            continue
        label = name or Path(os.path.abspath(str(group.origin(0)))).parent.name
        labelled[name] = group.with_words([replace(words, label=label) for words in group.words])
        if len(filled) == 1:
            warn(f"no class folders: all {counted(len(group), 'image')} are one class, {label}")
    return labelled


def _tell_cut_folders(groups: dict[str, Group], folders: Sequence[Path]) -> None:
    """Tell of folders side by side that were given instead of the folder that holds them, as imgs/* does."""
    if any(words.label for group in groups.values() for words in group.words):
        return
    folders = [path for path in folders if split_of(path.name) is None]
    parents = {path.absolute().parent for path in folders}
    if len(folders) > 1 and len(parents) == 1:
        warn(
            f"no labels: {folders[0]}, {folders[1]}, ... are sources of their own: give the folder that holds them to "
            "take them for classes, or `labels` folder"
        )


def _kind_of(path: Path) -> str:
    """By extension; by content where the extension says nothing."""
    if str(path) == STANDARD_INPUT:
        return "tar"
    if not path.exists():
        raise VqtoolError(f"{path}: no such file or folder; {_EXPECTED}")
    if path.is_dir():
        return "folder"
    if path.is_fifo():  # as standard input: it can be read once
        return "tar"
    name = path.name.lower()
    by_name = next((kind for kind, endings in _ENDINGS.items() if name.endswith(endings)), None)
    if by_name is not None:
        return by_name
    if has_image_suffix(name) or not path.is_file():
        return "image"
    if annotations.is_text(name):
        return "text"
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


def _unused(name: str, groups: dict[str, Group]) -> str:
    return name if name not in groups else next(f"{name}-{n}" for n in range(2, 10**9) if f"{name}-{n}" not in groups)
