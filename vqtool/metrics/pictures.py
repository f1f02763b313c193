"""Where the pictures of one side come from: files of images, or token grids that are decoded as they are read."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vqtool.errors import VqtoolError
from vqtool.grids import GridBatch, GridHeader, join_batches, open_grids
from vqtool.images import ImageItem, OnError, choose_fit, common_size, read_batches, to_uint8
from vqtool.images.pixels import fit_pixels
from vqtool.images.shapes import find_shape
from vqtool.progress import Progress, silent
from vqtool.tokenizers import Tokenizer

READ_BATCH = 32  # images
_LOOKED_AT = 64  # pictures, whose sizes a card's warnings know
Size = tuple[int, int]  # (height, width)


class Pictures(ABC):
    """Pictures that have been found, not read: N of them, in order."""

    held: str  # "images" or "grids"
    ids: list[str]
    labels: list[str]  # "" where there is none
    files: list[str]  # where those lie that are files of their own, for their endings
    left_out: tuple[str, ...] = ()  # what was wrong with pictures that could not even be found

    @abstractmethod
    def common_size(self) -> Size | None:
        """The size to read them in where nobody says; None if they differ."""

    @abstractmethod
    def sizes(self) -> frozenset[Size]:
        """The sizes that some of them have."""

    @abstractmethod
    def choose_fit(self, size: Size, fit: str | None) -> str:
        """How they come to a size."""

    @abstractmethod
    def batches(
        self, rows: NDArray[np.int64], size: Size, fit: str, on_error: OnError | None
    ) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
        """Pictures (B, 3, *size) uint8 of those rows, in order, with the rows that they are of.

        Those that cannot be read are told to `on_error` and left out; without it they raise FormatError.
        """


class ImageFiles(Pictures):
    """Images as `find_images` finds them."""

    held = "images"

    def __init__(self, items: Sequence[ImageItem], left_out: Sequence[str] = ()) -> None:
        self.items, self.left_out = list(items), tuple(left_out)
        self.ids = [item.id for item in items]
        self.labels = [item.label or "" for item in items]
        self.files = [item.location for item in items]

    def common_size(self) -> Size | None:
        """The size that the first few share, at most 256 pixels on the short side."""
        return common_size(self.items)

    def sizes(self) -> frozenset[Size]:
        """Of some of them, evenly spread."""
        places = np.unique(np.linspace(0, len(self.items) - 1, min(_LOOKED_AT, len(self.items))).round().astype(int))
        return frozenset(shape for place in places if (shape := find_shape(self.items[place])) is not None)

    def choose_fit(self, size: Size, fit: str | None) -> str:
        """As the user says, else as loses least."""
        return choose_fit(self.items, size, fit)

    def batches(
        self, rows: NDArray[np.int64], size: Size, fit: str, on_error: OnError | None
    ) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
        """Read ahead, in threads."""
        chosen = [self.items[row] for row in rows]
        place = {id(item): int(row) for item, row in zip(chosen, rows, strict=True)}
        for batch in read_batches(chosen, size, READ_BATCH, fit=fit, on_error=on_error):
            yield [place[id(item)] for item in batch.items], batch.images


class DecodedGrids(Pictures):
    """Token grids, which a tokenizer decodes as they are read.

    Args:
        header: of the grids.
        batch: all of them.
        tokenizer: that they are of, on its device.
    """

    held = "grids"

    def __init__(self, header: GridHeader, batch: GridBatch, tokenizer: Tokenizer) -> None:
        self.ids, self.labels = batch.ids, batch.labels or [""] * len(batch)
        self.files: list[str] = []
        self.tokens = batch.tokens
        self._size, self._tokenizer = header.image_size, tokenizer

    def common_size(self) -> Size | None:
        """That of the pictures that the grids were made of."""
        return self._size

    def sizes(self) -> frozenset[Size]:
        """One."""
        return frozenset({self._size})

    def choose_fit(self, size: Size, fit: str | None) -> str:
        """As the user says; decoded pictures have the size mostly."""
        return fit or "crop"

    @torch.no_grad()
    def batches(
        self, rows: NDArray[np.int64], size: Size, fit: str, on_error: OnError | None
    ) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
        """Decoded batch by batch."""
        for start in range(0, len(rows), READ_BATCH):
            own = rows[start : start + READ_BATCH]
            tokens = torch.from_numpy(self.tokens[own].astype(np.int64)).to(self._tokenizer.device)
            images = to_uint8(self._tokenizer.decode(tokens))
            if images.shape[2:] != size:
                images = np.stack([fit_pixels(image.transpose(1, 2, 0), size, fit) for image in images])
            yield own.tolist(), images


def read_tokens(sources: Sequence[str], progress: Progress = silent) -> tuple[GridHeader, GridBatch]:
    """All token grids of some files or streams of one tokenizer and size, in memory.

    Raises:
        FormatError: not token grids, or damaged.
        MismatchError: grids of several tokenizers or sizes.
    """
    header: GridHeader | None = None
    batches: list[GridBatch] = []
    for source in sources:
        with open_grids(source) as reader, progress(f"read {reader.name}", reader.num_grids, "grids") as advance:
            if header is not None:
                header.check_same(reader.header, str(sources[0]), reader.name)
            header = header or reader.header
            for batch in reader.batches():
                batches.append(batch)
                advance(len(batch))
    if header is None:
        raise ValueError("no sources of token grids")
    return header, join_batches(header, batches)


def noting(left_out: list[str], on_error: OnError | None) -> OnError:
    """An `on_error` that keeps what was wrong with each image, and tells another one; without that it raises."""

    def skip(item: ImageItem, error: VqtoolError) -> None:
        if on_error is None:
            raise error
        left_out.append(str(error))
        on_error(item, error)

    return skip


def token_digests(tokens: NDArray[np.integer]) -> list[bytes]:
    """Sixteen bytes for each of some grids (B, H, W), the same where their tokens are."""
    about = f"tokens {tokens.shape[1:]}".encode()
    return [hashlib.blake2b(about + grid.astype("<u4").tobytes(), digest_size=16).digest() for grid in tokens]


def pixel_digests(images: NDArray[np.uint8]) -> list[bytes]:
    """Sixteen bytes for each of some images (B, 3, h, w), the same where shape and pixels are."""
    about = f"{images.shape[1:]}".encode()
    return [hashlib.blake2b(about + np.ascontiguousarray(image).tobytes(), digest_size=16).digest() for image in images]
