"""Which label, captions and id each image of a folder or an archive has: decided here, for all of them in one way.

Captions are those of the image's row in metadata.jsonl or metadata.csv (of its folder, a folder above it, or the parent
of the source), else of a text beside it: x.txt, x.png.txt, x.caption, captions/x.txt, x.json. Its label is that of its
row, else of x.cls or x.json. If no image has one, class folders give them. Names are compared exactly, else without
case and Unicode composition. What is there but cannot be used is told in one warning of each kind.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from posixpath import basename, dirname, normpath, splitext

from vqtool.errors import VqtoolError, warn
from vqtool.images.sources.items import NO_WORDS, NameIndex, Tree, Words, counted, shown_names
from vqtool.images.sources.options import SourceOptions
from vqtool.images.sources.tables import ID_COLUMN, METADATA_NAMES, Table, clean, decode_text, read_sidecar, read_table

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
_CAPTION_ENDINGS = (".txt", ".caption")
_SIDECAR_ENDINGS = (*_CAPTION_ENDINGS, ".cls", ".json")
_CAPTION_FOLDERS = ("captions", "text")
_TABLE_ENDINGS = (".csv", ".tsv", ".jsonl")  # that might hold words and are named if they were not used
_NO_WORDS = re.compile(r"(readme|license|licence|notice|requirements|changelog|\.)", re.IGNORECASE)
_NUM_COMPARED = 2000  # names that the nearest one is looked for among


@dataclass(frozen=True)
class Folders:
    """What the folders of images say: the class of each, and its split."""

    classes: list[str | None]
    splits: list[str | None]  # as the folder is called

    @property
    def num_outside(self) -> int:
        """How many images lie in no class folder."""
        return self.classes.count(None)


def read_folders(images: Sequence[str]) -> Folders:
    """Find class folders, below folders that all images share and below train/, val/, test/.

    Args:
        images: relative posix paths.
    """
    parts = [image.split("/")[:-1] for image in images]
    depth = 0
    while _share_one(parts, depth) and sum(len(part) > depth + 1 for part in parts) * 2 > len(parts):
        depth += 1
    names = {part[depth] for part in parts if len(part) > depth}
    splits: list[str | None] = [None] * len(parts)
    if names and all(name.casefold() in SPLITS for name in names):
        splits = [part[depth] if len(part) > depth else None for part in parts]
        depth += 1
    return Folders([part[depth] if len(part) > depth else None for part in parts], splits)


def _share_one(parts: Sequence[Sequence[str]], depth: int) -> bool:
    """Whether all images lie in one folder, which is no split."""
    names = {part[depth] if len(part) > depth else "" for part in parts}
    return len(names) == 1 and "" not in names and not names & SPLITS.keys()


def choose_split(images: Sequence[str], split: str | None, place: str, *, told: bool = True) -> list[str]:
    """The images of a split, or all; tells of splits that nobody chose.

    Raises:
        VqtoolError: there is no such split.
    """
    splits = read_folders(images).splits
    known = sorted({name for name in splits if name is not None})
    if split is None:
        if len(known) > 1 and told:
            listed = ", ".join(f"{name}/" for name in known)
            warn(f"{place}: {listed} are splits, not classes: all are taken; `split` {known[-1]} takes one of them")
        return list(images)
    wanted = SPLITS.get(split.casefold(), split)
    chosen = [image for image, name in zip(images, splits, strict=True) if name and SPLITS[name.casefold()] == wanted]
    if not chosen:
        there = (
            f"there are {', '.join(known)}" if known else "there are no folders train, val or test above its classes"
        )
        raise VqtoolError(f"{place}: `split` {split}: {there}")
    return chosen


def annotate(
    tree: Tree,
    images: Sequence[str],
    options: SourceOptions,
    *,
    among: Sequence[str] | None = None,
    outer: Path | None = None,
    whole: bool = True,
) -> list[Words]:
    """The words of images.

    Args:
        tree: where they lie.
        images: their names in it.
        options: what the user said of captions and labels.
        among: all images of the source, of which they may be a split; class folders are those of all.
        outer: a folder whose parent may hold metadata of it.
        whole: whether the tree holds the source alone, so that words that belong to no image are told.

    Raises:
        FormatError: metadata or a text that cannot be read; names it.
    """
    rows, used = _read_metadata(tree, images, outer, told=whole)
    sidecars = _Sidecars(tree, images, options.caption_lines)
    words = [sidecars.complete(image, rows.get(image, NO_WORDS)) for image in images]
    sidecars.tell()
    if whole and options.captions is None and options.labels is None:
        _tell_unused(tree, images, used | sidecars.used)
    if options.labels == "folder":
        words = [replace(each, label=None) for each in words]
    if options.labels == "folder" or (options.labels is None and not any(each.label for each in words)):
        among = images if among is None else among
        labels = dict(zip(among, class_labels(among, str(tree), forced=options.labels == "folder"), strict=True))
        words = [replace(each, label=labels[image]) for image, each in zip(images, words, strict=True)]
    return words


def read_ids(tree: Tree, images: Sequence[str]) -> list[Words]:
    """The ids alone that vqtool wrote beside images; metadata that cannot be read has none."""
    try:
        rows, _ = _read_metadata(tree, images, None, told=False)
    except VqtoolError:
        return [NO_WORDS] * len(images)
    return [Words(id=rows.get(image, NO_WORDS).id) for image in images]


def class_labels(images: Sequence[str], place: str, *, forced: bool = False) -> list[str | None]:
    """Labels from class folders; what keeps folders from being classes is told.

    Args:
        images: relative posix paths.
        place: the source, for messages.
        forced: take them whatever they look like.
    """
    folders = read_folders(images)
    classes = sorted({name for name in folders.classes if name is not None})
    none: list[str | None] = [None] * len(images)
    if not classes:
        return none
    outside = folders.num_outside
    listed = shown_names((f"{name}/" for name in classes), len(classes))
    beside = f"{outside:,} of {len(images):,} images lie beside {listed}"
    if not forced and len(classes) == 1 and outside * 2 >= len(images):
        return none
    if not forced and len(classes) == 1:
        warn(f"{place}: no labels: {classes[0]}/ is the only folder, which makes no classes; `labels` folder takes it")
        return none
    if not forced and outside * 2 >= len(images):
        warn(f"{place}: no labels: {beside}, which are not taken for class folders; `labels` folder takes them")
        return none
    if outside:
        stray = (image for image, name in zip(images, folders.classes, strict=True) if name is None)
        warn(f"{place}: {beside} and have no label: {shown_names(stray, outside)}")
    return folders.classes


def match_table(table: Table, names: Sequence[tuple[str, ...]], where: str) -> list[Words]:
    """The words of a table that a user named, for images by their names; tells what fits nothing.

    A row may name an image by its path, by the end of it, or without its extension, where this is one image only.

    Args:
        table: what was read.
        names: of each image: with and without its extension.
        where: the table, for messages.

    Raises:
        VqtoolError: no row names an image.
    """
    place: dict[str, int] = {}
    known: Counter[str] = Counter()
    for i, own in enumerate(names):
        spelled = {*own, *map(basename, own)}
        known.update(spelled)
        place |= dict.fromkeys(spelled, i)
    index = NameIndex(name for name, num in known.items() if num == 1)
    words, missing = [NO_WORDS] * len(names), []
    for key, each in table.words.items():
        path = normpath(key).lstrip("/")
        tried = (path, splitext(path)[0], basename(path), splitext(basename(path))[0])
        found = next(filter(None, map(index.find, tried)), None)
        if found is None:
            missing.append(key)
        else:
            words[place[found]] = each
    if not names or len(missing) == len(table.words):
        example = f" (the first: {missing[0]!r})" if missing else ""
        raise VqtoolError(f"{where}: none of its {len(table.words)} file names is one of the images{example}")
    _tell_missing(where, missing, len(table.words), [own[-1] for own in names])
    without = [own[-1] for own, each in zip(names, words, strict=True) if each is NO_WORDS]
    _tell_without_row(where, without, len(names))
    return words


def _read_metadata(
    tree: Tree, images: Sequence[str], outer: Path | None, *, told: bool = True
) -> tuple[dict[str, Words], set[str]]:
    """Words by image, and the files that were used; of two files that speak of one image the nearer one counts."""
    files = sorted(
        (name for name in tree.names if basename(name).casefold() in METADATA_NAMES), key=lambda name: name.count("/")
    )
    for i, name in enumerate(files):
        if any(dirname(other) == dirname(name) for other in files[:i]):
            raise VqtoolError(f"{tree.where(dirname(name))}: has both {' and '.join(METADATA_NAMES)}; keep one of them")
    index = NameIndex(images)
    found = _read_outer(outer, index) if outer is not None and not any("/" not in name for name in files) else {}
    for name in files:
        where, folder = tree.where(name), dirname(name)
        table = read_table(tree.read(name), where)
        rows = {normpath(f"{folder}/{key}".lstrip("/")): words for key, words in table.words.items()}
        matched = {image: words for path, words in rows.items() if (image := index.find(path)) is not None}
        if rows and not matched and told:
            raise VqtoolError(
                f"{where}: none of its {len(rows)} file names is an image of this folder "
                f"(the first: {next(iter(rows))!r}); file_name is relative to the metadata file"
            )
        found.update(matched)
        if told:
            _tell_missing(where, [path for path in rows if index.find(path) is None], len(rows), images)
            _tell_columns(where, table)
            within = [image for image in images if not folder or image.startswith(f"{folder}/")]
            _tell_without_row(where, [image for image in within if image not in found], len(within))
    return found, set(files)


def _read_outer(folder: Path, index: NameIndex) -> dict[str, Words]:
    """Words from metadata in the parent of a folder, which may speak of other folders too."""
    path = folder.resolve()
    for name in METADATA_NAMES:
        file = path.parent / name
        try:
            table = read_table(file.read_bytes(), str(file)) if file.is_file() else None
        except (OSError, VqtoolError) as error:
            warn(f"metadata beside {folder} is not used: {error}")
            continue
        rows = {} if table is None else table.words
        found = {}
        for key, words in rows.items():
            below = normpath(key).removeprefix(f"{path.name}/")
            if (image := index.find(below)) is not None:
                found[image] = words
        if found:
            return found
    return {}


class _Sidecars:
    """The files beside images, looked up by the names of the images."""

    def __init__(self, tree: Tree, images: Sequence[str], lines: str) -> None:
        self._tree, self._lines = tree, lines
        self._index = NameIndex(name for name in tree.names if name.lower().endswith(_SIDECAR_ENDINGS))
        self._stems = Counter(splitext(image)[0].casefold() for image in images)
        self._long: list[tuple[int, str]] = []  # (characters, name) of captions of several lines
        self.used: set[str] = set()

    def complete(self, image: str, words: Words) -> Words:
        """Words of an image with what is said of it beside it, where its row says nothing."""
        if not self._index:
            return words
        label, captions = words.label, words.captions
        stems = tuple(_stems(image))
        for stem in stems:
            json = self._find(image, f"{stem}.json")
            both = NO_WORDS if json is None else read_sidecar(self._read(json), self._tree.where(json))
            cls = self._find(image, f"{stem}.cls")
            label = label or (clean(self._read(cls)) if cls else None) or both.label
            text = next(filter(None, (self._find(image, stem + ending) for ending in _CAPTION_ENDINGS)), None)
            captions = captions or (self._caption(text) if text else ()) or both.captions
        if not captions:
            place = next(filter(None, (self._find(image, name) for name in _apart(image))), None)
            captions = self._caption(place) if place else ()
        return replace(words, label=label, captions=captions)

    def tell(self) -> None:
        """Tell of captions of several lines."""
        if self._long and self._lines != "each":
            longest, name = max(self._long)
            taken = "each is taken whole" if self._lines == "all" else "the first line is taken"
            warn(
                f"{self._tree}: {counted(len(self._long), 'caption')} of several lines: {taken}; the longest, {name}, "
                f"has {longest:,} characters; `caption_lines` all, first or each chooses"
            )

    def _find(self, image: str, name: str) -> str | None:
        """A file; one that differs in case only where no other image could be meant."""
        found = self._index.find(name)
        if found is not None and found != name and self._stems[splitext(image)[0].casefold()] > 1:
            return None
        return found

    def _read(self, name: str) -> str:
        self.used.add(name)
        return decode_text(self._tree.read(name), self._tree.where(name))

    def _caption(self, name: str) -> tuple[str, ...]:
        text = clean(self._read(name))
        if text is None:
            return ()
        lines = [line for line in map(str.strip, text.splitlines()) if line]
        if len(lines) > 1:
            self._long.append((len(text), name))
        return {"all": (text,), "first": (lines[0],), "each": tuple(dict.fromkeys(lines))}[self._lines]


def _stems(image: str) -> Iterator[str]:
    """What files beside `a/b.c.jpg` may be called: a/b.c, a/b.c.jpg, and a/b, which is webdataset's key."""
    folder, name = dirname(image), basename(image)
    yield from dict.fromkeys((splitext(image)[0], image, f"{folder}/{name.split('.', 1)[0]}".lstrip("/")))


def _apart(image: str) -> Iterator[str]:
    """Where captions in a folder of their own may lie: captions/ in the image's folder, beside it, or at the top."""
    folder, stem = dirname(image), splitext(basename(image))[0]
    below = splitext(image)[0].partition("/")[2]
    for name in _CAPTION_FOLDERS:
        for place in dict.fromkeys((f"{folder}/{name}", f"{dirname(folder)}/{name}")):
            yield f"{place}/{stem}.txt".lstrip("/")
        yield f"{name}/{splitext(image)[0]}.txt"
        if below:
            yield f"{name}/{below}.txt"


def _tell_missing(where: str, missing: Sequence[str], num_rows: int, images: Sequence[str]) -> None:
    if missing:
        first = (f"{name!r}{_nearest(name, images)}" for name in missing)
        warn(f"{where}: {len(missing):,} of its {num_rows:,} rows name no image: {shown_names(first, len(missing))}")


def _nearest(name: str, images: Sequence[str]) -> str:
    alike = [image for image in images if basename(image).casefold() == basename(name).casefold()]
    close = alike or get_close_matches(name, images[:_NUM_COMPARED], n=1)
    return f" (nearest: {close[0]!r})" if close else ""


def _tell_without_row(where: str, without: Sequence[str], num: int) -> None:
    if without:
        warn(f"{len(without):,} of {num:,} images have no row in {where}: {shown_names(without, len(without))}")


def _tell_columns(where: str, table: Table) -> None:
    """Tell of a table whose columns say nothing that is known."""
    if table.words and not any(words.label or words.captions or words.id for words in table.words.values()):
        others = [name for name in table.columns if name not in ("file_name", ID_COLUMN)]
        if others:
            warn(
                f"{where}: no captions and no labels are taken: its columns are {shown_names(others, len(others), 8)}; "
                f"known are text, caption, prompt and label; `captions` {where}:{others[0]} names another"
            )


def _tell_unused(tree: Tree, images: Sequence[str], used: set[str]) -> None:
    """Name files that look like words of images and were not used."""
    folders = {dirname(image) for image in images} | {""}
    folders |= {f"{folder}/{name}".lstrip("/") for folder in folders for name in _CAPTION_FOLDERS}
    unused = [
        name
        for name in tree.names
        if name.lower().endswith((*_CAPTION_ENDINGS, ".cls", *_TABLE_ENDINGS))
        and name not in used
        and dirname(name) in folders
        and not _NO_WORDS.match(basename(name))
        and not name.endswith(".log.jsonl")
    ]
    if unused:
        warn(
            f"{tree}: {counted(len(unused), 'file')} of words beside no image of that name, not used: "
            f"{shown_names(unused, len(unused))}; `captions` FILE and `labels` FILE take a table"
        )
