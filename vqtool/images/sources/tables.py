"""Tables of captions and labels: metadata.jsonl and metadata.csv (Hugging Face imagefolder), and what users name.

Known are comma, semicolon and tab separated values, JSON lines, COCO's and other JSON, parquet, and Flickr's lines of
`name.jpg#0<tab>caption`. A table may have several rows for an image: each has a caption of it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vqtool.errors import FormatError, VqtoolError
from vqtool.images.sources.items import Words
from vqtool.trust import parse_json

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
ID_COLUMN = "vqtool_id"
NAME_COLUMNS = ("file_name", "filename", "file", "image", "image_name", "image_path", "path", "image_id", "key")
CAPTION_COLUMNS = ("text", "caption", "captions", "prompt", "sentence", "sentences", "comment")
LABEL_COLUMNS = ("label", "class", "class_name", "category")
_EMPTY: tuple[Any, ...] = (None, "", [])
_NUMBERED = re.compile(r"#\d+$")  # Flickr8k numbers the captions of an image

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Words by the name of the image as it is written in the table."""

    words: dict[str, Words]
    columns: tuple[str, ...]
    double: dict[str, tuple[str, str]]  # "captions", "labels" -> two columns of one row that both have some


def read_table(data: bytes, where: str, *, caption: str | None = None, label: str | None = None) -> Table:
    """Read a table by the ending of its name.

    Args:
        data: the content of the file.
        where: its name, for messages.
        caption: the column of captions; None: the first known one.
        label: the column of labels; None: the first known one.

    Raises:
        FormatError: a line that cannot be read, or has no file name; names file and line.
        VqtoolError: the column that was asked for is not there.
    """
    rows = list(_read_rows(data, where))
    columns = tuple(dict.fromkeys(column for _, row in rows for column in row))
    captions, labels = _pick(caption, CAPTION_COLUMNS, columns, where), _pick(label, LABEL_COLUMNS, columns, where)
    key = next((name for name in NAME_COLUMNS if name in columns), NAME_COLUMNS[0])
    words: dict[str, Words] = {}
    double: dict[str, tuple[str, str]] = {}
    for line, row in rows:
        for kind, known in (("captions", captions), ("labels", labels)):
            full = [name for name in known if row.get(name) not in _EMPTY] if len(known) > 1 else []
            if len(full) > 1:
                double.setdefault(kind, (full[0], full[1]))
        place = f"{where}, line {line}"
        name = row.get(key)
        if isinstance(name, int) and not isinstance(name, bool) and key != NAME_COLUMNS[0]:
            name = str(name)
        if not isinstance(name, str) or not name:
            raise FormatError(f"{place}: no file_name; every line needs the image's path relative to this file")
        name = name if "/" in name else name.replace("\\", "/")  # as Windows writes paths
        new = _read_words(row, captions, labels, place)
        words[name] = _join(words[name], new, name, place) if name in words else new
    return Table(words, columns, double)


def read_sidecar(text: str, where: str) -> Words:
    """Words of a .json beside an image; keys it does not know and values of other types are left alone."""
    row = parse_json(text, where)
    if not isinstance(row, dict):
        return Words()
    label = next((row[key] for key in ("label", "cls") if _is_label(row.get(key))), None)
    texts = next((row[key] for key in ("caption", "text", "prompt") if isinstance(row.get(key), str | list)), None)
    listed: list[Any] = texts if isinstance(texts, list) else [texts]
    return Words(None if label is None else str(label), _captions(text for text in listed if isinstance(text, str)))


def decode_text(data: bytes, where: str) -> str:
    """UTF-8, with or without a byte order mark."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise FormatError(f"{where}, line {line}: not UTF-8 text; save it as UTF-8") from None


def clean(text: str | None) -> str | None:
    """Text without blanks around it; None where nothing is left."""
    return (text.strip() or None) if text is not None else None


def _is_label(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def _captions(texts: Iterable[str | None]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, map(clean, texts))))


def _pick(given: str | None, known: tuple[str, ...], columns: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The columns to look in: the one that is asked for, or all that are known."""
    if given is None:
        return known
    if _column(given) not in columns:
        raise VqtoolError(f"{where}: has no column {given!r}; there are {', '.join(columns)}")
    return (_column(given),)


def _column(name: Any) -> str:
    """A header as it is looked up: without blanks around it and in small letters."""
    return re.sub(r"[\s-]+", "_", str(name).strip().lower())


def _read_words(row: Row, captions: tuple[str, ...], labels: tuple[str, ...], where: str) -> Words:
    label = next((row[name] for name in labels if row.get(name) not in _EMPTY), None)
    if label is not None and not _is_label(label):
        raise FormatError(f"{where}: label is {label!r}; expected a string or an integer")
    texts = next((row[name] for name in captions if row.get(name) not in _EMPTY), None)
    listed = [] if texts is None else texts if isinstance(texts, list) else [texts]
    if not all(isinstance(text, str) for text in listed):
        raise FormatError(f"{where}: the caption is {texts!r}; expected a string or a list of them")
    own = row.get(ID_COLUMN)
    return Words(
        None if label is None else clean(str(label)), _captions(listed), own if isinstance(own, str) and own else None
    )


def _join(first: Words, second: Words, name: str, where: str) -> Words:
    """Several rows of one image: its captions; one label."""
    labels = {words.label for words in (first, second)} - {None}
    if not second.captions or not first.captions or len(labels) > 1:
        raise FormatError(f"{where}: file_name {name!r} stands here a second time; keep one line an image")
    return Words(first.label or second.label, tuple(dict.fromkeys(first.captions + second.captions)), first.id)


def _read_rows(data: bytes, where: str) -> Iterator[tuple[int, Row]]:
    ending = where.rsplit(".", 1)[-1].lower()
    if ending == "parquet":
        yield from _read_parquet(data, where)
        return
    text = decode_text(data, where)
    if ending == "json":
        yield from _read_json(text, where)
    elif ending in ("jsonl", "ndjson"):
        yield from _read_jsonl(text, where)
    else:
        yield from _read_csv(text, where)


def _read_jsonl(text: str, where: str) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = parse_json(line, f"{where}, line {number}")
        if not isinstance(row, dict):
            raise FormatError(f'{where}, line {number}: expected an object such as {{"file_name": "1.png"}}')
        yield number, {_column(name): value for name, value in row.items()}


def _read_json(text: str, where: str) -> Iterator[tuple[int, Row]]:
    """COCO's {images, annotations}, a list of objects, or an object of captions, or of objects, by name."""
    found = parse_json(text, where)
    if isinstance(found, dict) and isinstance(found.get("annotations"), list):
        images = found.get("images")
        known = images if isinstance(images, list) else []
        pictures = {str(row.get("id")): row for row in known if isinstance(row, dict)}
        rows: Iterable[Any] = (
            {**pictures.get(str(row.get("image_id")), {}), **row} if isinstance(row, dict) else row
            for row in found["annotations"]
        )
    elif isinstance(found, dict):
        rows = (
            {NAME_COLUMNS[0]: name, **(texts if isinstance(texts, dict) else {"caption": texts})}
            for name, texts in found.items()
        )
    else:
        rows = found if isinstance(found, list) else ()
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise FormatError(f"{where}: entry {number} is no object with a file_name")
        yield number, {_column(name): value for name, value in row.items()}


def _read_csv(text: str, where: str) -> Iterator[tuple[int, Row]]:
    header = text.split("\n", 1)[0]
    if "\t" in header and _NUMBERED.search(header.split("\t", 1)[0]):  # Flickr's own file, without a header
        for number, line in enumerate(text.split("\n"), start=1):
            name, tab, caption = line.partition("\t")
            if tab:
                yield number, {NAME_COLUMNS[0]: _NUMBERED.sub("", name), "caption": caption}
        return
    delimiter = next((mark for mark in ",\t;|" if mark in header), ",")
    # Flickr30k's columns are parted by "| ", and its texts have quotes that mean nothing
    plain = {"quoting": csv.QUOTE_NONE} if delimiter == "|" else {}
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter, **plain)  # type: ignore[arg-type]
    last = 0  # line that was read well
    try:
        columns = [_column(name) for name in next(lines, [])]
        last = 1
        if not set(columns) & set(NAME_COLUMNS):
            raise FormatError(f"{where}, line 1: no column file_name; the first line names the columns")
        for values in lines:
            if values and len(values) != len(columns):
                raise FormatError(f"{where}, line {lines.line_num}: expected {len(columns)} fields")
            if values:
                pairs = zip(columns, values, strict=True)
                yield lines.line_num, {name: text.strip() if name in NAME_COLUMNS else text for name, text in pairs}
            last = lines.line_num
    except csv.Error as error:
        raise FormatError(f"{where}, line {last + 1}: not CSV ({error})") from None


def _read_parquet(data: bytes, where: str) -> Iterator[tuple[int, Row]]:
    from vqtool.images.sources.parquet import read_rows

    for number, row in enumerate(read_rows(data, where), start=1):
        yield number, {_column(name): value for name, value in row.items()}
