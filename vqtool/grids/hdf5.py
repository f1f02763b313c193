"""HDF5 files of token grids, whole ones and chunks of a stream: what stands where in them."""

import io
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from numpy.typing import NDArray

from vqtool.errors import FormatError, VqtoolError
from vqtool.grids._full_disk import LIBVER, HDF5Output, create_hdf5, uninterrupted
from vqtool.grids.batch import FORMAT, TEXTS, GridBatch, GridHeader, Place, SequenceState, clean_text, join_batches

FORMAT_VERSION = 2  # of grids with masked cells; all others are version 1
CHUNK_GRIDS = 256
CHUNK_BYTES = 1 << 19  # below the chunk cache of HDF5 (1 MB), or every small append compresses its chunk again
SYNC_SECONDS = 1.0  # a power cut may take so much of a journal
FILTERS: dict[str, Any] = {"shuffle": True, "compression": "gzip", "compression_opts": 1, "fletcher32": True}


class ChunkFile:
    """An output that complete HDF5 files are appended to: a pipe, a device, a journal."""

    def __init__(self, output: BinaryIO, header: GridHeader, *, durable: bool = False) -> None:
        """Start a sequence.

        Args:
            output: open for writing.
            header: what the grids have in common.
            durable: wait until the disk has what is written, once a second and for the first chunk.
        """
        self._output = output
        self._header = header
        self._durable = durable
        self._synced = -math.inf

    def append(self, batch: GridBatch, place: Place) -> None:
        """Write the next grids; they have left when this returns."""
        self._output.write(encode_chunk(self._header, batch, place))
        self._output.flush()
        if self._durable and time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._output.fileno())
            self._synced = time.monotonic()

    def finish(self, place: Place) -> None:
        """Write a chunk without grids, which says that it is the last."""
        self.append(join_batches(self._header, []), place)


def encode_chunk(header: GridHeader, batch: GridBatch, place: Place) -> bytes:
    """The bytes of a complete HDF5 file with these grids."""
    image = io.BytesIO()  # not the "core" driver: before h5py 3.16 its image has a superblock with a wrong checksum
    with h5py.File(image, "w", libver=LIBVER) as file:
        rows = len(batch)
        options = {"chunks": (min(_chunk_rows(header), rows), *header.grid_size), **FILTERS} if rows else {}
        file.create_dataset("tokens", data=batch.tokens, dtype=header.dtype, **options)
        for name, column in batch.texts.items():
            if name == "id" or column is not None:
                texts = _encoded(column or [])
                file.create_dataset(name, data=texts, **({"chunks": _text_chunks(texts), **FILTERS} if rows else {}))
        _write_attributes(file, header, place)
    return image.getvalue()


class GrowingFile:
    """One HDF5 file on disk that grows by appending; made by `create_grid_file`."""

    def __init__(self, output: HDF5Output, header: GridHeader) -> None:
        self._output = output
        self._file = output.file
        self._header = header
        self._num_written = 0
        self._waiting: list[GridBatch] = []  # less than a chunk: a chunk is compressed once
        size = header.grid_size
        options = {"maxshape": (None, *size), "chunks": (_chunk_rows(header), *size), **FILTERS}
        with uninterrupted():
            self._file.create_dataset("tokens", (0, *size), header.dtype, **options)
            self._make_room("id", np.dtype("S1"))

    def append(self, batch: GridBatch, place: Place) -> None:
        """Write the next grids.

        Raises:
            OSError: the disk is full, or whatever else made a write fail.
        """
        self._waiting.append(batch)
        waiting = sum(map(len, self._waiting))
        if waiting >= _chunk_rows(self._header):
            self._write(waiting - waiting % _chunk_rows(self._header))

    def finish(self, place: Place) -> None:
        """Write what still waits, and the attributes."""
        self._write(sum(map(len, self._waiting)))
        with uninterrupted():
            _write_attributes(self._file, self._header, replace(place, index=0))  # the only one of its sequence

    def _write(self, rows: int) -> None:
        waiting = join_batches(self._header, self._waiting)
        self._waiting = [waiting[rows:]]
        with uninterrupted():
            self._write_columns(waiting[:rows])
        self._output.check()

    def _write_columns(self, batch: GridBatch) -> None:
        columns: dict[str, NDArray[Any]] = {"tokens": batch.tokens}
        for name, column in batch.texts.items():
            if column is not None or name in self._file:
                columns[name] = _encoded(column or [""] * len(batch))
                self._make_room(name, columns[name].dtype)
        stop = self._num_written + len(batch)
        for name, values in columns.items():
            dataset = self._file[name]
            dataset.resize(stop, axis=0)
            dataset[self._num_written : stop] = values
        self._num_written = stop

    def _make_room(self, name: str, dtype: np.dtype[Any]) -> None:
        """See to it that a column of text is there and wide enough for this type."""
        old = self._file.get(name)
        if old is not None and old.dtype.itemsize >= dtype.itemsize:
            return
        width = 1 << max(4, (dtype.itemsize - 1).bit_length())  # doubles, so that a column moves a few times at most
        empty = np.empty(self._num_written, h5py.string_dtype("utf-8", width))
        options = {"maxshape": (None,), "chunks": (_rows_that_fit(width),), **FILTERS}
        new = self._file.create_dataset(f"{name}.wider", empty.shape, empty.dtype, **options)
        if old is not None:
            for start in range(0, self._num_written, CHUNK_GRIDS):
                rows = slice(start, start + CHUNK_GRIDS)
                new[rows] = old[rows].astype(empty.dtype)
            del self._file[name]
        self._file.move(f"{name}.wider", name)


@contextmanager
def create_grid_file(path: Path, header: GridHeader) -> Iterator[GrowingFile]:
    """Create a file to append grids to; call `finish` before the block ends.

    Raises:
        OSError: it cannot be written.
    """
    with create_hdf5(path) as output:
        yield GrowingFile(output, header)


def _chunk_rows(header: GridHeader) -> int:
    return _rows_that_fit(header.dtype.itemsize * header.grid_size[0] * header.grid_size[1])


def _rows_that_fit(row_bytes: int) -> int:
    return max(1, min(CHUNK_GRIDS, CHUNK_BYTES // row_bytes))


def _write_attributes(file: h5py.File, header: GridHeader, place: Place) -> None:
    """Write what describes the file and its place in a stream."""
    texts = {
        "format": FORMAT,
        "tokenizer_fingerprint": header.tokenizer_fingerprint,
        "tokenizer_location": header.tokenizer_location,
        "preprocessing": header.preprocessing,
        "history": json.dumps(header.history),
        "digest": place.digest,
    }
    file.attrs.update({name: _encoded([clean_text(text)])[0] for name, text in texts.items()})
    file.attrs.update(
        {
            "format_version": FORMAT_VERSION if header.masked else 1,
            "codebook_size": header.codebook_size,
            "image_size": header.image_size,
            "member": place.index,
            "last": int(place.last),
            "total": place.total,
            **({"holes": 1} if header.masked else {}),
        }
    )


def _encoded(texts: Sequence[str]) -> NDArray[np.bytes_]:
    """UTF-8 strings of one fixed length, padded with NUL.

    Not of variable length: HDF5 keeps those in heaps without a checksum, and hangs when one of their sizes is damaged.
    """
    encoded = [text.encode() for text in texts]
    return np.array(encoded, h5py.string_dtype("utf-8", max(map(len, encoded), default=0) or 1))


def _text_chunks(texts: NDArray[np.bytes_]) -> tuple[int]:
    return (min(_rows_that_fit(texts.dtype.itemsize), len(texts)),)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn what h5py raises about a damaged file into FormatError."""
    try:
        yield
    except VqtoolError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, MemoryError) as error:
        raise FormatError(f"{name}: damaged: {error}") from error


class GridFileReader:
    """An open HDF5 file of token grids: a whole one, or one chunk of a stream."""

    def __init__(self, file: h5py.File, name: str) -> None:
        self._file = file
        self._name = name
        with _reading(name):
            self.header = self._read_header()
            self.num_grids = int(file["tokens"].shape[0])
            numbers = (int(file.attrs[name]) for name in ("member", "last", "total"))
            index, last, total = numbers
            self.place = Place(index, bool(last), total, self._text("digest"))
            self.columns = [text for text in TEXTS if text in file]
            for text in self.columns:
                if file[text].shape != (self.num_grids,):
                    raise FormatError(f"{name}: damaged: {text} has shape {file[text].shape}, not ({self.num_grids},)")

    def _text(self, attribute: str) -> str:
        value = self._file.attrs[attribute]
        return value if isinstance(value, str) else bytes(value).decode()

    def _read_header(self) -> GridHeader:
        file, name = self._file, self._name
        if "format" not in file.attrs or self._text("format") != FORMAT:
            found = ", ".join(list(file)[:6]) or "nothing"
            raise FormatError(f"{name}: an HDF5 file, but not one of token grids made by vqtool (it holds {found})")
        version = int(file.attrs["format_version"])
        if version > FORMAT_VERSION:
            raise FormatError(
                f"{name}: format version {version}, but this vqtool reads up to {FORMAT_VERSION}: upgrade vqtool"
            )
        tokens = file["tokens"]
        if len(tokens.shape) != 3 or tokens.dtype.kind not in "iu":
            raise FormatError(f"{name}: tokens are {tokens.dtype} {tokens.shape}, not integers (N, H, W)")
        height, width = (int(side) for side in file.attrs["image_size"])
        return GridHeader(
            codebook_size=int(file.attrs["codebook_size"]),
            grid_size=(int(tokens.shape[1]), int(tokens.shape[2])),
            image_size=(height, width),
            tokenizer_fingerprint=self._text("tokenizer_fingerprint"),
            tokenizer_location=self._text("tokenizer_location"),
            preprocessing=self._text("preprocessing"),
            history=tuple(json.loads(self._text("history"))),
            masked=bool(file.attrs.get("holes", 0)),
        )

    def read(self, start: int, stop: int) -> GridBatch:
        """Grids start to stop.

        Raises:
            FormatError: damaged, or a token is not in [0, K).
        """
        with _reading(self._name):
            tokens = self._file["tokens"][start:stop]
            texts = {name: [text.decode() for text in self._file[name][start:stop]] for name in self.columns}
        size = self.header.num_states
        bad = np.argwhere((tokens < 0) | (tokens >= size))
        if len(bad):
            row, y, x = bad[0].tolist()
            where = f"at row {y}, column {x} of grid {start + row}"
            raise FormatError(f"{self._name}: token {tokens[row, y, x]} {where} is not in [0, {size})")
        ids = texts.get("id", [str(row) for row in range(start, start + len(tokens))])
        return GridBatch(tokens.astype(self.header.dtype, copy=False), ids, texts.get("label"), texts.get("caption"))


class SequenceCheck:
    """Compares what the chunks of a sequence say with what came."""

    def __init__(self, header: GridHeader, name: str) -> None:
        self._name = name
        self._state = SequenceState(header)

    @property
    def begun(self) -> bool:
        """Whether a whole chunk has come."""
        return self._state.num_chunks > 0

    def begin(self, chunk: GridFileReader) -> None:
        """Check that this chunk comes next."""
        if chunk.place.index != self._state.num_chunks:
            raise FormatError(
                f"{self._name}: chunk {chunk.place.index} of a stream came where chunk {self._state.num_chunks} was "
                "expected: the producer stopped early, or a part was lost"
            )

    def update(self, batch: GridBatch) -> None:
        """Take in the next grids."""
        self._state.update(batch)

    def end(self, chunk: GridFileReader) -> None:
        """Check that what came so far is what was written."""
        said, found = chunk.place, self._state.end_chunk(last=chunk.place.last)
        if said.total != found.total:
            raise FormatError(f"{self._name}: damaged: it says {said.total} grids, but {found.total} are there")
        if said.digest != found.digest:
            raise FormatError(f"{self._name}: damaged: its content does not match its digest")
