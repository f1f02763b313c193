"""What is known of many images in few bytes each: a million of them are found together.

Python keeps some 60 bytes for a short text and 50 or more for any object, so that texts lie in one block here, numbers
in arrays, and objects are made when they are asked for.
"""

from __future__ import annotations

from abc import abstractmethod
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import merge
from itertools import chain
from typing import TypeVar, overload

import numpy as np

from vqtool.images.sources.items import NO_WORDS, Origin, Words, natural_key

T = TypeVar("T")

SORTED = 1 << 15  # names that are sorted together

Names = Callable[[int], tuple[str, ...]]  # what an image may be called, by its number, the best first


class Packed(Sequence[T]):
    """Objects that are made when they are asked for."""

    @abstractmethod
    def _at(self, place: int) -> T:
        """The one at a place from 0 on."""

    @overload
    def __getitem__(self, place: int) -> T: ...

    @overload
    def __getitem__(self, place: slice) -> list[T]: ...

    def __getitem__(self, place: int | slice) -> T | list[T]:
        places = range(len(self))[place]
        return self._at(places) if isinstance(places, int) else [self._at(each) for each in places]


class Texts(Packed[str]):
    """Texts, in 8 bytes each and one for each of their own in UTF-8."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._data, self._ends = bytearray(), array("Q", (0,))
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        """Add a text."""
        self._data += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._data))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _at(self, place: int) -> str:
        return self._data[self._ends[place] : self._ends[place + 1]].decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        data, ends = self._data, self._ends
        return (data[ends[place] : ends[place + 1]].decode("utf-8", "surrogatepass") for place in range(len(ends) - 1))


class TextRows(Packed[tuple[str, ...]]):
    """A few texts each, or none, of many images."""

    def __init__(self, rows: Iterable[tuple[str, ...]] = ()) -> None:
        self._texts, self._ends = Texts(), array("Q", (0,))
        for row in rows:
            self.append(row)

    def append(self, row: tuple[str, ...]) -> None:
        """Add those of an image."""
        for text in row:
            self._texts.append(text)
        self._ends.append(len(self._texts))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _at(self, place: int) -> tuple[str, ...]:
        return tuple(self._texts[self._ends[place] : self._ends[place + 1]])


class PackedWords(Packed[Words]):
    """Labels and captions of many images: a number for a label, which many share; without their ids."""

    def __init__(self, words: Iterable[Words]) -> None:
        numbers: dict[str | None, int] = {None: 0}
        self._numbers = array("I")

        def captions() -> Iterator[tuple[str, ...]]:
            for each in words:
                self._numbers.append(numbers.setdefault(each.label, len(numbers)))
                yield each.captions

        self._captions = TextRows(captions())
        self._labels = list(numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def _at(self, place: int) -> Words:
        return Words(self._labels[self._numbers[place]], self._captions[place])


class Group:
    """The images of one source, before their ids are made unique across sources."""

    def __init__(self, num: int, names: Names, origin: Callable[[int], Origin], words: Iterable[Words] | None) -> None:
        """A group.

        Args:
            num: how many there are.
            names: what each may be called; the next one where two would be called the same.
            origin: where each lies.
            words: of each; None: of none anything is said.
        """
        self._num, self.names, self.origin = num, names, origin
        self._words = None if words is None else PackedWords(words)

    def __len__(self) -> int:
        return self._num

    @property
    def words(self) -> Iterator[Words]:
        """What is said of each."""
        return map(self.words_of, range(self._num))

    def words_of(self, row: int) -> Words:
        """What is said of one."""
        return NO_WORDS if self._words is None else self._words[row]

    def pick(self, rows: Sequence[int]) -> Group:
        """Some of the images."""
        kept = array("Q", rows)
        words = None if self._words is None else map(self.words_of, kept)
        return Group(len(kept), lambda row: self.names(kept[row]), lambda row: self.origin(kept[row]), words)

    def with_words(self, words: Iterable[Words]) -> Group:
        """The same images, of which something else is said."""
        return Group(self._num, self.names, self.origin, words)


def natural_order(names: Sequence[str]) -> array[int]:
    """The numbers of names in natural order; keys of SORTED of them are held at a time."""
    parts: list[array[int]] = []
    last, is_sorted = "", True
    for start in range(0, len(names), SORTED):
        keyed = sorted((natural_key(names[row]), row) for row in range(start, min(start + SORTED, len(names))))
        is_sorted &= last <= keyed[0][0]
        last = keyed[-1][0]
        parts.append(array("Q", (row for _, row in keyed)))
    numbers = chain.from_iterable(parts) if is_sorted else merge(*parts, key=lambda row: natural_key(names[row]))
    return array("Q", numbers)


def repeated(texts: Callable[[], Iterable[str]], num: int) -> set[str]:
    """The texts of `num` that are there more than once, in 8 bytes a text; `texts` begins anew when it is called."""
    hashes = np.fromiter(map(hash, texts()), np.int64, num)
    hashes.sort()
    twice = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    if not twice:
        return set()
    counts = Counter(text for text in texts() if hash(text) in twice)
    return {text for text, count in counts.items() if count > 1}
