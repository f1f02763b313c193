"""What every source of images gives: items that know their name, their words and where their bytes lie."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from posixpath import splitext
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import count_text

Raw = BinaryIO | NDArray[np.uint8]  # an encoded image, or pixels (h, w, 3)

# Extensions that promise an image. Some of them are formats that cannot be read here: a picture that is left out
# must be named as such, not passed over in silence.
_READ_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff")
_NETPBM_SUFFIXES = (".ppm", ".pgm", ".pbm", ".pnm")
_OTHER_SUFFIXES = (".avif", ".heic", ".heif", ".jxl", ".jp2", ".tga")
IMAGE_SUFFIXES = frozenset(_READ_SUFFIXES + _NETPBM_SUFFIXES + _OTHER_SUFFIXES)
CAPTION_FOLDERS = ("captions", "text")  # where captions may lie apart from their images
LOOKED_FOR = "files that end in .jpg, .png, .webp, .gif, .bmp, .tif and the like, at any depth"


class Origin(Protocol):
    """Where the bytes of one image lie. `str()` names the place for messages."""

    @property
    def num_bytes(self) -> int | None:
        """How many bytes the encoded image has; None where that is not known without reading it."""

    def open(self) -> Raw:
        """Open the encoded image for reading, or return pixels (h, w, 3)."""


@dataclass(frozen=True, slots=True)
class ImageItem:
    """One image that has been found but not read: what it is called, what is known of it, where it lies."""

    id: str  # unique among the items found together; posix separators
    label: str | None
    caption: str | None  # the first, if there are several
    origin: Origin
    more_captions: tuple[str, ...] = ()  # those after the first

    @property
    def captions(self) -> tuple[str, ...]:
        """All its captions."""
        return () if self.caption is None else (self.caption, *self.more_captions)

    @property
    def location(self) -> str:
        """The file, member or row, for messages."""
        return str(self.origin)


@dataclass(frozen=True, slots=True)
class Words:
    """What is said of one image."""

    label: str | None = None
    captions: tuple[str, ...] = ()
    id: str | None = None  # the id that vqtool gave it when it was written under another name


NO_WORDS = Words()


@dataclass(frozen=True, slots=True)
class FileOrigin:
    """A file of its own."""

    name: str
    folder: str = ""  # what stands before the name, with its slash: one text for all files of a folder

    @property
    def num_bytes(self) -> int:
        """Of the file."""
        return os.stat(str(self)).st_size

    def open(self) -> BinaryIO:
        """Open the file."""
        return Path(str(self)).open("rb")

    def __str__(self) -> str:
        return self.folder + self.name


class Tree(Protocol):
    """Files by name, in a folder or an archive. `str()` names it for messages."""

    @property
    def names(self) -> Sequence[str]:
        """Relative posix paths of all files."""

    def read(self, name: str) -> bytes:
        """The content of a small file, such as a caption."""

    def where(self, name: str) -> str:
        """A file, for messages."""


class PlacedTree(Tree, Protocol):
    """One whose images are found by their numbers among its names."""

    def origins(self, rows: Sequence[int], names: Sequence[str]) -> Callable[[int], Origin]:
        """Where images lie, by their numbers among these, whose rows and names are given."""


class NameIndex:
    """Finds names: an equal one, else one of another Unicode composition (NFC, NFD), else of another case too."""

    def __init__(self, names: Iterable[str]) -> None:
        self._given = names

    @cached_property
    def _names(self) -> set[str]:
        return set(self._given)

    @cached_property
    def _folded(self) -> Mapping[str, list[str]]:
        folded: defaultdict[str, list[str]] = defaultdict(list)
        for name in self._names:
            folded[fold(name)].append(name)
        return folded

    def __bool__(self) -> bool:
        return bool(self._names)

    def find(self, name: str) -> str | None:
        """The name that is meant; None where there is none, or more than one."""
        if name in self._names:
            return name
        found = self._folded.get(fold(name), [])
        same = [other for other in found if composed(other) == composed(name)]
        return (same or found)[0] if len(same or found) == 1 else None


def fold(name: str) -> str:
    """The same for names that differ in case or Unicode composition only."""
    return name.lower() if name.isascii() else composed(name).casefold()


def composed(text: str) -> str:
    """Text in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", text)


def has_image_suffix(name: str) -> bool:
    """Tell whether a file name promises an image."""
    return splitext(name)[1].lower() in IMAGE_SUFFIXES


def is_hidden(path: str) -> bool:
    """Tell whether any part of a relative posix path begins with a dot."""
    return any(part.startswith(".") for part in path.split("/"))


def natural_key(path: str) -> str:
    """A sort key in which img2 comes before img10; short, since there may be millions."""
    return "\0".join(map(_natural_part, path.split("/"))) + f"\0\0{path}"


def _natural_part(part: str) -> str:
    """Text as it is, numbers after their length, each ended by what sorts before all that may follow it."""
    pieces = re.split(r"([0-9]+)", part.lower())
    pieces[1::2] = [f"{chr(1 + len(digits.lstrip('0')))}{digits.lstrip('0')}" for digits in pieces[1::2]]
    return "\1".join(pieces)


def counted(num: int, noun: str) -> str:
    """A number with its noun: "1 file", "2 files"."""
    return count_text(f"{num:,}", noun)


def shown_names(names: Iterable[str], num: int, most: int = 3) -> str:
    """The first few names for a message: "a, b, c and 7 more"."""
    first = [name for name, _ in zip(names, range(most), strict=False)]
    return ", ".join(first) + (f" and {num - len(first):,} more" if num > len(first) else "")
