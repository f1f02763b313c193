"""Ids of images: the best name that no other image has."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import overload

from vqtool.images.sources.items import ImageItem, composed
from vqtool.images.sources.packed import Group, repeated


class Items(Sequence[ImageItem]):
    """Images that were found, each of which is made when it is asked for: equal ones every time, but not the same.

    A slice is of this class, too, and holds nothing of its own.
    """

    def __init__(self, named: Sequence[_Named], changed: Mapping[int, str], rows: range | None = None) -> None:
        self._named, self._changed = named, changed
        self._starts = [0]
        for each in named:
            self._starts.append(self._starts[-1] + len(each.group))
        self._rows = range(self._starts[-1]) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> ImageItem: ...

    @overload
    def __getitem__(self, place: slice) -> Items: ...

    def __getitem__(self, place: int | slice) -> ImageItem | Items:
        if isinstance(place, slice):
            return Items(self._named, self._changed, self._rows[place])
        return self._make(self._rows[place])

    def __iter__(self) -> Iterator[ImageItem]:
        return map(self._make, self._rows)

    def _make(self, number: int) -> ImageItem:
        source = bisect_right(self._starts, number) - 1
        named, row = self._named[source], number - self._starts[source]
        words, id = named.group.words_of(row), self._changed.get(number)
        return ImageItem(
            named.id(row) if id is None else id,
            None if words.label is None else printable_name(words.label),
            words.captions[0] if words.captions else None,
            named.group.origin(row),
            words.captions[1:],
        )


class _Named:
    """The images of a source, and which of their names is the id of each."""

    def __init__(self, group: Group, prefix: str = "", level: Sequence[int] | None = None) -> None:
        self.group, self._prefix, self.level = group, prefix, level

    def own(self, row: int) -> str:
        """The name of an image within its source."""
        return self.group.names(row)[0 if self.level is None else self.level[row]]

    def id(self, row: int) -> str:
        """The name of an image."""
        return printable_name(self._prefix + self.own(row))

    def names(self) -> Iterator[str]:
        """The names of all within the source."""
        return map(self.own, range(len(self.group)))

    def ids(self) -> Iterator[str]:
        """The names of all."""
        return map(self.id, range(len(self.group)))

    def with_prefix(self, prefix: str) -> _Named:
        """The same, with names that begin with something."""
        return _Named(self.group, prefix, self.level)


def make_items(groups: Mapping[str, Group]) -> Items:
    """Items with unique ids.

    Args:
        groups: images by the name of their source; "" is that of files named one by one, which have no source.
    """
    filled = {name: _Named(group) for name, group in groups.items() if len(group)}
    num = sum(len(each.group) for each in filled.values())
    if not _repeated_ids(filled.values(), num):
        return Items(list(filled.values()), {})
    for each in filled.values():
        each.level = _levels_within(each.group)
    shared = repeated(lambda: chain.from_iterable(each.names() for each in filled.values()), num)
    counts = Counter(chain.from_iterable(shared.intersection(each.names()) for each in filled.values()))
    named = [
        each.with_prefix(f"{name}/") if name and any(counts[one] > 1 for one in each.names()) else each
        for name, each in filled.items()
    ]
    return Items(named, _number_repeats(named, num))


def _repeated_ids(named: Iterable[_Named], num: int) -> set[str]:
    return repeated(lambda: chain.from_iterable(each.ids() for each in named), num)


def _levels_within(group: Group) -> Sequence[int]:
    """Which of its names each image has: the first; the next one as long as another image is called the same."""
    level = array("B", bytes(len(group)))
    depth = max(len(group.names(row)) for row in range(len(group)))
    for _ in range(depth - 1):
        names = _Named(group, level=array("B", level)).names
        twice = repeated(names, len(group))
        if not twice:
            break
        for row, name in enumerate(names()):
            if name in twice:
                level[row] = min(level[row] + 1, len(group.names(row)) - 1)
    return level


def _number_repeats(named: Sequence[_Named], num: int) -> dict[int, str]:
    """-2, -3, ... after ids that are still the same: of an image that is given twice, by its number."""
    twice = _repeated_ids(named, num)
    changed: dict[int, str] = {}
    if not twice:
        return changed
    taken = set(chain.from_iterable(each.ids() for each in named))
    seen: Counter[str] = Counter()
    for number, one in enumerate(chain.from_iterable(each.ids() for each in named)):
        if one in twice:
            id = one
            while seen[one] and id in taken:
                seen[one] += 1
                id = f"{one}-{seen[one]}"
            if id == one:
                seen[one] = 1
            else:
                changed[number] = id
                taken.add(id)
    return changed


def printable_name(text: str) -> str:
    """Text in Unicode's composed form. File names need not be UTF-8; ids must be, to stand in HDF5 and JSON."""
    return text if text.isascii() else composed(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
