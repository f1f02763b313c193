"""HDF5 of images: dataset `images` (N, 3, h, w), (N, h, w, 3) or (N, h, w) uint8; optional `id`, `label`, `caption`."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import FormatError, VqtoolError
from vqtool.images.sources.items import Entry

HDF5_ENDINGS = (".h5", ".hdf5")
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_CACHE_CHUNKS = 4  # chunks kept, so that threads a few rows apart do not decompress the same chunk again and again
_CACHE_LIMIT = 256 << 20  # bytes
_LAYOUTS = "(N, 3, height, width), (N, height, width, 3) or (N, height, width)"


class ArrayFile:
    """One HDF5 file of images, opened when first read; rows are read one by one, from any thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._images: Any = None  # an h5py dataset

    def read(self, row: int) -> NDArray[np.uint8]:
        """Read one image as (h, w, 3)."""
        try:
            with self._lock:
                if self._images is None:
                    self._images = _open_cached(self.path)
                pixels = self._images[row]
        except (OSError, RuntimeError, KeyError) as error:
            raise FormatError(f"{self.path}, row {row}: cannot be read ({error})") from error
        if pixels.ndim == 2:
            return np.repeat(pixels[:, :, None], 3, axis=2)
        return np.moveaxis(pixels, 0, 2) if _channels_first(self._images.shape) else np.asarray(pixels)


@dataclass(frozen=True)
class ArrayRow:
    """An image in an HDF5 file."""

    file: ArrayFile
    row: int

    def open(self) -> NDArray[np.uint8]:
        """Read the row's pixels (h, w, 3)."""
        return self.file.read(self.row)

    def __str__(self) -> str:
        return f"{self.file.path}, row {self.row}"


def find_in_hdf5(path: Path) -> list[Entry]:
    """All images of an HDF5 file, in its order.

    Raises:
        FormatError: not an HDF5 of images, or its parts do not fit together.
        VqtoolError: it holds no images.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            count = _check_images(file, path)
            columns = {name: _read_strings(file, name, count, path) for name in ("id", "label", "caption")}
    except (OSError, RuntimeError) as error:
        raise FormatError(f"{path}: not a whole HDF5 file ({error})") from error
    if count == 0:
        raise VqtoolError(f"{path}: its dataset `images` has no rows")
    source = ArrayFile(path)
    ids = [name or f"{row:0{len(str(count - 1))}d}" for row, name in enumerate(columns["id"])]
    return [
        Entry((ids[row],), ArrayRow(source, row), columns["label"][row], columns["caption"][row])
        for row in range(count)
    ]


def _check_images(file: Any, path: Path) -> int:
    """Number of images; raises where they are not in a layout that can be read."""
    import h5py

    images = file.get("images")
    if not isinstance(images, h5py.Dataset):
        hint = "; it holds token grids: decode them first" if "tokens" in file else ""
        raise FormatError(f"{path}: has no dataset `images`{hint}")
    shape: tuple[int, ...] = images.shape or ()
    known = len(shape) == 3 or (len(shape) == 4 and 3 in (shape[1], shape[3]))
    if not known or 0 in shape[1:] or images.dtype != np.uint8:
        raise FormatError(f"{path}: `images` is {images.dtype} {shape}; expected uint8 {_LAYOUTS}")
    return int(shape[0])


def _read_strings(file: Any, name: str, count: int, path: Path) -> list[str | None]:
    """A column of strings or integers; None where it is absent or empty."""
    if name not in file:
        return [None] * count
    column = file[name]
    if getattr(column, "shape", None) != (count,):
        raise FormatError(f"{path}: `{name}` has shape {getattr(column, 'shape', None)}; expected ({count},)")
    values = column[()]
    if values.dtype.kind not in "OSUiu":
        raise FormatError(f"{path}: `{name}` is {values.dtype}; expected strings or integers")
    texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values]
    return [text or None for text in texts]


def _channels_first(shape: tuple[int, ...]) -> bool:
    return shape[1] == 3


def _open_cached(path: Path) -> Any:
    """The dataset `images`, with a chunk cache that holds a few of its chunks."""
    import h5py

    with h5py.File(path, "r") as file:
        chunks, shape = file["images"].chunks, file["images"].shape
    if chunks is None:
        return h5py.File(path, "r")["images"]
    across = int(np.prod([-(-size // chunk) for size, chunk in zip(shape[1:], chunks[1:], strict=True)]))
    size = min(_CACHE_LIMIT, max(1 << 20, int(np.prod(chunks)) * across * _CACHE_CHUNKS))
    return h5py.File(path, "r", rdcc_nbytes=size)["images"]
