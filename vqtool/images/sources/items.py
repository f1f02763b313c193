"""What every source of images gives: items that know their name, their words and where their bytes lie."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

Raw = BinaryIO | NDArray[np.uint8]  # an encoded image, or pixels (h, w, 3)

# Extensions that promise an image. Some of them are formats that cannot be read here: a picture that is left out
# must be named as such, not passed over in silence.
_READ_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
_NETPBM_SUFFIXES = (".ppm", ".pgm", ".pbm", ".pnm")
_OTHER_SUFFIXES = (".avif", ".heic", ".heif", ".jxl", ".jp2", ".tga")
IMAGE_SUFFIXES = frozenset(_READ_SUFFIXES + _NETPBM_SUFFIXES + _OTHER_SUFFIXES)
LOOKED_FOR = "files that end in .jpg, .png, .webp, .gif, .bmp, .tif and the like, at any depth"


class Origin(Protocol):
    """Where the bytes of one image lie. `str()` names the place for messages."""

    def open(self) -> Raw:
        """Open the encoded image for reading, or return pixels (h, w, 3)."""


@dataclass(frozen=True)
class ImageItem:
    """One image that has been found but not read: what it is called, what is known of it, where it lies."""

    id: str  # unique among the items found together; posix separators
    label: str | None
    caption: str | None
    origin: Origin

    @property
    def location(self) -> str:
        """The file, member or row, for messages."""
        return str(self.origin)


@dataclass(frozen=True)
class Entry:
    """One image of one source, before ids are made unique across sources."""

    names: tuple[str, ...]  # what it may be called, the best first; the next one where two would be called the same
    origin: Origin
    label: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class FileOrigin:
    """A file of its own."""

    path: Path

    def open(self) -> BinaryIO:
        """Open the file."""
        return self.path.open("rb")

    def __str__(self) -> str:
        return str(self.path)


def has_image_suffix(name: str) -> bool:
    """Tell whether a file name promises an image."""
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def is_hidden(path: str) -> bool:
    """Tell whether any part of a relative posix path begins with a dot."""
    return any(part.startswith(".") for part in path.split("/"))


def natural_key(path: str) -> Any:
    """A sort key in which img2 comes before img10."""
    return [_natural_part(part) for part in path.split("/")], path


def _natural_part(part: str) -> list[tuple[int, str]]:
    pieces = re.split(r"([0-9]+)", part.lower())
    digits = [piece.lstrip("0") for piece in pieces]
    return [(len(digits[i]), digits[i]) if i % 2 else (0, pieces[i]) for i in range(len(pieces))]


def class_folders(paths: list[str]) -> list[str | None]:
    """The first-level folder of each path, where every path has one and there are at least two of them."""
    firsts = [path.split("/", 1)[0] if "/" in path else None for path in paths]
    if None in firsts or len(set(firsts)) < 2:
        return [None] * len(paths)
    return firsts
