"""NumPy arrays of images: x.npy, or x.npz with `images` and words as in an HDF5 of images."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from numpy.typing import NDArray

from vqtool.errors import FormatError, VqtoolError, warn
from vqtool.images.sources.arrays import COLUMNS, WORDS, as_pixels, as_texts, check_array, make_rows
from vqtool.images.sources.packed import Group
from vqtool.trust import check_file, check_size

Columns = dict[str, list[tuple[str, ...]] | None]

NUMPY_ENDINGS = (".npy", ".npz")
MOST_ANYWAY = 1 << 30  # bytes that an array of a .npz, which is unpacked in memory, may have whatever it is packed to


@dataclass(frozen=True, slots=True)
class NumpyRow:
    """An image in an array."""

    images: NDArray[np.uint8] = field(compare=False)
    row: int
    path: Path

    @property
    def num_bytes(self) -> None:
        """Not known."""

    def open(self) -> NDArray[np.uint8]:
        """The row's pixels (h, w, 3)."""
        return as_pixels(self.images[self.row], self.images.shape)

    def __str__(self) -> str:
        return f"{self.path}, row {self.row}"


def find_in_numpy(path: Path, words: Collection[str] = WORDS, *, split: str | None = None) -> Group:
    """All images of a .npy or .npz file, in its order.

    Args:
        path: of the file. The array of a .npz is `images`, or the only one that can be images, or `x_train` or
            `train_images` with a split.
        words: what is read of "label" and "caption".
        split: train, val or test.

    Raises:
        FormatError: not an array of images, or its parts do not fit together.
        VqtoolError: it holds no images, or several arrays of them.
    """
    check_file(path)
    try:
        # A .npy is mapped: only the images that are asked for are read. Pickled objects are refused by NumPy.
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(found, np.ndarray):
            check_array(found.shape, found.dtype, str(path))
            images, columns = found, Columns()
        else:
            with found:
                images, columns = _read_archive(found, path, words, split)
    except VqtoolError:
        raise
    except Exception as error:  # NumPy raises nearly anything on damaged headers
        raise FormatError(f"{path}: not a whole file of NumPy arrays ({error})") from error
    if not len(images):
        raise VqtoolError(f"{path}: it has no images")
    return make_rows(lambda row: NumpyRow(images, row, path), len(images), columns)


def _read_archive(
    archive: Any, path: Path, words: Collection[str], split: str | None
) -> tuple[NDArray[np.uint8], Columns]:
    wanted = (f"{split}_images", f"x_{split}") if split else ("images",)
    name = next((known for known in wanted if known in archive.files), None)
    if name is None and split is None:
        large = [each for each in archive.files if "image" in each.lower() or each.lower().startswith(("x", "arr_"))]
        name = large[0] if len(large) == 1 else None
    if name is None:
        raise VqtoolError(
            f"{path}: call its array of images 'images' (it holds {', '.join(archive.files)}), or give `split`"
        )
    images = read_member(archive, path, name)
    count = check_array(images.shape, images.dtype, f"{path}: {name!r}")
    columns: Columns = {}
    used = {name}
    for kind in ("id", *words):
        place = next((each for each in _column_names(name, kind) if each in archive.files), None)
        if place is not None:
            used.add(place)
            values = read_member(archive, path, place)
            columns[kind] = as_texts(values, count, f"{path}: {place!r}", several=kind == "caption")
    others = [each for each in archive.files if each not in used]
    if others and len(words) == len(WORDS):
        warn(f"{path}: {', '.join(others)} are not used; known are {', '.join(sum(COLUMNS.values(), ()))}")
    return images, columns


def read_member(archive: Any, path: Path, name: str) -> NDArray[Any]:
    """One array of a .npz, after its claims have been compared with what is stored.

    Raises:
        FormatError: it claims more than there is.
    """
    where, info = f"{path}: {name!r}", _member(archive, name)
    if info.file_size > MOST_ANYWAY:
        check_size(info.file_size, info.compress_size, where)
    shape, dtype = read_header(archive, path, name)
    if prod(shape) * dtype.itemsize > info.file_size:
        raise FormatError(f"{where}: {shape} of {dtype} cannot be in {info.file_size:,} bytes")
    found: NDArray[Any] = archive[name]
    return found


def read_header(archive: Any, path: Path, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of one array of a .npz, as its header claims them.

    Raises:
        FormatError: it is no array.
    """
    with archive.zip.open(_member(archive, name)) as file:
        read = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}.get(read_magic(file))
        if read is None:
            raise FormatError(f"{path}: {name!r}: not an array that NumPy wrote")
        shape, _, dtype = read(file)
    return shape, dtype


def _member(archive: Any, name: str) -> Any:
    return archive.zip.getinfo(next(each for each in (f"{name}.npy", name) if each in archive.zip.namelist()))


def _column_names(images: str, kind: str) -> tuple[str, ...]:
    """What the array of labels is called beside images, train_images or x_train; likewise ids and captions."""
    if images.startswith("x_"):
        return (f"y_{images[2:]}",) if kind == "label" else ()
    prefix = images.removesuffix("images") if images.endswith("images") else ""
    return tuple(f"{prefix}{name}" for name in COLUMNS[kind])
