"""Parquet files with the bytes of images, such as data sets of Hugging Face; read by pyarrow (extra `parquet`)."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vqtool.errors import FormatError, VqtoolError, warn
from vqtool.extras import install_command
from vqtool.images.sources.arrays import WORDS, make_rows
from vqtool.images.sources.packed import Group
from vqtool.images.sources.tables import CAPTION_COLUMNS, LABEL_COLUMNS

PARQUET_ENDINGS = (".parquet",)
_DAMAGE = (OSError, ValueError, NotImplementedError, LookupError, TypeError, RuntimeError, MemoryError)
_IMAGE_COLUMNS = ("image", "img", "images", "png", "jpg", "picture")


class ParquetFile:
    """One parquet file, read a group of rows at a time; reading is safe from several threads.

    Raises:
        FormatError: not a parquet file, or damaged.
    """

    def __init__(self, path: Path) -> None:
        pyarrow = _import()
        self.path = path
        self._lock = threading.Lock()
        try:
            self.file = pyarrow.ParquetFile(path)
        except _DAMAGE as error:
            raise FormatError(f"{path}: not a whole parquet file ({error})") from error
        groups = range(self.file.metadata.num_row_groups)
        self._starts = [0]
        for group in groups:
            self._starts.append(self._starts[-1] + self.file.metadata.row_group(group).num_rows)
        self._held: tuple[int, str, Any] = (-1, "", None)  # the group that was read last

    def column(self, name: str) -> list[Any]:
        """A column whole."""
        try:
            return list(self.file.read(columns=[name]).column(0).to_pylist())
        except _DAMAGE as error:
            raise FormatError(f"{self.path}: {name} cannot be read ({error})") from error

    def read(self, row: int, column: str) -> Any:
        """One value."""
        group = next(i for i, start in enumerate(self._starts[1:]) if row < start)
        with self._lock:
            if self._held[:2] != (group, column):
                try:
                    self._held = group, column, self.file.read_row_group(group, columns=[column]).column(0)
                except _DAMAGE as error:
                    raise FormatError(f"{self.path}, row {row}: cannot be read ({error})") from error
            return self._held[2][row - self._starts[group]].as_py()


@dataclass(frozen=True, slots=True)
class ParquetRow:
    """An image in a parquet file."""

    file: ParquetFile
    row: int
    column: str

    @property
    def num_bytes(self) -> None:
        """Not known."""

    def open(self) -> BinaryIO:
        """Read the row's image."""
        value = self.file.read(self.row, self.column)
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise FormatError(f"{self}: holds no bytes of an image")
        return io.BytesIO(data)

    def __str__(self) -> str:
        return f"{self.file.path}, row {self.row}"


def find_in_parquet(path: Path, words: Collection[str] = WORDS) -> Group:
    """All images of a parquet file, in its order; names of classes are those that Hugging Face writes beside them.

    Args:
        path: of the file.
        words: what is read of "label" and "caption".

    Raises:
        FormatError: not a parquet file, or damaged.
        VqtoolError: no column of images, or pyarrow is not installed.
    """
    source = ParquetFile(path)
    names = source.file.schema_arrow.names
    column = next((name for name in _IMAGE_COLUMNS if name in names), None)
    if column is None:
        raise VqtoolError(f"{path}: none of its columns is image or the like; there are {', '.join(names)}")
    count = source.file.metadata.num_rows
    if not count:
        raise VqtoolError(f"{path}: it has no rows")
    columns: dict[str, list[tuple[str, ...]] | None] = {}
    if words:
        known = {"label": LABEL_COLUMNS, "caption": CAPTION_COLUMNS}
        picked = {kind: next((name for name in known[kind] if name in names), None) for kind in words}
        classes = _class_names(source.file.schema_arrow.metadata, picked.get("label"))
        for kind, name in picked.items():
            if name is not None:
                values = source.column(name)
                where, several = f"{path}: {name!r}", kind == "caption"
                columns[kind] = [
                    _texts(value, None if several else classes, where, several=several) for value in values
                ]
        others = [name for name in names if name not in (column, *picked.values())]
        if others and len(words) == len(WORDS):
            warn(f"{path}: columns {', '.join(others)} are not used; known are text, caption, prompt and label")
    return make_rows(lambda row: ParquetRow(source, row, column), count, columns)


def read_rows(data: bytes, where: str) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file without images.

    Raises:
        FormatError: not a parquet file, or damaged.
    """
    try:
        yield from _import().read_table(io.BytesIO(data)).to_pylist()
    except _DAMAGE as error:
        raise FormatError(f"{where}: not a whole parquet file ({error})") from error


def _texts(value: Any, classes: list[str] | None, where: str, *, several: bool) -> tuple[str, ...]:
    if isinstance(value, list) and several and all(isinstance(text, str) for text in value):
        return tuple(filter(None, value))
    if isinstance(value, list | dict | bytes | float):
        expected = "a string, or a list of them" if several else "a string or an integer"
        raise FormatError(f"{where}: {str(value)[:60]!r} stands in a row; expected {expected}")
    if classes is not None and isinstance(value, int) and 0 <= value < len(classes):
        return (classes[value],)
    return () if value is None or value == "" else (str(value),)


def _class_names(metadata: dict[bytes, bytes] | None, column: str | None) -> list[str] | None:
    """Of Hugging Face's ClassLabel, which stores numbers."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[column]["names"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _import() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise VqtoolError(f"parquet needs pyarrow: {install_command('parquet')}") from error
    return parquet
