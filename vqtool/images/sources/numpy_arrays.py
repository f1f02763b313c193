"""NumPy arrays of images: x.npy, or x.npz with `images` and words as in an HDF5 of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import FormatError, VqtoolError, warn
from vqtool.images.sources.arrays import COLUMNS, as_pixels, as_texts, check_array, make_rows
from vqtool.images.sources.items import Entry

Columns = dict[str, list[tuple[str, ...]] | None]

NUMPY_ENDINGS = (".npy", ".npz")
_MOST_BYTES = 8 << 30  # of the images in a .npz, which are unpacked in memory


@dataclass(frozen=True, eq=False)
class NumpyRow:
    """An image in an array."""

    images: NDArray[np.uint8]
    row: int
    path: Path

    def open(self) -> NDArray[np.uint8]:
        """The row's pixels (h, w, 3)."""
        return as_pixels(self.images[self.row], self.images.shape)

    def __str__(self) -> str:
        return f"{self.path}, row {self.row}"


def find_in_numpy(path: Path, *, words: bool = True, split: str | None = None) -> list[Entry]:
    """All images of a .npy or .npz file, in its order.

    Args:
        path: of the file. The array of a .npz is `images`, or the only one that can be images, or `x_train` or
            `train_images` with a split.
        words: read labels and captions too.
        split: train, val or test.

    Raises:
        FormatError: not an array of images, or its parts do not fit together.
        VqtoolError: it holds no images, or several arrays of them.
    """
    try:
        # A .npy is mapped: only the images that are asked for are read. Pickled objects are refused by NumPy.
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.ndarray):
            check_array(found.shape, found.dtype, str(path))
            images, columns = found, Columns()
        else:
            with found:
                images, columns = _read_archive(found, path, words, split)
    except (OSError, ValueError, EOFError, BadZipFile, KeyError) as error:
        raise FormatError(f"{path}: not a whole array of images ({error})") from error
    if not len(images):
        raise VqtoolError(f"{path}: it has no images")
    return make_rows(lambda row: NumpyRow(images, row, path), len(images), columns)


def _read_archive(archive: Any, path: Path, words: bool, split: str | None) -> tuple[NDArray[np.uint8], Columns]:
    from zipfile import ZipFile

    with ZipFile(path) as members:
        sizes = {info.filename.removesuffix(".npy"): info.file_size for info in members.infolist()}
    wanted = (f"{split}_images", f"x_{split}") if split else ("images",)
    name = next((known for known in wanted if known in archive.files), None)
    if name is None and split is None:
        large = [each for each in archive.files if "image" in each.lower() or each.lower().startswith(("x", "arr_"))]
        name = large[0] if len(large) == 1 else None
    if name is None:
        raise VqtoolError(
            f"{path}: call its array of images `images` (it holds {', '.join(archive.files)}), or give `split`"
        )
    if sizes.get(name, 0) > _MOST_BYTES:
        raise FormatError(f"{path}: `{name}` unpacks to {sizes[name]:,} bytes, more than {_MOST_BYTES:,}: save a .npy")
    images = archive[name]
    count = check_array(images.shape, images.dtype, f"{path}: `{name}`")
    columns: Columns = {}
    if not words:
        return images, columns
    used = {name}
    for kind in COLUMNS:
        place = next((each for each in _column_names(name, kind) if each in archive.files), None)
        if place is not None:
            used.add(place)
            values = archive[place]
            if kind == "label" and values.ndim == 2 and values.shape[1] == 1:
                values = values[:, 0]
            columns[kind] = as_texts(values, count, f"{path}: `{place}`")
    others = [each for each in archive.files if each not in used]
    if others:
        warn(f"{path}: {', '.join(others)} are not used; known are {', '.join(sum(COLUMNS.values(), ()))}")
    return images, columns


def _column_names(images: str, kind: str) -> tuple[str, ...]:
    """What the array of labels is called beside images, train_images or x_train; likewise ids and captions."""
    if images.startswith("x_"):
        return (f"y_{images[2:]}",) if kind == "label" else ()
    prefix = images.removesuffix("images") if images.endswith("images") else ""
    return tuple(f"{prefix}{name}" for name in COLUMNS[kind])
