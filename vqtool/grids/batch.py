"""Token grids in memory: what describes them all, a batch of them, and the digest of their content."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtool.artifacts import text_digest
from vqtool.errors import MismatchError, VqtoolError, size_text

FORMAT = "vqtool-grids"
MAX_CELLS = 1 << 24  # of one grid: more is a damaged file, not a picture
MAX_SIDE = 1 << 20  # pixels of an image
MAX_FACTOR = 128  # pixels a side that one token may stand for, on average: tokenizers have 4 to 64
MAX_TEXT_BYTES = 1 << 16  # of one id, label or caption
TEXTS = ("id", "label", "caption")
SHARD_CONTENT = "bytes of images"  # in the record of a shard: a digest of them; see `tokenizers.shards`
_OF_SHARD = (SHARD_CONTENT, "images", "num", "stamp", "shards", "command", "time")  # what differs from shard to shard
_OF_RANGE = ("num", "start", "shards", "command", "time")  # what differs among ranges of samples that were drawn alike


@dataclass(frozen=True)
class GridHeader:
    """What all grids of a file or stream have in common."""

    codebook_size: int  # K: tokens are in [0, K), and K marks a masked cell
    grid_size: tuple[int, int]  # (H, W) cells
    image_size: tuple[int, int]  # (height, width) pixels
    tokenizer_fingerprint: str
    tokenizer_location: str  # "builtin" or a path, where it was found when the grids were made
    preprocessing: str  # how images became (height, width): see images.PREPROCESSING
    history: tuple[dict[str, Any], ...] = ()  # one record a step, oldest first: see artifacts.history_record
    masked: bool = False  # whether cells may be masked

    def __post_init__(self) -> None:
        if not 1 <= self.codebook_size <= 1 << 32:
            raise ValueError(f"codebook_size {self.codebook_size} is not in [1, 2**32]")
        if not (min(self.grid_size) >= 1 and self.grid_size[0] * self.grid_size[1] <= MAX_CELLS):
            raise ValueError(f"grid_size {self.grid_size} is not at least 1 x 1 and at most {MAX_CELLS} cells")
        check_sizes(self.grid_size, self.image_size)

    @property
    def num_states(self) -> int:
        """How many values a cell can have: K tokens, and K itself where cells may be masked."""
        return self.codebook_size + self.masked

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned type that holds K."""
        return np.min_scalar_type(self.codebook_size)

    @property
    def has_places(self) -> bool:
        """Whether a cell is a square of the image; the tokens of some tokenizers each stand for all of it."""
        (rows, columns), (height, width) = self.grid_size, self.image_size
        return height * columns == width * rows

    def with_step(self, record: dict[str, Any]) -> "GridHeader":
        """The same header with one more record at the end of its history."""
        return replace(self, history=(*self.history, record))

    def check_same(self, other: "GridHeader", name: str, other_name: str) -> None:
        """Raise unless grids under both headers can be decoded by one tokenizer and stand in one file.

        Raises:
            MismatchError: codebook size, tokenizer or grid size differ.
        """
        for field, what in (
            ("tokenizer_fingerprint", "tokenizer"),
            ("codebook_size", "codebook size"),
            ("grid_size", "grid size"),
            ("masked", "masked cells"),
        ):
            mine, theirs = _shown(getattr(self, field)), _shown(getattr(other, field))
            if mine != theirs:
                raise MismatchError(
                    f"{other_name} has {what} {theirs}, but {name} has {what} {mine}: grids in one file or stream "
                    "share one tokenizer and one size; encode again, or use them one by one"
                )


def check_sizes(grid_size: tuple[int, int], image_size: tuple[int, int]) -> None:
    """Raise ValueError unless grids of (H, W) cells can stand for images of (height, width) pixels."""
    if not all(1 <= side <= MAX_SIDE for side in image_size):
        raise ValueError(f"image_size {image_size} is not from 1 to {MAX_SIDE} pixels a side")
    is_row = grid_size[0] == 1 and image_size[0] * grid_size[1] != image_size[1]  # of tokens without a place
    is_multiple = all(side % cells == 0 for side, cells in zip(image_size, grid_size, strict=True))
    if not (is_multiple or is_row) or prod(image_size) > MAX_FACTOR**2 * prod(grid_size):
        raise ValueError(
            f"image_size {size_text(image_size)} does not fit grids of {size_text(grid_size)} cells: its sides are "
            f"multiples of theirs, with {MAX_FACTOR}x{MAX_FACTOR} pixels a cell at most"
        )


def merge_histories(headers: Iterable[GridHeader]) -> list[dict[str, Any]]:
    """The records of several histories in order, each once; those of the shards of one run are one, with their number.

    So a history does not grow with the number of files.
    """
    seen: set[str] = set()
    records: dict[str, dict[str, Any]] = {}
    for header in headers:
        for record in header.history:
            text = json.dumps(record, sort_keys=True)
            if text in seen:
                continue
            seen.add(text)
            differs = _OF_SHARD if SHARD_CONTENT in record else _OF_RANGE if record.get("step") == "sample" else ()
            alike = json.dumps({name: each for name, each in record.items() if name not in differs}, sort_keys=True)
            if alike in records and (differs == _OF_SHARD or _follows(records[alike], record)):
                records[alike] = _join_shards(records[alike], record)
            else:
                records[text if alike in records else alike] = record
    return list(records.values())


def _follows(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether the samples of one record are those after another's."""
    numbers = [first.get("start"), first.get("num"), second.get("start"), second.get("num")]
    return all(isinstance(number, int) for number in numbers) and first["start"] + first["num"] == second["start"]


def _join_shards(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """One record of two shards, or of several and one more."""
    digests = [name for name in ("images", SHARD_CONTENT) if name in first]
    joined = {name: text_digest([str(each[name]) for each in (first, second)]) for name in digests}
    sums = {
        name: sum(each.get(name, default) for each in (first, second)) for name, default in (("num", 0), ("shards", 1))
    }
    return {name: each for name, each in first.items() if name != "stamp"} | joined | sums


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "in it" if value else "none"
    return size_text(value) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True)
class GridBatch:
    """Some grids with what is known about each. An unknown label or caption is None for all, or "" for one."""

    tokens: NDArray[np.unsignedinteger[Any]]  # (B, H, W) in [0, K); K where unknown; or `stored.StoredTokens`
    ids: list[str]
    labels: list[str] | None = None  # names of classes
    captions: list[str] | None = None  # several captions of one image are joined: see `vqtool.captions`

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> "GridBatch":
        labels = None if self.labels is None else self.labels[rows]
        captions = None if self.captions is None else self.captions[rows]
        return GridBatch(self.tokens[rows], self.ids[rows], labels, captions)

    @property
    def texts(self) -> dict[str, list[str] | None]:
        """The columns of text by their names in the file."""
        return dict(zip(TEXTS, (self.ids, self.labels, self.captions), strict=True))


def join_batches(header: GridHeader, batches: Sequence[GridBatch]) -> GridBatch:
    """One batch of all: the labels or captions of a batch that has none become "" where another has some."""
    tokens = np.concatenate([np.empty((0, *header.grid_size), header.dtype), *(batch.tokens for batch in batches)])
    numbers = list(map(len, batches))
    columns = [join_texts([batch.texts[name] for batch in batches], numbers) for name in TEXTS]
    return GridBatch(tokens, columns[0] or [], columns[1], columns[2])


def join_texts(parts: Sequence[list[str] | None], numbers: Sequence[int]) -> list[str] | None:
    """A column of texts of several batches of so many grids; None if it is known of none of them."""
    if all(part is None for part in parts):
        return None
    filled = (part or [""] * number for part, number in zip(parts, numbers, strict=True))
    return [text for part in filled for text in part]


@dataclass(frozen=True)
class Place:
    """Where an HDF5 file stands in its sequence: chunk number `index`, and the sum of all up to its end."""

    index: int
    last: bool
    total: int  # grids
    digest: str  # of all rows: "sha256:" and 64 hexadecimal digits


class SequenceState:
    """What the rows of a sequence amount to so far: a writer states it, a reader compares.

    The digest is a SHA-256 over tokens, ids, labels and captions in row order; how rows are batched does not matter.
    """

    def __init__(self, header: GridHeader) -> None:
        holes = " holes" if header.masked else ""
        self._start = f"{FORMAT} {header.codebook_size} {header.grid_size[0]} {header.grid_size[1]}{holes}\n".encode()
        self._dtype = header.dtype.newbyteorder("<")
        self._tokens = hashlib.sha256()
        self._texts = {name: hashlib.sha256() for name in TEXTS}
        self.num_chunks = 0
        self.num_grids = 0
        self.widths: dict[str, int] = {}  # bytes of the longest text of each column that is known, at least 1

    def update(self, batch: GridBatch) -> None:
        """Take in the next rows."""
        self.num_grids += len(batch)
        self._tokens.update(np.ascontiguousarray(batch.tokens, self._dtype).data)
        for name, column in batch.texts.items():
            encoded = [text.encode() for text in (column or [""] * len(batch))]
            if column is not None:
                self.widths[name] = max([self.widths.get(name, 1), *map(len, encoded)])
            self._texts[name].update(b"".join(len(text).to_bytes(8, "little") + text for text in encoded))

    def end_chunk(self, *, last: bool) -> Place:
        """The place of the chunk that ends with the latest rows; the next rows are another's."""
        parts = [self._tokens.digest(), *(self._texts[name].digest() for name in TEXTS)]
        digest = hashlib.sha256(self._start + b"".join(parts)).hexdigest()
        self.num_chunks += 1
        return Place(self.num_chunks - 1, last, self.num_grids, f"sha256:{digest}")


def checked_batch(header: GridHeader, batch: GridBatch) -> GridBatch:
    """A batch as it is written: tokens of the header's type, texts that HDF5 can hold.

    Raises:
        ValueError: shapes, lengths or tokens do not fit the header.
        VqtoolError: a text is too long.
    """
    size, tokens = header.num_states, batch.tokens
    if tokens.shape[1:] != header.grid_size or tokens.dtype.kind not in "iu":
        raise ValueError(f"tokens are {tokens.dtype} {tokens.shape}, not integers (B, {header.grid_size})")
    for name, column in batch.texts.items():
        if column is not None and len(column) != len(tokens):
            raise ValueError(f"{len(tokens)} grids, but {len(column)} {name}s")
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < size):
        raise ValueError(f"tokens from {tokens.min()} to {tokens.max()} are not in [0, {size})")
    texts = [
        None if column is None else [_checked_text(text, name) for text in column]
        for name, column in batch.texts.items()
    ]
    return GridBatch(tokens.astype(header.dtype, copy=False), texts[0] or [], texts[1], texts[2])


def _checked_text(text: str, name: str) -> str:
    text = clean_text(text)
    if len(text.encode()) > MAX_TEXT_BYTES:
        raise VqtoolError(f"the {name} {text[:40]!r}... is longer than {MAX_TEXT_BYTES} bytes: shorten it")
    return text


def clean_text(text: str) -> str:
    """Text as HDF5 can hold it: no NUL, no half of a surrogate pair (file names that are not UTF-8 have them)."""
    return text.replace("\0", "\ufffd").encode("utf-8", "backslashreplace").decode()
