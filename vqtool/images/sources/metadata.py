"""Labels and captions beside images: metadata.jsonl, metadata.csv (Hugging Face imagefolder), .txt, .cls, .json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqtool.errors import FormatError

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class Words:
    """What is said of one image."""

    label: str | None = None
    caption: str | None = None


def read_metadata(path: Path) -> dict[str, Words]:
    """Read metadata.jsonl or metadata.csv: file name as written there -> its words.

    Raises:
        FormatError: a line that cannot be read, has no file_name or repeats one; names file and line.
    """
    text = decode_text(path.read_bytes(), str(path))
    rows = _read_csv(text, path) if path.suffix.lower() == ".csv" else _read_jsonl(text, path)
    words: dict[str, Words] = {}
    for number, row in rows:
        where = f"{path}, line {number}"
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise FormatError(f"{where}: no file_name; every line needs the image's path relative to this file")
        if name in words:
            raise FormatError(f"{where}: file_name {name!r} stands here a second time; keep one line an image")
        words[name] = _read_row(row, where)
    return words


def read_sidecar(text: str, where: str) -> Words:
    """Words of a webdataset .json; keys it does not know and values of other types are left alone."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        return Words()
    label = next((row[key] for key in ("label", "cls") if _is_label(row.get(key))), None)
    caption = next((row[key] for key in ("caption", "text") if isinstance(row.get(key), str)), None)
    return Words(None if label is None else str(label), clean(caption))


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


def _read_row(row: dict[str, Any], where: str) -> Words:
    label = row.get("label")
    if label is not None and label != "" and not _is_label(label):
        raise FormatError(f"{where}: label is {label!r}; expected a string or an integer")
    captions = [row[key] for key in ("text", "caption") if row.get(key) is not None]
    if not all(isinstance(caption, str) for caption in captions):
        raise FormatError(f"{where}: the caption is {captions[0]!r}; expected a string")
    return Words(None if label is None else clean(str(label)), clean(captions[0]) if captions else None)


def _read_jsonl(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise FormatError(f'{path}, line {number}: expected an object such as {{"file_name": "1.png"}}')
        yield number, row


def _read_csv(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if "file_name" not in (reader.fieldnames or ()):
            raise FormatError(f"{path}, line 1: no column file_name; the first line names the columns")
        for row in reader:
            if None in row or None in row.values():
                raise FormatError(f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or ())} fields")
            yield reader.line_num, row
    except csv.Error as error:
        # line_num is the last line that was read well
        raise FormatError(f"{path}, line {reader.line_num + 1}: not CSV ({error})") from None
