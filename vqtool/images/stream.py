"""Images by number, decoded when they are wanted: in threads, ahead of whoever wants them, and kept or not.

An image that cannot be read is found out when it is wanted. The next one that can be read, by number, takes its place
for good: which images anybody sees follows from what can be read, not from who asks, when, or how many threads decode.
"""

import threading
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import VqtoolError, count_text, warn
from vqtool.images.reader import OnError, count_workers, read_image
from vqtool.images.sources import ImageItem

AHEAD = 4  # images a worker that are decoded beyond what is wanted next
CHECKSUM = 4  # bytes

Pixels = NDArray[np.uint8]


class Store(Protocol):
    """Where decoded images (3, h, w) are kept; reading and writing are safe from several threads."""

    def read(self, index: int) -> Pixels | None:
        """An image; None if it is not there."""

    def write(self, index: int, pixels: Pixels) -> None:
        """Keep an image."""

    def close(self) -> None:
        """Let go of what is held."""


class NoStore:
    """Keeps nothing."""

    def read(self, index: int) -> Pixels | None:
        """None."""

    def write(self, index: int, pixels: Pixels) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class MemoryStore:
    """Keeps images in an array, whose memory is taken as it fills."""

    def __init__(self, images: Pixels, *, is_full: bool = False) -> None:
        """A store.

        Args:
            images: (N, 3, h, w), where they are kept.
            is_full: whether they are there already.
        """
        self.images = images
        self.there = np.full(len(images), is_full)

    def read(self, index: int) -> Pixels | None:
        """An image; None if it is not there."""
        return self.images[index] if self.there[index] else None

    def write(self, index: int, pixels: Pixels) -> None:
        """Keep an image."""
        self.images[index] = pixels
        self.there[index] = True

    def close(self) -> None:
        """Nothing."""


class DiskStore:
    """Keeps images in a file, which several processes may share and a later run may go on with.

    Image i is CHECKSUM bytes of CRC-32 and its pixels, at i times their length. What was never written, or only in
    part, does not fit its checksum, and is not there. A file that cannot be written stays as it is, with a warning.

    Raises:
        VqtoolError: the file cannot be opened.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int]) -> None:
        self.path, self._shape = path, shape
        self._length = CHECKSUM + int(np.prod(shape))
        self._lock = threading.Lock()
        self._is_writable = True
        try:
            path.touch()
            self._file = path.open("r+b", buffering=0)
        except OSError as error:
            raise VqtoolError(f"{path}: cannot be written: {error.strerror or error}") from error

    def read(self, index: int) -> Pixels | None:
        """An image; None if it is not there."""
        with self._lock:
            self._file.seek(index * self._length)
            record = self._file.read(self._length)
        if len(record) < self._length or zlib.crc32(record[CHECKSUM:]) != int.from_bytes(record[:CHECKSUM], "little"):
            return None
        return np.frombuffer(record, np.uint8, offset=CHECKSUM).reshape(self._shape)

    def write(self, index: int, pixels: Pixels) -> None:
        """Keep an image."""
        data = pixels.tobytes()
        record = zlib.crc32(data).to_bytes(CHECKSUM, "little") + data
        with self._lock:
            if not self._is_writable:
                return
            try:
                self._file.seek(index * self._length)
                self._file.write(record)
            except OSError as error:
                self._is_writable = False
                warn(f"{self.path}: cannot be written ({error.strerror or error}): other images are decoded each time")

    def close(self) -> None:
        """Close the file, which stays."""
        self._file.close()


class ImageStream:
    """Images (N, 3, h, w) of which some are taken at a time.

    Attributes:
        shape: (N, 3, h, w).
        left_out: what is wrong with images that could not be read, by number, as far as they were wanted.
        ahead: how many images are decoded beyond those that are wanted next.
    """

    def __init__(
        self,
        items: Sequence[ImageItem],
        size: tuple[int, int],
        *,
        fit: str = "crop",
        store: Store | None = None,
        workers: int | None = None,
        on_error: OnError | None = None,
    ) -> None:
        """A stream; to be closed.

        Args:
            items: from `find_images`.
            size: (h, w) to bring them to.
            fit: how: see `read_image`.
            store: where decoded images are kept; None: nowhere.
            workers: threads that decode; None: one for each core at hand, at most 16.
            on_error: told in the consumer's thread, once, of each image that is wanted and cannot be read; None: raise.
        """
        self.shape = (len(items), 3, *size)
        self.left_out: dict[int, str] = {}
        workers = count_workers() if workers is None else workers
        self.ahead = AHEAD * workers
        self._items, self._fit, self._on_error = items, fit, on_error
        self._store: Store = store or NoStore()
        self._pending: dict[int, Future[Pixels]] = {}
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="vqtool-images")

    @classmethod
    def of(cls, images: Pixels) -> "ImageStream":
        """A stream of images (N, 3, h, w) that are there."""
        stream = cls((), (images.shape[2], images.shape[3]), store=MemoryStore(images, is_full=True), workers=1)
        stream.shape = images.shape
        return stream

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def whole(self) -> Pixels | None:
        """All images, if they are in memory; take those that `readable` says."""
        store = self._store
        if isinstance(store, MemoryStore) and np.count_nonzero(store.there) + len(self.left_out) == len(self):
            return store.images
        return None

    def readable(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers of the images that are seen: of one that was left out the next that was not, the first after all.

        Raises:
            VqtoolError: all were left out.
        """
        return np.array([self._next(index) for index in indices.tolist()]) if self.left_out else indices

    def take(self, indices: NDArray[np.int64]) -> Pixels:
        """Images (n, 3, h, w) by their numbers.

        Raises:
            FormatError: an image cannot be read, and there is no on_error.
            VqtoolError: none can be read.
        """
        whole = self.whole
        if whole is not None:
            return whole[self.readable(indices)]
        self._decode(self.readable(indices).tolist())
        found = np.stack([self._find(index) for index in indices.tolist()])
        for index in self.readable(indices).tolist():
            self._pending.pop(index, None)
        return found

    def expect(self, indices: NDArray[np.int64]) -> None:
        """Begin to decode images that will be taken soon."""
        if self.whole is None:
            self._decode(self.readable(indices).tolist())

    def leave_out(self, index: int, error: VqtoolError) -> None:
        """Let the next image take the place of one that cannot be read, and tell of it; raise without an on_error."""
        if self._on_error is None:
            raise error
        self._on_error(self._items[index], error)
        self.left_out[index] = str(error)

    def close(self) -> None:
        """Stop decoding."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._store.close()

    def _decode(self, indices: Iterable[int]) -> None:
        for index in indices:
            if index not in self._pending:
                self._pending[index] = self._pool.submit(self._read, index)

    def _read(self, index: int) -> Pixels:
        pixels = self._store.read(index)
        if pixels is None:
            pixels = read_image(self._items[index], (self.shape[2], self.shape[3]), self._fit)
            self._store.write(index, pixels)
        return pixels

    def _find(self, index: int) -> Pixels:
        """The image that is seen as the one of a number."""
        while True:
            index = self._next(index)
            self._decode([index])
            try:
                return self._pending[index].result()
            except VqtoolError as error:
                del self._pending[index]
                self.leave_out(index, error)

    def _next(self, index: int) -> int:
        if len(self.left_out) == len(self):
            raise VqtoolError(f"none of the {count_text(len(self), 'image')} could be read")
        while index in self.left_out:
            index = (index + 1) % len(self)
        return index
