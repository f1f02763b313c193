"""A digest of the bytes of a shard's images, in their order, taken as they are read for another purpose."""

import hashlib
import io
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np

from vqtool.errors import VqtoolError
from vqtool.images import ImageItem
from vqtool.images.reader import read_bytes
from vqtool.images.sources.items import Origin, Raw


class Content:
    """A digest of images, which are read in any order and by several threads; bytes wait for those before them."""

    def __init__(self) -> None:
        self._total = hashlib.sha256()
        self._num_seen = self._num_taken = 0
        self._waiting: dict[int, bytes] = {}
        self._lock = threading.Lock()

    def read(self, items: Iterable[ImageItem]) -> None:
        """Take in the next images, which nobody reads."""
        for item in items:
            self.take(self._number(), read_bytes(item))

    def watch(self, items: Iterable[ImageItem]) -> Iterator[ImageItem]:
        """The next images, each of which is taken in when it is opened; all have to be."""
        for item in items:
            yield replace(item, origin=_Watched(item.origin, self._number(), self))

    def take(self, number: int, data: bytes) -> None:
        """The bytes of an image; none of one that cannot be read."""
        with self._lock:
            self._waiting[number] = data
            while (ready := self._waiting.pop(self._num_taken, None)) is not None:
                self._total.update(len(ready).to_bytes(8, "little"))
                self._total.update(ready)
                self._num_taken += 1

    def digest(self) -> str:
        """Of all images so far."""
        if self._num_taken != self._num_seen:
            raise ValueError(f"{self._num_seen} images were watched, but {self._num_taken} were opened")
        return f"sha256:{self._total.hexdigest()}"

    def _number(self) -> int:
        self._num_seen += 1
        return self._num_seen - 1


@dataclass(frozen=True, slots=True)
class _Watched:
    """Where an image lies, and who is told of its bytes."""

    origin: Origin
    number: int
    content: Content

    @property
    def num_bytes(self) -> int | None:
        """Of the image."""
        return self.origin.num_bytes

    def open(self) -> Raw:
        """Read the image."""
        try:
            raw = self.origin.open()
            data = raw.tobytes() if isinstance(raw, np.ndarray) else _read_all(raw)
        except (VqtoolError, OSError):
            self.content.take(self.number, b"")
            raise
        self.content.take(self.number, data)
        return raw if isinstance(raw, np.ndarray) else io.BytesIO(data)

    def __str__(self) -> str:
        return str(self.origin)


def _read_all(raw: BinaryIO) -> bytes:
    with raw:
        return raw.read()


def unwatched(item: ImageItem) -> ImageItem:
    """The image as it was found."""
    return replace(item, origin=item.origin.origin) if isinstance(item.origin, _Watched) else item
