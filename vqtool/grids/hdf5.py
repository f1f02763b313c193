"""HDF5 files of token grids, whole ones and chunks of a stream: what stands where in them."""

import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np

from vqtool.captions import SEPARATOR
from vqtool.errors import FormatError, VqtoolError
from vqtool.grids.batch import FORMAT, TEXTS, GridBatch, GridHeader, Place, SequenceState, clean_text

LIBVER = ("v110", "v110")  # superblock 3, checksummed metadata; readable by every HDF5 since 1.10 (2016)
FORMAT_VERSION = 3  # of grids with several captions an image; 2 has masked cells; all others are version 1
CHUNK_GRIDS = 256
CHUNK_BYTES = 1 << 19  # below the chunk cache of HDF5 (1 MB), or every small append compresses its chunk again
FILTERS: dict[str, Any] = {"shuffle": True, "compression": "gzip", "compression_opts": 1, "fletcher32": True}


def encode_file(
    header: GridHeader,
    batches: Iterable[GridBatch],
    place: Callable[[], Place],
    *,
    num_grids: int,
    widths: Mapping[str, int],
) -> io.BytesIO:
    """The bytes of a complete HDF5 file.

    HDF5 writes to memory alone, and Python to the disk: with a full disk HDF5 (2.0.0 and before) swallows the error and
    crashes when the process exits. Not by its "core" driver, whose superblock has a wrong checksum before h5py 3.16.

    Args:
        header: what the grids have in common.
        batches: the grids.
        place: gives the place of the file in its sequence, once all batches have been taken.
        num_grids: how many there are.
        widths: bytes of the longest text of each column that is known.
    """
    image = io.BytesIO()
    with h5py.File(image, "w", libver=LIBVER) as file:
        _create(file, "tokens", (num_grids, *header.grid_size), header.dtype)
        for name, width in {"id": 1, **widths}.items():
            _create(file, name, (num_grids,), h5py.string_dtype("utf-8", width))
        start, several = 0, False
        for batch in batches:
            several |= any(SEPARATOR in caption for caption in batch.captions or ())
            rows = slice(start, start + len(batch))
            file["tokens"][rows] = batch.tokens
            for name, column in batch.texts.items():
                if column is not None:
                    file[name][rows] = np.array([text.encode() for text in column], file[name].dtype)
            start = rows.stop
        version = FORMAT_VERSION if several else 2 if header.masked else 1
        _write_attributes(file, header, place(), version)
    return image


def _create(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Make a dataset, in pieces that fit the chunk cache, so that each is compressed once.

    Texts are of one fixed length, padded with NUL: those of variable length HDF5 keeps in heaps without a checksum, and
    it hangs when one of their sizes is damaged.
    """
    options: dict[str, Any] = {}
    if shape[0]:
        rows = min(CHUNK_GRIDS, shape[0], CHUNK_BYTES // (dtype.itemsize * math.prod(shape[1:])))
        options = {"maxshape": (None, *shape[1:]), "chunks": (max(1, rows), *shape[1:]), **FILTERS}
    file.create_dataset(name, shape, dtype, **options)


def _write_attributes(file: h5py.File, header: GridHeader, place: Place, version: int) -> None:
    """Write what describes the file and its place in a stream."""
    texts = {
        "format": FORMAT,
        "tokenizer_fingerprint": header.tokenizer_fingerprint,
        "tokenizer_location": header.tokenizer_location,
        "preprocessing": header.preprocessing,
        "history": json.dumps(header.history),
        "digest": place.digest,
    }
    for name, text in texts.items():
        data = clean_text(text).encode()
        file.attrs[name] = np.array(data, h5py.string_dtype("utf-8", len(data) or 1))
    file.attrs.update(
        {
            "format_version": version,
            "codebook_size": header.codebook_size,
            "image_size": header.image_size,
            "member": place.index,
            "last": int(place.last),
            "total": place.total,
            **({"holes": 1} if header.masked else {}),
        }
    )


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

    def __init__(self, file: h5py.File, name: str, *, header: GridHeader | None = None) -> None:
        """Read what the file says about itself.

        Args:
            file: open for reading.
            name: for messages.
            header: that of the file, where it is known; None reads it.
        """
        self._file = file
        self._name = name
        with _reading(name):
            self.header = header or self._read_header()
            self.num_grids = int(file["tokens"].shape[0])
            numbers = (int(file.attrs[name]) for name in ("member", "last", "total"))
            index, last, total = numbers
            self.place = Place(index, bool(last), total, self._text("digest"))
            self.columns = [text for text in TEXTS if text in file]
            for text in self.columns:
                if file[text].shape != (self.num_grids,):
                    raise FormatError(f"{name}: damaged: {text} has shape {file[text].shape}, not ({self.num_grids},)")

    def read_column(self, name: str) -> list[str]:
        """A column of text whole; "" everywhere where it is unknown.

        Raises:
            FormatError: damaged.
        """
        if name not in self.columns:
            return [""] * self.num_grids
        with _reading(self._name):
            return [text.decode() for text in self._file[name][:]]

    @property
    def widths(self) -> dict[str, int]:
        """Bytes that each text of a column has room for."""
        return {name: self._file[name].dtype.itemsize for name in self.columns}

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

    def read(self, chunk: GridFileReader) -> GridBatch:
        """All grids of the next chunk, checked."""
        self.begin(chunk)
        batch = chunk.read(0, chunk.num_grids)
        self.update(batch)
        self.end(chunk)
        return batch

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
