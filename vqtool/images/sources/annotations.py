"""Which label, captions and id each image of a folder or an archive has: decided here, for all of them in one way.

Captions are those of the image's row in metadata.jsonl or metadata.csv (of its folder, a folder above it, or the parent
of the source), else of a text beside it: x.txt, x.png.txt, x.caption, captions/x.txt, x.json. Its label is that of its
row, else of x.cls or x.json. If no image has one, class folders give them. Names are compared exactly, else without
case and Unicode composition. What is there but cannot be used is told in one warning of each kind.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from os.path import exists
from pathlib import Path
from posixpath import basename, commonprefix, dirname, normpath, splitext

from vqtool.errors import VqtoolError, warn
from vqtool.images.sources.class_folders import class_labels, tell_passed_over
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
    has_image_suffix,
    shown_names,
)
from vqtool.images.sources.options import SourceOptions
from vqtool.images.sources.sidecars import SIDECAR_ENDINGS, Sidecars
from vqtool.images.sources.tables import ID_COLUMN, METADATA_NAMES, Table, read_table

_TABLE_ENDINGS = (".csv", ".tsv", ".jsonl")  # that might hold words and are named if they were not used
_WORD_ENDINGS = (*SIDECAR_ENDINGS, *_TABLE_ENDINGS)
_NO_WORDS = re.compile(
    r"(readme|license|licence|notice|requirements|changelog|thumbs\.db|desktop\.ini|\.)", re.IGNORECASE
)
_LONG = 1000  # characters of a caption, beyond which it is told
_WORD_JSON = re.compile("caption|metadata|label|annotation|prompt", re.IGNORECASE)  # names of .json that hold words
_NUM_COMPARED = 2000  # names that the nearest one is looked for among


def annotate(
    tree: Tree,
    images: Sequence[str],
    options: SourceOptions,
    *,
    among: Sequence[str] | None = None,
    outer: Path | None = None,
    whole: bool = True,
    used: list[tuple[Tree, set[str]]] | None = None,
) -> list[Words]:
    """The words of images.

    Args:
        tree: where they lie.
        images: their names in it.
        options: what the user said of captions and labels.
        among: all images of the source, of which they may be a split; class folders are those of all.
        outer: a folder whose parent may hold metadata of it.
        whole: whether the tree holds the source alone, so that words that belong to no image are told.
        used: the tree and the names of the files that words are taken from are added to it.

    Raises:
        FormatError: metadata or a text that cannot be read; names it.
    """
    needs_captions, needs_labels = options.captions is None, options.labels is None
    if needs_captions or needs_labels:
        rows, read = _read_metadata(tree, images, outer, told=needs_captions, whole=whole)
        sidecars = Sidecars(tree, images, options, [] if outer is None else captions_beside(outer))
        words = [sidecars.complete(image, rows.get(image, NO_WORDS)) for image in images]
        sidecars.tell()
        read |= sidecars.used
        if used is not None:
            used.append((tree, read))
        if whole and needs_captions and needs_labels:
            _tell_unused(tree, images, words, read)
        if needs_captions and outer is not None and not any(each.captions for each in words):
            _tell_lists(outer)
    else:
        words = read_ids(tree, images)
    if options.labels == "folder":
        words = [replace(each, label=None) for each in words]
    if options.labels == "folder" or (options.labels is None and not any(each.label for each in words)):
        labels = class_labels(images if among is None else among, str(tree), forced=options.labels == "folder")
        if among is not None and among is not images:
            by_image = dict(zip(among, labels, strict=True))
            labels = [by_image[image] for image in images]
        words = _with_labels(words, labels)
    elif needs_labels and not any(each.label for each in rows.values()):
        tell_passed_over(images, [each.label for each in words], str(tree))
    return words


def is_text(path: str) -> bool:
    """Whether a file is no image by its name, but words or such as lies about in folders of images."""
    return path.lower().endswith((*_WORD_ENDINGS, ".md")) or bool(_NO_WORDS.match(basename(path)))


def holds_words(path: str) -> bool:
    """Whether a file might say something of images, by its name."""
    return (
        path.lower().endswith(_WORD_ENDINGS)
        and not path.endswith((".log.jsonl", ".skipped.txt"))  # vqtool's
        and not _NO_WORDS.match(basename(path))
    )


def read_ids(tree: Tree, images: Sequence[str]) -> list[Words]:
    """The ids alone that vqtool wrote beside images; metadata that cannot be read has none."""
    try:
        rows, _ = _read_metadata(tree, images, None, told=False)
    except VqtoolError:
        rows = {}
    if not rows:
        return [NO_WORDS] * len(images)
    ids = [rows.get(image, NO_WORDS).id for image in images]
    return [NO_WORDS if id is None else Words(id=id) for id in ids]


def _with_labels(words: Iterable[Words], labels: Sequence[str | None]) -> list[Words]:
    """Words with other labels; images of which a label alone is said share one object."""
    alone = {label: Words(label) for label in set(labels)}
    return [
        replace(each, label=label) if each.captions or each.id else alone[label]
        for each, label in zip(words, labels, strict=True)
    ]


def match_table(
    table: Table, names: Sequence[tuple[str, ...]], where: str, left_out: Sequence[str] = ()
) -> list[Words]:
    """The words of a table that a user named, for images by their names; tells what fits nothing.

    A row may name an image by its path, by the end of it, or without its extension, where this is one image only.

    Args:
        table: what was read.
        names: of each image: with and without its extension.
        where: the table, for messages.
        left_out: names of images that the user does not want, whose rows are no fault.

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
    others = NameIndex(name for path in left_out for own in (path, splitext(path)[0]) for name in (own, basename(own)))
    words, missing, unwanted = [NO_WORDS] * len(names), list[str](), 0
    for key, each in table.words.items():
        path = normpath(key).lstrip("/")
        tried = (path, splitext(path)[0], basename(path), splitext(basename(path))[0])
        found = next(filter(None, map(index.find, tried)), None)
        if found is not None:
            words[place[found]] = each
        elif any(map(others.find, tried)):
            unwanted += 1
        else:
            missing.append(key)
    if not names or len(missing) + unwanted == len(table.words):
        example = f" (the first: {missing[0]!r})" if missing else ""
        example += _nearest(missing[0], [own[-1] for own in names]) if missing else ""
        raise VqtoolError(f"{where}: none of its {len(table.words)} file names is one of the images{example}")
    _tell_missing(where, missing, len(table.words), [own[-1] for own in names])
    without = [own[-1] for own, each in zip(names, words, strict=True) if each is NO_WORDS]
    _tell_without_row(where, without, len(names))
    return words


def with_table(
    words: Iterable[Words], names: Sequence[tuple[str, ...]], kind: str, said: str, left_out: Sequence[str] = ()
) -> Iterator[Words]:
    """Words with the captions or labels of a table that the user named, FILE or FILE:COLUMN; or with none.

    Args:
        words: of images.
        names: of each: with and without its extension.
        kind: "captions" or "labels".
        said: the table, or "none".
        left_out: names of images that the user does not want, whose rows are passed over.
    """
    if said == "none":
        new: Sequence[Words] = [NO_WORDS] * len(names)
    else:
        file, column = said, None
        if not Path(file).is_file() and ":" in said:
            file, column = said.rsplit(":", 1)
        try:
            data = Path(file).read_bytes()
        except OSError as error:
            raise VqtoolError(f"`{kind}` {said}: {file} cannot be read: {error.strerror}") from error
        table = read_table(data, file, **{"caption" if kind == "captions" else "label": column})
        new = match_table(table, names, file, left_out)
        if not any(each.captions if kind == "captions" else each.label for each in new):
            raise VqtoolError(
                f"`{kind}` {said}: no {kind} in its columns {', '.join(table.columns)}; name one: {file}:COLUMN"
            )
    if kind == "captions":
        return (replace(each, captions=its.captions) for each, its in zip(words, new, strict=True))
    return (replace(each, label=its.label) for each, its in zip(words, new, strict=True))


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
    longer = [(len(caption), item.location) for item in items for caption in item.captions if len(caption) > _LONG]
    if longer:
        length, place = max(longer, key=lambda pair: pair[0])
        warn(
            f"{counted(len(longer), 'caption')} of more than {_LONG:,} characters, taken whole: the longest, of "
            f"{place}, has {length:,}"
        )


def _read_metadata(
    tree: Tree, images: Sequence[str], outer: Path | None, *, told: bool = True, whole: bool = True
) -> tuple[dict[str, Words], set[str]]:
    """Words by image, and the files that were read; of two that speak of one image the nearer one counts."""
    files = sorted(
        (name for name in tree.names if basename(name).casefold() in METADATA_NAMES), key=lambda name: name.count("/")
    )
    for i, name in enumerate(files):
        if any(dirname(other) == dirname(name) for other in files[:i]):
            raise VqtoolError(f"{tree.where(dirname(name))}: has both {' and '.join(METADATA_NAMES)}; keep one of them")
    index, read = NameIndex(images), set(files)
    there = NameIndex(name for name in tree.names if has_image_suffix(name))  # with those that are not taken
    found: dict[str, Words] = {}
    if outer is not None and not any("/" not in name for name in files):
        found, file = _read_outer(outer, images, index, there)
        read |= {file} - {""}
    for name in files:
        where, folder = tree.where(name), dirname(name)
        table = read_table(tree.read(name), where)
        rows = {normpath(f"{folder}/{key}".lstrip("/")): words for key, words in table.words.items()}
        matched = {image: words for path, words in rows.items() if (image := index.find(path)) is not None}
        missing = [path for path in rows if index.find(path) is None and there.find(path) is None]
        if len(missing) == len(rows) > 0 and told and whole:
            raise VqtoolError(
                f"{where}: none of its {len(rows)} file names is an image of this folder "
                f"(the first: {next(iter(rows))!r}){_nearest(next(iter(rows)), images)}; file_name is relative to the "
                "metadata file"
            )
        found.update(matched)
        if told:
            if not whole:  # other rows may name images that were not given
                missing = [path for path in missing if not exists(tree.where(path))]
            _tell_missing(where, missing, len(rows), images)
            _tell_columns(where, table)
            within = [image for image in images if not folder or image.startswith(f"{folder}/")]
            _tell_without_row(where, [image for image in within if image not in found], len(within))
    return found, read


def _read_outer(
    folder: Path, images: Sequence[str], index: NameIndex, there: NameIndex
) -> tuple[dict[str, Words], str]:
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
            elif dirname(normpath(key)) in ("", path.name) and there.find(below) is None:  # others: of other folders
                missing.append(key)
        if found:
            _tell_missing(str(file), missing, len(rows), images)
            _tell_without_row(str(file), [image for image in images if image not in found], len(images))
            return found, str(file)
        _tell_missing(str(file), missing, len(rows), images)
    return {}, ""


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
    """Tell of a table that has captions or labels twice, or whose columns say nothing that is known."""
    for kind, (first, second) in table.double.items():
        warn(f"{where}: {kind} are taken of column {first}, not of {second}; `{kind}` {where}:{second} takes that")
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


def _tell_unused(tree: Tree, images: Sequence[str], words: Sequence[Words], used: set[str]) -> None:
    """Name files that look like words of images, by their place or name, and were not used."""
    texts = [name for name in tree.names if name not in used and holds_words(name)]
    if not texts:
        return
    folders = {dirname(image) for image in images} | {""}
    folders |= {f"{folder}/{name}".lstrip("/") for folder in folders for name in CAPTION_FOLDERS}
    stems = set(map(_stem, images))
    taken = set(images)
    left_out = {_stem(name) for name in tree.names if has_image_suffix(name) and name not in taken} - stems
    unused = [
        name
        for name in texts
        if (dirname(name) in folders or _stem(name) in stems)
        and _stem(name) not in left_out
        and (not name.lower().endswith(".json") or _WORD_JSON.search(basename(name)))
    ]
    own = zip(images, words, strict=True)
    captioned = {place for image, each in own if each.captions for place in (splitext(image)[0], image)}
    second = [name for name in unused if splitext(name)[0] in captioned]
    unused = [name for name in unused if splitext(name)[0] not in captioned]
    if second:
        listed = shown_names(second, len(second))
        warn(f"{tree}: {counted(len(second), 'text')} not used, since the images have captions elsewhere: {listed}")
    if unused:
        warn(
            f"{tree}: {counted(len(unused), 'file')} of words beside no image of that name, not used: "
            f"{shown_names(unused, len(unused))}; `captions` FILE and `labels` FILE take a table"
        )
