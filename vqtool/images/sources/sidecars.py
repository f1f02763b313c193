"""Texts beside images: x.txt, x.png.txt, x.caption, captions/x.txt, x.cls, x.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from posixpath import basename, dirname, splitext

from vqtool.errors import warn
from vqtool.images.sources.items import CAPTION_FOLDERS, NO_WORDS, NameIndex, Tree, Words, counted, shown_names
from vqtool.images.sources.options import SourceOptions
from vqtool.images.sources.tables import clean, decode_text, read_sidecar

CAPTION_ENDINGS = (".txt", ".caption")
SIDECAR_ENDINGS = (*CAPTION_ENDINGS, ".cls", ".json")


class Sidecars:
    """The files beside images, looked up by the names of the images."""

    def __init__(self, tree: Tree, images: Sequence[str], options: SourceOptions, beside: Sequence[str]) -> None:
        self._tree, self._lines = tree, options.caption_lines
        self._captions, self._labels = options.captions is None, options.labels is None  # what is needed
        names = chain(tree.names, beside)
        self._index = NameIndex(name for name in names if name.lower().endswith(SIDECAR_ENDINGS))
        self._images = images
        self._long: list[tuple[int, str]] = []  # (characters, name) of captions of several lines
        self._apart: dict[str, list[str]] = {}  # images by their captions in a folder of captions
        self.used: set[str] = set()

    @cached_property
    def _stems(self) -> Counter[str]:
        return Counter(splitext(image)[0].casefold() for image in self._images)

    def complete(self, image: str, words: Words) -> Words:
        """Words of an image with what is said of it beside it, where its row says nothing."""
        if not self._index:
            return words
        label, captions = words.label, words.captions
        stems = tuple(_stems(image))
        for stem in stems:
            json = self._find(image, f"{stem}.json")
            both = NO_WORDS if json is None else read_sidecar(self._read(json), self._tree.where(json))
            cls = self._find(image, f"{stem}.cls") if self._labels else None
            label = label or (clean(self._read(cls)) if cls else None) or both.label
            names = [stem + ending for ending in CAPTION_ENDINGS] if self._captions else []
            text = next(filter(None, (self._find(image, name) for name in names)), None)
            captions = captions or (self._caption(text) if text else ()) or both.captions
        if self._captions and not captions:
            place = next(filter(None, (self._find(image, name) for name in _apart(image))), None)
            captions = self._caption(place) if place else ()
            if place:
                self._apart.setdefault(place, []).append(image)
        return replace(words, label=label, captions=captions)

    def tell(self) -> None:
        """Tell of captions of several lines, and of those that several images take."""
        shared = [f"{name} ({' and '.join(own[:2])})" for name, own in self._apart.items() if len(own) > 1]
        if shared:
            listed = shown_names(shared, len(shared))
            warn(f"{self._tree}: {counted(len(shared), 'caption')} taken by several images of one name: {listed}")
        if self._long and self._lines != "each":
            longest, name = max(self._long)
            taken = "each is taken whole" if self._lines == "all" else "the first line is taken"
            warn(
                f"{self._tree}: {counted(len(self._long), 'caption')} of several lines: {taken}; the longest, {name}, "
                f"has {longest:,} characters; `caption_lines` all, first or each chooses"
            )

    def _find(self, image: str, name: str) -> str | None:
        """A file; one that differs in case only where no other image could be meant."""
        found = self._index.find(name)
        if found is not None and found != name and self._stems[splitext(image)[0].casefold()] > 1:
            return None
        return found

    def _read(self, name: str) -> str:
        self.used.add(name)
        return decode_text(self._tree.read(name), self._tree.where(name))

    def _caption(self, name: str) -> tuple[str, ...]:
        text = clean(self._read(name))
        if text is None:
            return ()
        lines = [line for line in map(str.strip, text.splitlines()) if line]
        if len(lines) > 1:
            self._long.append((len(text), name))
        return {"all": (text,), "first": (lines[0],), "each": tuple(dict.fromkeys(lines))}[self._lines]


def _stems(image: str) -> Iterator[str]:
    """What files beside `a/b.c.jpg` may be called: a/b.c, a/b.c.jpg, and a/b, which is webdataset's key."""
    folder, name = dirname(image), basename(image)
    yield from dict.fromkeys((splitext(image)[0], image, f"{folder}/{name.split('.', 1)[0]}".lstrip("/")))


def _apart(image: str) -> Iterator[str]:
    """Where captions in a folder of their own may lie: in the image's folder, beside it, at the top, or beside that."""
    folder, stem = dirname(image), splitext(basename(image))[0]
    below = splitext(image)[0].partition("/")[2]
    for name in CAPTION_FOLDERS:
        for place in dict.fromkeys((f"{folder}/{name}", f"{dirname(folder)}/{name}")):
            yield f"{place}/{stem}.txt".lstrip("/")
        yield f"{name}/{splitext(image)[0]}.txt"
        if below:
            yield f"{name}/{below}.txt"
        yield f"../{name}/{splitext(image)[0]}.txt"
