"""Reading HDF5 files that may come from anybody: HDF5 itself sees only what has been checked.

HDF5 follows what a file says: to other files (external links, virtual datasets, raw external storage), to filters that
are loaded as plugins, past the end of a compressed chunk that unpacks to less than it should (what lies behind its
buffer is then taken for data), and to any amount of memory for rows that were never written. So:

- Links, storage and filters of these kinds are refused.
- A dataset may claim no more than its file can hold: deflate packs 1,032 bytes into one at most.
- Chunks are read as they are stored, and unpacked and checked here.

Source: HDF5 File Format Specification 3.0 (filters: IV.A.2.l; Fletcher's checksum as in H5checksum.c).
"""

import os
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from vqtool.errors import FormatError, VqtoolError

MAX_RATIO = 1032  # of deflate: bytes out of one
SLACK = 1 << 20  # bytes that a file may stand for beyond that, as fill values do
MAX_CHUNK = 256 << 20  # bytes, unpacked
MAX_ATTRIBUTE = 64 << 20  # bytes
MAX_TEXT = 1 << 16  # bytes of one text
_CACHE = 64 << 20  # bytes of unpacked rows that are kept, at least one band of chunks
_DEFLATE, _SHUFFLE, _FLETCHER32 = 1, 2, 3
_NAMES = {4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf"}


@contextmanager
def reading(where: str, what: str = "") -> Iterator[None]:
    """Turn what HDF5, NumPy or a parser raises about damaged content into FormatError."""
    try:
        yield
    except VqtoolError:
        raise
    except BlockingIOError as error:
        raise FormatError(f"{where}: another program has it open for writing; wait until it is done") from error
    except Exception as error:  # h5py raises nearly anything on damaged files
        raise FormatError(f"{where}: damaged: {what}{error}") from error


@contextmanager
def open_hdf5(source: bytes | Path, name: str) -> Iterator[h5py.File]:
    """Open a whole HDF5 file, from memory or from disk, for reading.

    Raises:
        FormatError: HDF5 cannot open it.
    """
    with reading(name):
        file = h5py.File(h5py.h5f.open_file_image(source) if isinstance(source, bytes) else source, "r")
    with file:
        yield file


def stored_bytes(file: h5py.File) -> int:
    """How many bytes a file has; holes of a sparse one do not count."""
    size = int(file.id.get_filesize())
    if size <= SLACK or file.driver == "core":
        return size
    used = getattr(os.stat(file.filename), "st_blocks", size) * 512
    return size if used * 100 >= size else used


def find_dataset(file: h5py.File, name: str, where: str, *, sparse: bool = False) -> "Dataset | None":
    """A dataset in the root of a file, checked; None where there is none of that name.

    Args:
        file: open for reading.
        name: of the dataset.
        where: the file's name for messages.
        sparse: take one of which not all was written; the caller has to bound its rows.

    Raises:
        FormatError: it leads out of the file, has a filter that is not known, or claims more than is there.
    """
    with reading(where):
        link = file.get(name, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise FormatError(f"{where}: {name!r} is a link; links are not followed")
        found = file.get(name)
        if not isinstance(found, h5py.Dataset):
            raise FormatError(f"{where}: {name!r} is not a dataset")
        return Dataset(found, where, f"{name!r}", stored_bytes(file), sparse=sparse)


class Dataset:
    """Rows of a dataset, checked before they are read; made by `find_dataset`.

    Attributes:
        shape: of the dataset, (N, ...).
        dtype: numbers, fixed-length bytes, or objects for texts of variable length.
    """

    def __init__(self, dataset: h5py.Dataset, file: str, name: str, available: int, *, sparse: bool) -> None:
        self._dataset = dataset
        self._file, self._name = file, name
        self._where = where = f"{file}: {name}"
        self._bands: OrderedDict[int, NDArray[Any]] = OrderedDict()
        self.shape: tuple[int, ...] = dataset.shape or ()
        self.dtype = dataset.dtype
        self._is_text = h5py.check_string_dtype(self.dtype) is not None and self.dtype.kind == "O"
        kind = dataset.id.get_type()
        if not self.shape or self.dtype.kind not in "iufbSO" or (self.dtype.kind == "O" and not self._is_text):
            raise FormatError(f"{where} is {self.dtype} {self.shape}; rows of numbers or texts are expected")
        if self.dtype.kind in "iuf" and kind != h5py.h5t.py_create(self.dtype):
            raise FormatError(f"{where} has numbers of an unusual type")
        if self.dtype.kind == "S" and self.dtype.itemsize > MAX_TEXT:
            raise FormatError(f"{where} has texts of {self.dtype.itemsize} bytes, more than {MAX_TEXT}")
        self._item_bytes = 16 if self._is_text else kind.get_size()  # of texts of variable length: what leads to them
        self._check_storage(dataset.id.get_create_plist(), available, sparse=sparse)

    def _check_storage(self, settings: Any, available: int, *, sparse: bool) -> None:
        if settings.get_layout() == h5py.h5d.VIRTUAL or settings.get_external_count():
            raise FormatError(f"{self._where} is stored in other files, which are not read")
        num_bytes = prod(self.shape) * self._item_bytes
        if num_bytes > available * MAX_RATIO + SLACK:
            raise FormatError(f"{self._where}: {self.shape} cannot be in a file of {available} bytes")
        self._filters = [settings.get_filter(i)[0] for i in range(settings.get_nfilters())]
        unknown = [_NAMES.get(code, str(code)) for code in self._filters if code not in (1, 2, 3)]
        if unknown:
            raise FormatError(f"{self._where} is packed by {', '.join(unknown)}; gzip, shuffle and fletcher32 are read")
        if self._dataset.chunks is None:
            offset = self._dataset.id.get_offset()
            is_compact = settings.get_layout() == h5py.h5d.COMPACT
            if num_bytes and not is_compact and (offset is None or offset + num_bytes > available):
                raise FormatError(f"{self._where}: {self.shape} was never written, or is cut off")
            return
        chunk_bytes = prod(self._dataset.chunks) * self._item_bytes
        band_bytes = min(self._dataset.chunks[0], len(self)) * self.row_bytes
        if chunk_bytes > min(MAX_CHUNK, available * MAX_RATIO) or band_bytes > 4 * MAX_CHUNK:
            raise FormatError(f"{self._where} has chunks of {chunk_bytes} bytes")
        num = prod(-(-size // chunk) for size, chunk in zip(self.shape, self._dataset.chunks, strict=True))
        self._is_whole = num <= available and self._dataset.id.get_num_chunks() == num
        if not (self._is_whole or sparse):
            raise FormatError(f"{self._where}: not all of {self.shape} was ever written")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, unpacked."""
        return int(prod(self.shape[1:]) * self._item_bytes)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows start to stop, as many of them as there are.

        Raises:
            FormatError: damaged.
        """
        stop = min(stop, len(self))
        with reading(self._file, f"{self._name}: "):
            if self._dataset.chunks is None:
                return np.asarray(self._dataset[start:stop])
            height = self._dataset.chunks[0]
            bands = range(start // height, -(-stop // height)) if start < stop else range(0)
            parts = [self._band(i)[max(start - i * height, 0) : stop - i * height] for i in bands]
            if self._is_text:  # HDF5 may follow what has been found whole
                return np.asarray(self._dataset[start:stop])
            if stop == len(self):  # mostly the last that is read: nothing is kept of a file that is done
                self._bands.clear()
            if len(parts) == 1:
                return parts[0]
            return np.concatenate(parts) if parts else np.empty((0, *self.shape[1:]), self.dtype)

    def forget(self) -> None:
        """Give back the memory of unpacked rows that are kept for the next read."""
        self._bands.clear()

    def __len__(self) -> int:
        return self.shape[0]

    def _band(self, index: int) -> NDArray[Any]:
        """The rows of all chunks that begin at the same row."""
        if index in self._bands:
            self._bands.move_to_end(index)
            return self._bands[index]
        chunks, shape = self._dataset.chunks, self.shape
        stored = np.dtype(f"V{self._item_bytes}") if self._is_text else self.dtype
        height = min(chunks[0], shape[0] - index * chunks[0])
        band = None
        for place in product(*(range(0, size, step) for size, step in zip(shape[1:], chunks[1:], strict=True))):
            raw = self._unpack((index * chunks[0], *place), prod(chunks) * self._item_bytes)
            part = np.frombuffer(raw, stored).reshape(chunks)
            if chunks[1:] == shape[1:]:  # the only one
                band = part[:height]
                break
            band = np.empty((height, *shape[1:]), stored) if band is None else band
            sizes = [min(step, size - at) for at, step, size in zip(place, chunks[1:], shape[1:], strict=True)]
            target = (slice(None), *(slice(at, at + size) for at, size in zip(place, sizes, strict=True)))
            band[target] = part[tuple(map(slice, (height, *sizes)))]
        band = np.empty((height, *shape[1:]), stored) if band is None else band  # rows of nothing
        self._bands[index] = band
        band.setflags(write=False)
        while len(self._bands) > 1 and sum(each.nbytes for each in self._bands.values()) > _CACHE:
            self._bands.popitem(last=False)
        return band

    def _unpack(self, place: tuple[int, ...], size: int) -> Any:
        """The content of the chunk at a place, which has to be `size` bytes."""
        identifier = self._dataset.id
        if not self._is_whole and identifier.get_chunk_info_by_coord(place).byte_offset is None:
            return bytes(size)
        mask, raw = identifier.read_direct_chunk(place)
        for position in reversed(range(len(self._filters))):
            code = self._filters[position]
            if mask >> position & 1:
                continue
            if code == _FLETCHER32:
                raw = _without_checksum(raw)
            elif code == _DEFLATE:
                raw = _inflate(raw, size + 64)  # a checksum may come before this filter
            elif self._item_bytes > 1:
                num = len(raw) // self._item_bytes
                whole = num * self._item_bytes
                planes = np.frombuffer(raw, np.uint8, whole).reshape(self._item_bytes, num)
                raw = planes.T.tobytes() + bytes(raw[whole:]) if whole < len(raw) else planes.T.tobytes()
        if len(raw) != size:
            raise ValueError(f"the chunk at {place} unpacks to {len(raw)} bytes, not {size}")
        return raw


def _inflate(raw: bytes | memoryview, most: int) -> memoryview:
    """What a chunk unpacks to, `most` bytes; in steps, as zlib needs twice the memory for all at once."""
    inflate, unpacked, done = zlib.decompressobj(), bytearray(most), 0
    while not inflate.eof:
        part = inflate.decompress(raw, max(1 << 16, most >> 3))
        if (not part and not inflate.eof) or done + len(part) > most:
            raise ValueError("a chunk unpacks to more than it should, or is cut short")
        unpacked[done : done + len(part)] = part
        done += len(part)
        raw = inflate.unconsumed_tail
    return memoryview(unpacked)[:done]


def _without_checksum(raw: bytes) -> memoryview:
    """A chunk without the four bytes of its checksum, which is compared."""
    data, stored = memoryview(raw)[:-4], int.from_bytes(raw[-4:], "little")
    found = fletcher32(data)
    swapped = ((found & 0x00FF00FF) << 8) | ((found >> 8) & 0x00FF00FF)  # as HDF5 before 1.6.3 wrote it
    if len(raw) < 4 or stored not in (found, swapped):
        raise ValueError("the checksum of a chunk is wrong")
    return data


def fletcher32(data: bytes | memoryview) -> int:
    """Fletcher's checksum as HDF5 has it: two sums modulo 65535 over big-endian words of 16 bits."""
    words = np.frombuffer(bytes(data) + b"\0" if len(data) % 2 else data, ">u2")
    first = second = 0
    for start in range(0, len(words), 1 << 14):  # sums of so many words stay far below 2**64
        part = words[start : start + (1 << 14)].astype(np.uint64)
        weights = np.arange(len(part), 0, -1, dtype=np.uint64)
        second = _folded(second + first * len(part) + int((part * weights).sum()))
        first = _folded(first + int(part.sum()))
    return second << 16 | first


def _folded(value: int) -> int:
    """Modulo 65535, but 65535 in place of 0 unless the value is 0."""
    return (value - 1) % 65535 + 1 if value else 0


def read_number(file: h5py.File, name: str, where: str, low: int, high: int) -> int:
    """An attribute of the root that is an integer in [low, high].

    Raises:
        FormatError: it is not there, or something else.
    """
    value = _read_attribute(file, name, where)
    if not isinstance(value, np.integer) or not low <= int(value) <= high:
        raise FormatError(f"{where}: damaged: its {name} is {str(value)[:40]!r}, not a number from {low} to {high}")
    return int(value)


def read_numbers(file: h5py.File, name: str, where: str, num: int, low: int, high: int) -> tuple[int, ...]:
    """An attribute of the root that is `num` integers in [low, high]; raises FormatError as `read_number` does."""
    value = _read_attribute(file, name, where)
    if getattr(value, "shape", None) != (num,) or value.dtype.kind not in "iu":
        raise FormatError(f"{where}: damaged: its {name} is {str(value)[:40]!r}, not {num} numbers")
    numbers = tuple(map(int, value))
    if not all(low <= number <= high for number in numbers):
        raise FormatError(f"{where}: damaged: its {name} {numbers} is not from {low} to {high}")
    return numbers


def read_text(file: h5py.File, name: str, where: str) -> str:
    """An attribute of the root that is UTF-8 text; raises FormatError as `read_number` does."""
    value = _read_attribute(file, name, where)
    if not isinstance(value, str | bytes):
        raise FormatError(f"{where}: damaged: its {name} is {str(value)[:40]!r}, not a text")
    with reading(where):
        data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value)
        return data.decode()  # h5py takes what is no UTF-8 for surrogates


def _read_attribute(file: h5py.File, name: str, where: str) -> Any:
    with reading(where):
        if not h5py.h5a.exists(file.id, name.encode()):
            raise FormatError(f"{where}: damaged: it has no {name}")
        size = h5py.h5a.open(file.id, name.encode()).get_storage_size()
        if size > min(MAX_ATTRIBUTE, stored_bytes(file)):
            raise FormatError(f"{where}: damaged: its {name} has {size} bytes")
        return file.attrs[name]
