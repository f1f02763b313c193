"""HDF5 of images: dataset `images` (N, 3, h, w), (N, h, w, 3) or (N, h, w) uint8; optional `id`, `label`, `caption`.

The last three may also be called as in COLUMNS. A caption of shape (N, C) is several captions an image.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import FormatError, VqtoolError, warn
from vqtool.images.pixels import check_num_pixels
from vqtool.images.sources.items import Origin, Words
from vqtool.images.sources.packed import Group, TextRows

if TYPE_CHECKING:
    from vqtool.hdf5 import Dataset

HDF5_ENDINGS = (".h5", ".hdf5")
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
COLUMNS = {
    "id": ("id", "ids"),
    "label": ("label", "labels", "class", "classes"),
    "caption": ("caption", "captions", "text", "texts", "prompt", "prompts"),
}
WORDS = ("label", "caption")
_READ = 1 << 16  # texts at a time
_LAYOUTS = "(N, 3, height, width), (N, height, width, 3) or (N, height, width)"


class ArrayFile:
    """One HDF5 file of images, opened when first read; rows are read one by one, from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._images: Dataset | None = None

    def read(self, row: int) -> NDArray[np.uint8]:
        """Read one image as (h, w, 3)."""
        import h5py

        from vqtool.hdf5 import reading

        with self._lock, reading(f"{self.path}, row {row}"):
            if self._images is None:
                self._images = _find_images(h5py.File(self.path, "r"), self.path)
            return as_pixels(self._images.read(row, row + 1)[0], self._images.shape)


@dataclass(frozen=True, slots=True)
class ArrayRow:
    """An image in an HDF5 file."""

    file: ArrayFile
    row: int

    @property
    def num_bytes(self) -> None:
        """Not known."""

    def open(self) -> NDArray[np.uint8]:
        """Read the row's pixels (h, w, 3)."""
        return self.file.read(self.row)

    def __str__(self) -> str:
        return f"{self.file.path}, row {self.row}"


def find_in_hdf5(path: Path, words: Collection[str] = WORDS) -> Group:
    """All images of an HDF5 file, in its order.

    Args:
        path: of the file.
        words: what is read of "label" and "caption", besides ids.

    Raises:
        FormatError: not an HDF5 of images, or its parts do not fit together.
        VqtoolError: it holds no images.
    """
    from vqtool.hdf5 import open_hdf5

    with open_hdf5(path, str(path)) as file:
        count = _find_images(file, path).shape[0]
        names = {kind: next((n for n in known if n in file), known[0]) for kind, known in COLUMNS.items()}
        columns = {kind: _read_strings(file, names[kind], count, path) for kind in ("id", *words)}
        if len(words) == len(WORDS):
            _tell_unused(file, path, count, {"images", *names.values()})
    if count == 0:
        raise VqtoolError(f"{path}: its dataset 'images' has no rows")
    source = ArrayFile(path)
    return make_rows(lambda row: ArrayRow(source, row), count, columns)


def make_rows(
    origin: Callable[[int], Origin], count: int, columns: Mapping[str, Sequence[tuple[str, ...]] | None]
) -> Group:
    """The images that are rows of a table.

    Args:
        origin: where the image of a row lies.
        count: rows.
        columns: texts of each row by "id", "label", "caption"; None or absent where there are none.
    """
    width = len(str(count - 1))
    ids, labels, captions = (columns.get(kind) for kind in ("id", "label", "caption"))
    ids = None if ids is None else TextRows(ids)

    def names(row: int) -> tuple[str, ...]:
        return (ids and ids[row][:1]) or (f"{row:0{width}d}",)

    def words(row: int) -> Words:
        label = labels[row][0] if labels and labels[row] else None
        return Words(label, captions[row] if captions else ())

    return Group(count, names, origin, map(words, range(count)) if labels or captions else None)


def check_array(shape: tuple[int, ...], dtype: Any, where: str) -> int:
    """Number of images in an array.

    Raises:
        FormatError: its layout or type is not one of images, or they have too many pixels.
    """
    known = len(shape) == 3 or (len(shape) == 4 and 3 in (shape[1], shape[3]))
    if not known or 0 in shape[1:] or dtype != np.uint8:
        raise FormatError(f"{where} is {dtype} {shape}; expected uint8 {_LAYOUTS}")
    sides = shape[2:] if _channels_first(shape) and len(shape) == 4 else shape[1:3]
    try:
        check_num_pixels(sides[0], sides[1])
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from error
    return int(shape[0])


def as_pixels(image: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """One image of an array of the given shape as (h, w, 3)."""
    if image.ndim == 2:
        return np.repeat(image[:, :, None], 3, axis=2)
    return np.moveaxis(image, 0, 2) if _channels_first(shape) else np.asarray(image)


def as_texts(values: NDArray[Any], count: int, where: str, *, several: bool) -> list[tuple[str, ...]]:
    """A column of strings or integers, (N,) or, of captions, several a row, as texts; empty ones are left out.

    Raises:
        FormatError: another shape or type.
    """
    if values.ndim not in (1, 2) or len(values) != count or not (several or values.size == count):
        raise FormatError(f"{where} has shape {values.shape}; expected ({count},)")
    if values.dtype.kind not in "OSUiu":
        raise FormatError(f"{where} is {values.dtype}; expected strings or integers")
    rows = values.reshape(count, -1)
    return [tuple(dict.fromkeys(filter(None, map(_as_text, row)))) for row in rows]


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _find_images(file: Any, path: Path) -> Dataset:
    """The dataset of images; raises where it is not in a layout that can be read."""
    from vqtool.hdf5 import find_dataset

    images = find_dataset(file, "images", str(path))
    if images is None:
        hint = "; it holds token grids: decode them first" if "tokens" in file else ""
        raise FormatError(f"{path}: has no dataset 'images'{hint}")
    check_array(images.shape, images.dtype, f"{path}: 'images'")
    return images


def _read_strings(file: Any, name: str, count: int, path: Path) -> TextRows | None:
    """A column of strings or integers; None where it is absent."""
    from vqtool.hdf5 import find_dataset

    where = f"{path}: {name!r}"
    column = find_dataset(file, name, str(path))
    if column is None:
        return None
    if len(column.shape) not in (1, 2) or len(column) != count:
        raise FormatError(f"{where} has shape {column.shape}; expected ({count},)")
    several, found = name in COLUMNS["caption"], TextRows()
    for start in range(0, count, _READ):
        values = column.read(start, min(start + _READ, count))
        for row in as_texts(values, len(values), where, several=several):
            found.append(row)
    return found


def _tell_unused(file: Any, path: Path, count: int, used: set[str]) -> None:
    """Name datasets with a row an image that were not taken for words."""
    others = [name for name in file if name not in used and _num_rows(file, name) == count]
    if others:
        warn(f"{path}: {', '.join(others)} are not used; known are {', '.join(sum(COLUMNS.values(), ()))}")


def _num_rows(file: Any, name: str) -> int:
    """How many rows a dataset has; 0 for anything else, such as a link to another file."""
    import h5py

    found = file.get(name) if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    return (getattr(found, "shape", None) or (0,))[0]


def _channels_first(shape: tuple[int, ...]) -> bool:
    return shape[1] == 3
