"""HDF5 files of token grids, whole ones and chunks of a stream: what stands where in them."""

import hashlib
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from vqtool.captions import SEPARATOR
from vqtool.errors import FormatError, count_text
from vqtool.grids.batch import FORMAT, MAX_SIDE, TEXTS, GridBatch, GridHeader, Place, SequenceState, clean_text
from vqtool.grids.labels import LabelTable
from vqtool.hdf5 import find_dataset, read_number, read_numbers, read_text, reading
from vqtool.trust import parse_json

LIBVER = ("v110", "v110")  # superblock 3, checksummed metadata; readable by every HDF5 since 1.10 (2016)
INDEX_FORMAT = "vqtool-grid-index"  # of files that name grid files
FORMAT_VERSION = 3  # of grids with several captions an image; 2 has masked cells; all others are version 1
CHUNK_GRIDS = 256
CHUNK_BYTES = 1 << 19  # below the chunk cache of HDF5 (1 MB), or every small append compresses its chunk again
MAX_COUNT = (1 << 63) - 1
MAX_BATCH_BYTES = 32 << 20  # of one batch that is read
DIGEST = r"sha256:[0-9a-f]{64}"
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
    write_header(file, header, FORMAT, version, place.digest)
    file.attrs.update({"member": place.index, "last": int(place.last), "total": place.total})


def write_header(file: h5py.File, header: GridHeader, kind: str, version: int, digest: str) -> None:
    """Write what is said of all grids.

    Args:
        file: open for writing.
        header: of the grids.
        kind: of the file, its `format`.
        version: of that format.
        digest: of the content.
    """
    described = {
        "tokenizer_fingerprint": header.tokenizer_fingerprint,
        "tokenizer_location": clean_text(header.tokenizer_location),
        "preprocessing": clean_text(header.preprocessing),
        "history": json.dumps(header.history),
    }
    own = _header_digest(header.codebook_size, header.image_size, **described)
    for name, text in {"format": kind, **described, "digest": digest, "header_digest": own}.items():
        data = text.encode()
        file.attrs[name] = np.array(data, h5py.string_dtype("utf-8", len(data) or 1))
    file.attrs.update(
        {
            "format_version": version,
            "codebook_size": header.codebook_size,
            "image_size": header.image_size,
            **({"holes": 1} if header.masked else {}),
        }
    )


def _header_digest(codebook_size: int, image_size: tuple[int, int], **texts: str) -> str:
    """What tells that a header was changed: a SHA-256 over the fields that `digest` does not cover, and K."""
    fields = {"codebook_size": codebook_size, "image_size": image_size, **texts}
    return f"sha256:{hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()}"


class GridFileReader:
    """An open HDF5 file of token grids: a whole one, or one chunk of a stream."""

    def __init__(self, file: h5py.File, name: str, *, header: GridHeader | None = None) -> None:
        """Read what the file says about itself.

        Args:
            file: open for reading.
            name: for messages.
            header: that of the file, where it is known; None reads it.

        Raises:
            FormatError: it is not a file of token grids, or contradicts itself.
        """
        self._name = name
        _check_format(file, name)
        tokens = find_dataset(file, "tokens", name)
        if tokens is None or len(tokens.shape) != 3 or tokens.dtype.kind not in "iu":
            found = "missing" if tokens is None else f"{tokens.dtype} {tokens.shape}"
            raise FormatError(f"{name}: damaged: tokens are {found}, not integers (N, H, W)")
        self._tokens = tokens
        self.num_grids = len(tokens)
        self.header = header or read_header(file, name, (tokens.shape[1], tokens.shape[2]))
        if tokens.shape[1:] != self.header.grid_size:
            raise FormatError(f"{name}: damaged: grids of {tokens.shape[1:]}, and not of {self.header.grid_size}")
        self.place = Place(
            index=read_number(file, "member", name, 0, MAX_COUNT),
            last=bool(read_number(file, "last", name, 0, 1)),
            total=read_number(file, "total", name, 0, MAX_COUNT),
            digest=read_pattern(file, "digest", name, DIGEST),
        )
        texts = {text: find_dataset(file, text, name, sparse=True) for text in TEXTS}
        self._texts = {text: column for text, column in texts.items() if column is not None}
        for text, column in self._texts.items():
            if column.shape != (self.num_grids,) or column.dtype.kind not in "SO":
                raise FormatError(
                    f"{name}: damaged: {text} has shape {column.shape} of {column.dtype}, not ({self.num_grids},) texts"
                )

    @property
    def columns(self) -> list[str]:
        """Which of id, label and caption there are."""
        return list(self._texts)

    def read_column(self, name: str) -> list[str]:
        """A column of text whole; "" everywhere where it is unknown.

        Raises:
            FormatError: damaged.
        """
        if name not in self._texts:
            return [""] * self.num_grids
        rows = self.batch_rows(1 << 16)
        return [
            text for start in range(0, self.num_grids, rows) for text in self._read_texts(name, start, start + rows)
        ]

    def number_labels(self, table: LabelTable) -> NDArray[np.int32]:
        """The column of labels, (N,) by their numbers in a table; "" everywhere where it is unknown.

        Raises:
            FormatError: damaged.
        """
        column = self._texts.get("label")
        if column is None:
            return np.full(self.num_grids, table[b""], np.int32)
        rows = self.batch_rows(1 << 16)
        with reading(self._name):
            parts = [table.number(column.read(at, at + rows).tolist()) for at in range(0, self.num_grids, rows)]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def take_texts(self, name: str, rows: NDArray[np.int64]) -> list[str]:
        """Texts of a column for these rising numbers; "" where it is unknown.

        Raises:
            FormatError: damaged.
        """
        if name not in self._texts:
            return [""] * len(rows)
        texts: list[str] = []
        for near in np.split(rows, np.flatnonzero(np.diff(rows) > CHUNK_GRIDS) + 1):
            read = self._read_texts(name, int(near[0]), int(near[-1]) + 1)
            texts += [read[place] for place in (near - near[0]).tolist()]
        self._texts[name].forget()
        return texts

    def _read_texts(self, name: str, start: int, stop: int) -> list[str]:
        with reading(self._name):
            return [text.decode() for text in self._texts[name].read(start, stop).tolist()]

    @property
    def widths(self) -> dict[str, int]:
        """Bytes that each text of a column has room for."""
        return {name: column.dtype.itemsize for name, column in self._texts.items()}

    def batch_rows(self, most: int) -> int:
        """How many rows to read at once: `most`, or as many as stay below MAX_BATCH_BYTES."""
        row_bytes = self._tokens.row_bytes + sum(self.widths.values())
        return max(1, min(most, MAX_BATCH_BYTES // row_bytes))

    def read(self, start: int, stop: int) -> GridBatch:
        """Grids start to stop.

        Raises:
            FormatError: damaged, or a token is not in [0, K).
        """
        tokens = self.read_tokens(start, stop)
        texts = {name: self._read_texts(name, start, stop) for name in self._texts}
        ids = texts.get("id", [str(row) for row in range(start, start + len(tokens))])
        return GridBatch(tokens, ids, texts.get("label"), texts.get("caption"))

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Tokens of the grids of these rising numbers, (n, H, W); what lies between far ones is not read.

        Raises:
            FormatError: damaged, or a token is not in [0, K).
        """
        parts = []
        for near in np.split(rows, np.flatnonzero(np.diff(rows) > CHUNK_GRIDS) + 1):
            tokens = self.read_tokens(int(near[0]), int(near[-1]) + 1)
            parts.append(tokens[near - near[0]])
        self._tokens.forget()
        return np.concatenate(parts)

    def read_tokens(self, start: int, stop: int) -> NDArray[Any]:
        """Tokens of the grids start to stop, (n, H, W), without their texts.

        Raises:
            FormatError: damaged, or a token is not in [0, K).
        """
        tokens = self._tokens.read(start, stop)
        size = self.header.num_states
        if tokens.size and not (tokens.min() >= 0 and tokens.max() < size):
            row, y, x = np.argwhere((tokens < 0) | (tokens >= size))[0].tolist()
            where = f"at row {y}, column {x} of grid {start + row}"
            raise FormatError(f"{self._name}: token {tokens[row, y, x]} {where} is not in [0, {size})")
        return tokens.astype(self.header.dtype, copy=False)


def _check_format(file: h5py.File, name: str) -> None:
    with reading(name):
        said = read_text(file, "format", name) if "format" in file.attrs else ""
        if said == INDEX_FORMAT:
            raise FormatError(
                f"{name}: an index, which cat, check, info, train-prior, eval --likelihood, codebook usage and "
                "codebook transplant read if its name ends in .index: for others `vqtool cat` makes one file of it"
            )
        if said != FORMAT:
            found = ", ".join(list(file)[:6]) or "nothing"
            raise FormatError(f"{name}: an HDF5 file, but not one of token grids made by vqtool (it holds {found})")
    version = read_number(file, "format_version", name, 0, MAX_COUNT)
    if version > FORMAT_VERSION:
        raise FormatError(
            f"{name}: format version {version}, but this vqtool reads up to {FORMAT_VERSION}: upgrade vqtool"
        )


def read_header(file: h5py.File, name: str, grid_size: tuple[int, int]) -> GridHeader:
    """The header of grids; every field is checked as narrowly as it is written."""
    height, width = read_numbers(file, "image_size", name, 2, 1, MAX_SIDE)
    size = read_number(file, "codebook_size", name, 1, 1 << 32)
    patterns = {"tokenizer_fingerprint": r"[0-9A-Za-z]{0,64}", "tokenizer_location": r".{0,4096}"}
    patterns |= {"preprocessing": r".{0,4096}"}
    texts = {field: read_pattern(file, field, name, pattern) for field, pattern in patterns.items()}
    history_text = read_text(file, "history", name)
    with reading(name):
        history = parse_json(history_text, f"{name}: damaged: its history")
        if not isinstance(history, list) or not all(map(_is_record, history)):
            raise FormatError(f"{name}: damaged: its history is not a list of records")
        masked = "holes" in file.attrs and bool(read_number(file, "holes", name, 0, 1))
        header = GridHeader(size, grid_size, (height, width), **texts, history=tuple(history), masked=masked)
        if "header_digest" in file.attrs:  # files of earlier versions have none
            said = read_pattern(file, "header_digest", name, DIGEST)
            if said != _header_digest(size, (height, width), **texts, history=history_text):
                raise FormatError(f"{name}: damaged: what it says of its grids does not match its header_digest")
    return header


def _is_record(value: Any) -> bool:
    """Whether a part of a history is what `artifacts.history_record` makes, as far as it is relied on."""
    return isinstance(value, dict) and isinstance(value.get("inputs", {}), dict)


def read_pattern(file: h5py.File, attribute: str, name: str, pattern: str) -> str:
    """An attribute that is a text of a pattern.

    Raises:
        FormatError: it is not there, or something else.
    """
    text = read_text(file, attribute, name)
    if not re.fullmatch(pattern, text, re.DOTALL):
        raise FormatError(f"{name}: damaged: its {attribute} is {text[:80]!r}")
    return text


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
            raise FormatError(
                f"{self._name}: damaged: it says {count_text(said.total, 'grid')}, but {found.total} are there"
            )
        if said.digest != found.digest:
            raise FormatError(f"{self._name}: damaged: its content does not match its digest")
