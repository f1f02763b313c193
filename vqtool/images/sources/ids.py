"""Ids of images: the best name that no other image has."""

from collections import Counter

from vqtool.images.sources.items import Entry, ImageItem, composed


def make_items(groups: dict[str, list[Entry]]) -> list[ImageItem]:
    """Items with unique ids.

    Args:
        groups: entries by the name of their source; "" is that of files named one by one, which have no source.
    """
    ids = {name: _ids_within(entries) for name, entries in groups.items()}
    seen = Counter(one for own in ids.values() for one in set(own))
    for name, own in ids.items():
        if name and any(seen[one] > 1 for one in own):
            ids[name] = [f"{name}/{one}" for one in own]
    entries = [entry for group in groups.values() for entry in group]
    unique = _number_repeats([printable_name(one) for own in ids.values() for one in own])
    return [_make_item(one, entry) for one, entry in zip(unique, entries, strict=True)]


def _make_item(id: str, entry: Entry) -> ImageItem:
    captions, label = entry.words.captions, entry.words.label
    return ImageItem(
        id,
        None if label is None else printable_name(label),
        captions[0] if captions else None,
        entry.origin,
        captions[1:],
    )


def _ids_within(entries: list[Entry]) -> list[str]:
    """Each entry's first name; its next one as long as another entry is called the same."""
    level = [0] * len(entries)
    for _ in range(max((len(entry.names) for entry in entries), default=1) - 1):
        names = [entry.names[i] for entry, i in zip(entries, level, strict=True)]
        counts = Counter(names)
        level = [
            min(i + (counts[name] > 1), len(entry.names) - 1)
            for entry, i, name in zip(entries, level, names, strict=True)
        ]
    return [entry.names[i] for entry, i in zip(entries, level, strict=True)]


def _number_repeats(ids: list[str]) -> list[str]:
    """Append -2, -3, ... to ids that are still the same: an image given twice."""
    taken: set[str] = set()
    numbers: Counter[str] = Counter()
    given = set(ids)
    for i, one in enumerate(ids):
        while ids[i] in taken or (ids[i] != one and ids[i] in given):
            numbers[one] += 1
            ids[i] = f"{one}-{numbers[one] + 1}"
        taken.add(ids[i])
    return ids


def printable_name(text: str) -> str:
    """Text in Unicode's composed form. File names need not be UTF-8; ids must be, to stand in HDF5 and JSON."""
    return composed(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
