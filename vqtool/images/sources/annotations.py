"""Which label, captions and id each image of a folder or an archive has: decided here, for all of them in one way.

Captions are those of the image's row in metadata.jsonl or metadata.csv (of its folder, a folder above it, or the parent
of the source), else of a text beside it: x.txt, x.png.txt, x.caption, captions/x.txt, x.json. Its label is that of its
row, else of x.cls or x.json. If no image has one, class folders give them. Names are compared exactly, else without
case and Unicode composition. What is there but cannot be used is told in one warning of each kind.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from os.path import abspath, exists
from pathlib import Path
from posixpath import basename, commonprefix, dirname, normpath, splitext

from vqtool.errors import VqtoolError, warn
from vqtool.images.sources.class_folders import class_labels
from vqtool.images.sources.folder import captions_beside
from vqtool.images.sources.ids import printable_name
from vqtool.images.sources.items import (
    CAPTION_FOLDERS,
    NO_WORDS,
    ImageItem,
    NameIndex,
    Tree,
    Words,
    counted,
    fold,
    shown_names,
)
from vqtool.images.sources.options import SourceOptions
from vqtool.images.sources.tables import ID_COLUMN, METADATA_NAMES, Table, clean, decode_text, read_sidecar, read_table

_CAPTION_ENDINGS = (".txt", ".caption")
_SIDECAR_ENDINGS = (*_CAPTION_ENDINGS, ".cls", ".json")
_TABLE_ENDINGS = (".csv", ".tsv", ".jsonl")  # that might hold words and are named if they were not used
_OTHERS = (".md", ".log.jsonl", ".skipped.txt")  # texts that say nothing of images; the last two vqtool writes
_NO_WORDS = re.compile(
    r"(readme|license|licence|notice|requirements|changelog|thumbs\.db|desktop\.ini|\.)", re.IGNORECASE
)
_LONG = 1000  # characters of a caption, beyond which it is told
_NUM_COMPARED = 2000  # names that the nearest one is looked for among


def annotate(
    tree: Tree,
    images: Sequence[str],
    options: SourceOptions,
    *,
    among: Sequence[str] | None = None,
    outer: Path | None = None,
    whole: bool = True,
    used: set[str] | None = None,
) -> list[Words]:
    """The words of images.

    Args:
        tree: where they lie.
        images: their names in it.
        options: what the user said of captions and labels.
        among: all images of the source, of which they may be a split; class folders are those of all.
        outer: a folder whose parent may hold metadata of it.
        whole: whether the tree holds the source alone, so that words that belong to no image are told.
        used: the paths of files that words are taken from are added to it.

    Raises:
        FormatError: metadata or a text that cannot be read; names it.
    """
    needs_captions, needs_labels = options.captions is None, options.labels is None
    if needs_captions or needs_labels:
        rows, read = _read_metadata(tree, images, outer, told=needs_captions, whole=whole)
        sidecars = _Sidecars(tree, images, options, [] if outer is None else captions_beside(outer))
        words = [sidecars.complete(image, rows.get(image, NO_WORDS)) for image in images]
        sidecars.tell()
        read |= {tree.where(name) for name in sidecars.used}
        if used is not None:
            used |= set(map(abspath, read))
        if whole and needs_captions and needs_labels:
            _tell_unused(tree, images, read)
        if needs_captions and outer is not None and not any(each.captions for each in words):
            _tell_lists(outer)
    else:
        words = read_ids(tree, images)
    if options.labels == "folder":
        words = [replace(each, label=None) for each in words]
    if options.labels == "folder" or (options.labels is None and not any(each.label for each in words)):
        among = images if among is None else among
        labels = dict(zip(among, class_labels(among, str(tree), forced=options.labels == "folder"), strict=True))
        words = [replace(each, label=labels[image]) for image, each in zip(images, words, strict=True)]
    return words


def is_text(path: str) -> bool:
    """Whether a file is no image by its name, but words or such as lies about in folders of images."""
    return bool(_NO_WORDS.match(basename(path))) or path.lower().endswith((*_SIDECAR_ENDINGS, *_TABLE_ENDINGS, ".md"))


def holds_words(path: str) -> bool:
    """Whether a file might say something of images, by its name."""
    return is_text(path) and not _NO_WORDS.match(basename(path)) and not path.endswith(_OTHERS)


def read_ids(tree: Tree, images: Sequence[str]) -> list[Words]:
    """The ids alone that vqtool wrote beside images; metadata that cannot be read has none."""
    try:
        rows, _ = _read_metadata(tree, images, None, told=False)
    except VqtoolError:
        return [NO_WORDS] * len(images)
    return [Words(id=rows.get(image, NO_WORDS).id) for image in images]


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
        example += _nearest(missing[0], [own[-1] for own in names]) if missing else ""
        raise VqtoolError(f"{where}: none of its {len(table.words)} file names is one of the images{example}")
    _tell_missing(where, missing, len(table.words), [own[-1] for own in names])
    without = [own[-1] for own, each in zip(names, words, strict=True) if each is NO_WORDS]
    _tell_without_row(where, without, len(names))
    return words


def tell_alike(spelled: Collection[str]) -> None:
    """Tell of labels that differ in case or Unicode composition only."""
    by_form: dict[str, list[str]] = {}
    for label in sorted(spelled):
        by_form.setdefault(printable_name(label), []).append(ascii(label))
    merged = [f"{label} ({' and '.join(forms)})" for label, forms in by_form.items() if len(forms) > 1]
    if merged:
        listed = shown_names(merged, len(merged))
        warn(f"labels that differ in Unicode composition only (NFC, NFD) are one class: {listed}")
    by_fold: dict[str, list[str]] = {}
    for label in by_form:
        by_fold.setdefault(fold(label), []).append(label)
    alike = [same for same in by_fold.values() if len(same) > 1]
    if alike:
        listed = shown_names(map(" and ".join, alike), len(alike))
        warn(f"labels that differ in case only are different classes: {listed}")


def tell_long(items: Sequence[ImageItem]) -> None:
    """Tell of captions that are longer than people write them, as a page or a list of tags that was taken for one."""
    lengths = [(len(caption), item.location) for item in items for caption in item.captions]
    longer = [(length, place) for length, place in lengths if length > _LONG]
    if longer:
        length, place = max(longer, key=lambda pair: pair[0])
        warn(
            f"{counted(len(longer), 'caption')} of more than {_LONG:,} characters, taken whole: the longest, of "
            f"{place}, has {length:,}"
        )


def _read_metadata(
    tree: Tree, images: Sequence[str], outer: Path | None, *, told: bool = True, whole: bool = True
) -> tuple[dict[str, Words], set[str]]:
    """Words by image, and where the files are that were read; of two that speak of one image the nearer one counts."""
    files = sorted(
        (name for name in tree.names if basename(name).casefold() in METADATA_NAMES), key=lambda name: name.count("/")
    )
    for i, name in enumerate(files):
        if any(dirname(other) == dirname(name) for other in files[:i]):
            raise VqtoolError(f"{tree.where(dirname(name))}: has both {' and '.join(METADATA_NAMES)}; keep one of them")
    index, everything = NameIndex(images), NameIndex(tree.names)
    read = set(map(tree.where, files))
    found: dict[str, Words] = {}
    if outer is not None and not any("/" not in name for name in files):
        found, file = _read_outer(outer, images, index)
        read |= {file} - {""}
    for name in files:
        where, folder = tree.where(name), dirname(name)
        table = read_table(tree.read(name), where)
        rows = {normpath(f"{folder}/{key}".lstrip("/")): words for key, words in table.words.items()}
        matched = {image: words for path, words in rows.items() if (image := index.find(path)) is not None}
        if rows and not matched and told and whole:
            raise VqtoolError(
                f"{where}: none of its {len(rows)} file names is an image of this folder "
                f"(the first: {next(iter(rows))!r}){_nearest(next(iter(rows)), images)}; file_name is relative to the "
                "metadata file"
            )
        found.update(matched)
        if told:
            missing = [path for path in rows if index.find(path) is None]
            if not whole:  # other rows may name images that are not taken
                missing = [path for path in missing if everything.find(path) is None and not exists(tree.where(path))]
            _tell_missing(where, missing, len(rows), images)
            _tell_columns(where, table)
            within = [image for image in images if not folder or image.startswith(f"{folder}/")]
            _tell_without_row(where, [image for image in within if image not in found], len(within))
    return found, read


def _read_outer(folder: Path, images: Sequence[str], index: NameIndex) -> tuple[dict[str, Words], str]:
    """Words from metadata in the parent of a folder, which may speak of other folders too; and the file, or ""."""
    path = folder.resolve()
    for name in METADATA_NAMES:
        file = path.parent / name
        try:
            table = read_table(file.read_bytes(), str(file)) if file.is_file() else None
        except (OSError, VqtoolError) as error:
            warn(f"metadata beside {folder} is not used: {error}")
            continue
        rows = {} if table is None else table.words
        found, missing = dict[str, Words](), list[str]()
        for key, words in rows.items():
            below = normpath(key).removeprefix(f"{path.name}/")
            if (image := index.find(below)) is not None:
                found[image] = words
            elif dirname(normpath(key)) in ("", path.name):  # others are of other folders
                missing.append(key)
        if found:
            _tell_missing(str(file), missing, len(rows), images)
            _tell_without_row(str(file), [image for image in images if image not in found], len(images))
            return found, str(file)
        _tell_missing(str(file), missing, len(rows), images)
    return {}, ""


class _Sidecars:
    """The files beside images, looked up by the names of the images."""

    def __init__(self, tree: Tree, images: Sequence[str], options: SourceOptions, beside: Sequence[str]) -> None:
        self._tree, self._lines = tree, options.caption_lines
        self._captions, self._labels = options.captions is None, options.labels is None  # what is needed
        names = (*tree.names, *beside)
        self._index = NameIndex(name for name in names if name.lower().endswith(_SIDECAR_ENDINGS))
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
            cls = self._find(image, f"{stem}.cls") if self._labels else None
            label = label or (clean(self._read(cls)) if cls else None) or both.label
            names = [stem + ending for ending in _CAPTION_ENDINGS] if self._captions else []
            text = next(filter(None, (self._find(image, name) for name in names)), None)
            captions = captions or (self._caption(text) if text else ()) or both.captions
        if self._captions and not captions:
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
    """Where captions in a folder of their own may lie: in the image's folder, beside it, at the top, or beside that."""
    folder, stem = dirname(image), splitext(basename(image))[0]
    below = splitext(image)[0].partition("/")[2]
    for name in CAPTION_FOLDERS:
        for place in dict.fromkeys((f"{folder}/{name}", f"{dirname(folder)}/{name}")):
            yield f"{place}/{stem}.txt".lstrip("/")
        yield f"{name}/{splitext(image)[0]}.txt"
        if below:
            yield f"{name}/{below}.txt"
        yield f"../{name}/{splitext(image)[0]}.txt"


def _tell_missing(where: str, missing: Sequence[str], num_rows: int, images: Sequence[str]) -> None:
    if missing:
        first = (f"{name!r}{_nearest(name, images)}" for name in missing)
        warn(f"{where}: {len(missing):,} of its {num_rows:,} rows name no image: {shown_names(first, len(missing))}")


def _stem(path: str) -> str:
    return splitext(basename(path))[0]


def _nearest(name: str, images: Sequence[str]) -> str:
    """The image that a row may mean: of the same name in another place, with another ending, or spelled alike."""
    spelled = [(fold(image), image) for image in images]
    own = fold(name)
    alike = [image for other, image in spelled if basename(other) == basename(own)]
    alike += [image for other, image in spelled if _stem(other) == _stem(own)]
    for shorten in (str, basename):
        if not alike:
            spelled.sort(key=lambda pair: -len(commonprefix((shorten(own), shorten(pair[0])))))
            compared = {shorten(other): image for other, image in reversed(spelled[:_NUM_COMPARED])}
            alike = [compared[other] for other in get_close_matches(shorten(own), compared, n=1)]
    return f" (nearest: {alike[0]!r})" if alike else ""


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


def _tell_lists(folder: Path) -> None:
    """Tell of a list of captions beside a folder of images that have none, as Flickr8k and COCO come."""
    names = [f"captions{ending}" for ending in (".txt", ".json", *_TABLE_ENDINGS)]
    names.append(f"annotations/captions_{folder.name}.json")
    found = next((path for path in (folder.parent / name for name in names) if path.is_file()), None)
    if found is not None:
        warn(f"{folder}: no captions; `captions` {found} takes the list that lies beside it")


def _tell_unused(tree: Tree, images: Sequence[str], used: set[str]) -> None:
    """Name files that look like words of images, by their place or name, and were not used."""
    folders = {dirname(image) for image in images} | {""}
    folders |= {f"{folder}/{name}".lstrip("/") for folder in folders for name in CAPTION_FOLDERS}
    stems = {_stem(image) for image in images}
    unused = [
        name
        for name in tree.names
        if holds_words(name)
        and (not name.lower().endswith(".json") or "caption" in name.lower())
        and tree.where(name) not in used
        and (dirname(name) in folders or _stem(name) in stems)
    ]
    if unused:
        warn(
            f"{tree}: {counted(len(unused), 'file')} of words beside no image of that name, not used: "
            f"{shown_names(unused, len(unused))}; `captions` FILE and `labels` FILE take a table"
        )
