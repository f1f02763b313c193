"""One side of a comparison: the features of its pictures, or statistics of them, with what its card says."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import MismatchError, VqtoolError, count_text, size_text
from vqtool.images import OnError
from vqtool.metrics.card import Facts, Side, count_endings
from vqtool.metrics.features import FeatureNetwork, Features, concatenate, extract
from vqtool.metrics.frechet import Statistics
from vqtool.metrics.pictures import Pictures, Size, noting, pixel_digests

Digests = NDArray[np.uint64]
NAMED = ("name", "digest", "resize", "precision")  # what says which features they are
UNNAMED = dict(zip(NAMED, ("unnamed", "", "", ""), strict=True))  # features of which no side says whose they are
_Sums = tuple[int, NDArray[np.float64], NDArray[np.float64]]  # N, mean (D,), sum of products of differences (D, D)


@dataclass(frozen=True, kw_only=True)
class About:
    """What is known of the pictures of a side beside their features; it is saved with these."""

    held: str = "features"  # what was given: see `card.Side`
    size: tuple[int, ...] = ()  # (height, width) that they were read in; () if that is not known
    fit: str = ""  # how they came to it
    num_given: int | None = None
    unreadable: tuple[str, ...] = ()  # those that were left out
    split: str = ""
    sizes: tuple[tuple[int, int], ...] = ()  # that some of them had
    endings: dict[str, int] = field(default_factory=dict)  # of their files
    parts: tuple[str, ...] = ()  # that they are of a whole, as "1/4"; () if they are all of it

    def missing(self) -> list[str]:
        """The parts that the whole lacks: "1/4" alone lacks "2/4", "3/4" and "4/4"."""
        return [name for names in _wholes(self.parts) for name in names if name not in self.parts]

    def merged(self, other: "About") -> "About":
        """Of the pictures of both.

        Raises:
            MismatchError: they were not read alike.
        """
        for name in ("size", "fit"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise MismatchError(f"pictures of {name} {_shown(ours)} and {_shown(theirs)} do not make one set")
        known = None not in (self.num_given, other.num_given)
        return replace(
            self,
            held=self.held if self.held == other.held else "features",
            num_given=(self.num_given or 0) + (other.num_given or 0) if known else None,
            unreadable=self.unreadable + other.unreadable,
            split=self.split if self.split == other.split else "",
            sizes=tuple(sorted({*self.sizes, *other.sizes})),
            endings={e: self.endings.get(e, 0) + other.endings.get(e, 0) for e in {**self.endings, **other.endings}},
            parts=_left_open(self.parts + other.parts),
        )


def _wholes(parts: Sequence[str]) -> list[list[str]]:
    """All parts of each whole that some parts, such as "1/4", are of."""
    totals = sorted({int(part.partition("/")[2]) for part in parts})
    return [[f"{number}/{total}" for number in range(1, total + 1)] for total in totals]


def _left_open(parts: Sequence[str]) -> tuple[str, ...]:
    """Those of some parts that are left when every whole that is complete is taken out."""
    left = Counter(parts)
    for names in _wholes(parts):
        left -= Counter(names * min(left[name] for name in names))
    return tuple(left.elements())


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of pictures with what is known of each."""

    features: Features  # N rows
    about: About
    digests: Digests = field(default_factory=lambda: np.empty(0, np.uint64))  # (N,) of pixels; (0,) if not known
    ids: list[str] = field(default_factory=list)  # N, or none
    labels: list[str] = field(default_factory=list)  # N, "" where there is none; or none
    pictures: Pictures | None = None  # to look at them again
    rows: NDArray[np.int64] | None = None  # (N,) which of `pictures` they are
    source: str = ""  # the file that it was loaded from

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: NDArray[np.int64]) -> "FeatureSet":
        return replace(
            self,
            features=self.features[rows],
            digests=self.digests[rows] if len(self.digests) else self.digests,
            ids=[self.ids[row] for row in rows] if self.ids else [],
            labels=[self.labels[row] for row in rows] if self.labels else [],
            rows=None if self.rows is None else self.rows[rows],
        )

    @property
    def named(self) -> dict[str, str]:
        """Whose features they are: see `NAMED`; "" where that is not known."""
        return {what: getattr(self.features, what) for what in NAMED}

    def renamed(self, named: Mapping[str, Any]) -> "FeatureSet":
        """The same, taken for features of that name."""
        return replace(self, features=replace(self.features, **named))

    @property
    def headline(self) -> str:
        """For people."""
        name = self.features.name or "an unknown network"
        return f"{count_text(len(self), 'image')}: features of {name}, and their statistics"

    def statistics(self) -> "StatisticsSet":
        """Mean and covariance of its features."""
        found = Accumulator(self.about)
        found.add(self.features, self.digests)
        return found.result()

    def read(self, rows: Sequence[int]) -> list[NDArray[np.uint8]]:
        """Some of its pictures (3, h, w) once more; empty ones where they are not at hand."""
        nothing = np.empty((3, 0, 0), np.uint8)
        if self.pictures is None or self.rows is None:
            return [nothing] * len(rows)
        size, wanted = (self.about.size[0], self.about.size[1]), sorted({int(self.rows[row]) for row in rows})
        found: dict[int, NDArray[np.uint8]] = {}
        for places, images in self.pictures.batches(np.array(wanted), size, self.about.fit, lambda item, error: None):
            found.update(zip(places, images, strict=True))
        return [found.get(int(self.rows[row]), nothing) for row in rows]


@dataclass(frozen=True, eq=False)
class StatisticsSet:
    """Means and covariances of features, where the features themselves were not kept."""

    statistics: dict[str, Statistics]  # kind of array in `Features` -> its mean, covariance and N
    about: About
    name: str = ""  # of the features, their digest and resize policy; "" if they are not known
    digest: str = ""
    resize: str = ""
    precision: str = "fp32"  # in which they were computed
    digests: Digests = field(default_factory=lambda: np.empty(0, np.uint64))
    source: str = ""  # the file that it was loaded from

    def __len__(self) -> int:
        return self.statistics["pooled"].num_samples

    @property
    def named(self) -> dict[str, str]:
        """Whose features they are of: see `NAMED`; "" where that is not known."""
        return {what: getattr(self, what) for what in NAMED}

    def renamed(self, named: Mapping[str, Any]) -> "StatisticsSet":
        """The same, taken for those of features of that name."""
        return replace(self, **named)

    @property
    def headline(self) -> str:
        """For people."""
        num, name = len(self) or "an unknown number of", self.name or "an unknown network"
        return f"{count_text(num, 'image')}: statistics of features of {name}"

    def check_same(self, other: "StatisticsSet") -> None:
        """Raise unless another set is of the same features, as far as both say what they are of.

        Raises:
            MismatchError: says in what they differ.
        """
        widths = [len(each.statistics["pooled"].mean) for each in (self, other)]
        if widths[0] != widths[1]:
            raise MismatchError(f"statistics of {widths[0]} and of {widths[1]} features an image")
        for what in NAMED:
            ours, theirs = getattr(self, what), getattr(other, what)
            if self.name and other.name and ours != theirs:
                raise MismatchError(f"statistics of features of {what} {ours!r} and {theirs!r}")

    def check_features(self, features: Features) -> None:
        """Raise unless they are statistics of features like these, as far as they say what they are of.

        Raises:
            MismatchError: says in what they differ.
        """
        width, where = len(self.statistics["pooled"].mean), f"{self.source}: " if self.source else ""
        if width != features.pooled.shape[1]:
            raise MismatchError(
                f"{where}statistics of {width} features an image, but {features.name or 'the other side'} gives "
                f"{features.pooled.shape[1]}: name the features that they are of with `features`"
            )
        for what in NAMED:
            ours, theirs = getattr(features, what), getattr(self, what)
            if self.name and features.name and ours != theirs:
                raise MismatchError(f"{where}statistics of features of {what} {theirs!r}, not {ours!r}")


class Accumulator:
    """Mean and covariance of features that come batch by batch; memory does not grow but by 8 bytes a picture.

    Source: Chan et al. 1979, the update of means and sums of squares by a batch.
    """

    def __init__(self, about: About) -> None:
        self.about = about
        self._first: Features | None = None
        self._sums: dict[str, _Sums] = {}
        self._digests: list[Digests] = []

    def add(self, features: Features, digests: Digests) -> None:
        """Take in a batch."""
        self._first = self._first or features[:0]
        self._digests.append(digests)
        for kind in ("pooled", "spatial"):
            rows = features.arrays().get(kind)
            if rows is not None and len(rows):
                centred = rows.astype(np.float64)
                mean = centred.mean(axis=0)
                centred -= mean
                self._sums[kind] = _join(self._sums.get(kind), (len(rows), mean, centred.T @ centred))

    def join(self, other: "Accumulator") -> None:
        """Take in what another one has, of the pictures that follow.

        Raises:
            MismatchError: they were not read alike.
        """
        self.about = self.about.merged(other.about)
        self._first = self._first or other._first
        self._digests += other._digests
        for kind, sums in other._sums.items():
            self._sums[kind] = _join(self._sums.get(kind), sums)

    def result(self) -> StatisticsSet:
        """Of all batches.

        Raises:
            VqtoolError: fewer than two pictures.
        """
        num = self._sums["pooled"][0] if "pooled" in self._sums else 0
        if num < 2 or self._first is None:
            raise VqtoolError(f"statistics of {num} image{'s' * (num != 1)}: at least 2 are needed")
        found = {kind: Statistics(mean, squares / (n - 1), n) for kind, (n, mean, squares) in self._sums.items()}
        first = self._first
        named = {what: getattr(first, what) for what in NAMED}
        return StatisticsSet(found, self.about, **named, digests=np.concatenate(self._digests))


def _join(a: _Sums | None, b: _Sums) -> _Sums:
    if a is None:
        return b
    num = a[0] + b[0]
    gap = b[1] - a[1]
    return num, a[1] + gap * (b[0] / num), a[2] + b[2] + np.outer(gap, gap) * (a[0] * b[0] / num)


def read_features(
    pictures: Pictures,
    rows: NDArray[np.int64],
    network: FeatureNetwork,
    about: About,
    *,
    on_error: OnError | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> FeatureSet:
    """The features of some pictures, those that can be read.

    Args:
        pictures: what is read.
        rows: which of them, ascending.
        network: images -> features.
        about: in which size, and how they come to it.
        on_error: see `Pictures.batches`.
        advance: is told how many were read.
    """
    left_out: list[str] = []
    parts = list(_read(pictures, rows, network, about, left_out, on_error, advance))
    kept = np.array([row for places, _, _ in parts for row in places], dtype=np.int64)
    return FeatureSet(
        concatenate([features for _, features, _ in parts]) if parts else extract(network, []),
        _finished(about, pictures, rows, left_out),
        np.concatenate([digests for _, _, digests in parts]) if parts else np.empty(0, np.uint64),
        [pictures.ids[row] for row in kept],
        [pictures.labels[row] for row in kept],
        pictures,
        kept,
    )


def accumulate(
    pictures: Pictures,
    rows: NDArray[np.int64],
    network: FeatureNetwork,
    about: About,
    *,
    on_error: OnError | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> Accumulator:
    """What mean and covariance of the features of some pictures are made of; arguments are those of `read_features`.

    Memory does not grow with their number.
    """
    left_out: list[str] = []
    found = Accumulator(about)
    for _, features, digests in _read(pictures, rows, network, about, left_out, on_error, advance):
        found.add(features, digests)
    found.about = _finished(about, pictures, rows, left_out)
    return found


def _read(
    pictures: Pictures,
    rows: NDArray[np.int64],
    network: FeatureNetwork,
    about: About,
    left_out: list[str],
    on_error: OnError | None,
    advance: Callable[[int], None],
) -> Iterator[tuple[list[int], Features, Digests]]:
    skip = noting(left_out, on_error)
    for places, images in pictures.batches(rows, (about.size[0], about.size[1]), about.fit, skip):
        digests = [int.from_bytes(digest[:8], "little") for digest in pixel_digests(images)]
        yield places, extract(network, [images]), np.array(digests, dtype=np.uint64)
        advance(len(images))


def _finished(about: About, pictures: Pictures, rows: NDArray[np.int64], left_out: list[str]) -> About:
    return replace(
        about,
        held=pictures.held,
        unreadable=(*pictures.left_out, *left_out),
        sizes=tuple(sorted(pictures.sizes())),
        endings=count_endings([pictures.files[row] for row in rows] if pictures.files else []),
    )


def facts_of(found: FeatureSet | StatisticsSet) -> Facts:
    """What card and warnings say of a side."""
    about, digests = found.about, found.digests
    known = 0 < len(digests) == len(found)
    side = Side(
        num=len(found) or None,
        num_given=about.num_given,
        duplicates=len(digests) - len(np.unique(digests)) if known else None,
        unreadable=len(about.unreadable),
        id=set_id(found),
        fit=about.fit,
        split=about.split,
        held=about.held,
    )
    return Facts(side, frozenset(about.sizes), about.endings, about.missing())


def set_id(found: FeatureSet | StatisticsSet) -> str:
    """Sixteen digits that name a set of pictures, whatever their order; of statistics alone, of their numbers."""
    if 0 < len(found.digests) == len(found):
        content = np.sort(found.digests).tobytes()
    elif isinstance(found, StatisticsSet):
        pooled = found.statistics["pooled"]
        content = pooled.mean.tobytes() + pooled.covariance.tobytes()
    else:
        content = b"".join(sorted(row.tobytes() for row in found.features.pooled))
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def count_copies(generated: Digests, reference: Digests) -> int | None:
    """How many of the generated pictures are in the reference; None if the pixels of a side are not known."""
    if not len(generated) or not len(reference):
        return None
    return int(np.isin(generated, reference).sum())


def _shown(value: Any) -> str:
    return (size_text(value) or "unknown") if isinstance(value, tuple) else (str(value) or "unknown")


def size_of(found: FeatureSet | StatisticsSet) -> Size | None:
    """The size that saved features were read in, if it is known."""
    size = found.about.size
    return (size[0], size[1]) if len(size) == 2 else None
