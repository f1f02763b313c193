"""The metric card: all that a result depends on beside the pictures scored, a line each, in every result.

Two results compare only if the lines that matter are equal; `first_difference` names one that is not. What else a
reader should know before believing a number stands in the warnings of `find_warnings`.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vqtool.images.sources.items import has_image_suffix
from vqtool.trust import parse_record
from vqtool.version import __version__

_MOST = 0.9  # share of a side's files from which on the side counts as JPEG, or as without losses
_JPEG = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})
_LOSSLESS = frozenset({".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"})
_TRAIN, _HELD_OUT = frozenset({"train", "training"}), frozenset({"test", "val", "valid", "validation", "held-out"})


@dataclass(frozen=True, kw_only=True)
class Side:
    """What a card says of the pictures or grids on one side."""

    num: int | None  # that were used; None if that is not known
    num_given: int | None = None  # that were there; None if that is not known
    duplicates: int | None = None  # that have the same pixels or tokens as an earlier one; None if that is not known
    unreadable: int = 0  # that were left out
    id: str = ""  # of what was used, whatever its order and its names; "" if it is not known
    fit: str = ""  # how pictures came to their size
    split: str = ""  # train or test, as far as its name says it
    held: str = "images"  # what was given: images, grids, features or statistics


def side_of(digests: Sequence[bytes], **about: Any) -> Side:
    """What a card says of pictures or grids that have these digests; the order does not matter.

    Args:
        digests: one for each.
        about: other fields of `Side`.
    """
    whole = hashlib.blake2b(b"".join(sorted(digests)), digest_size=8).hexdigest()
    return Side(num=len(digests), duplicates=len(digests) - len({*digests}), id=whole, **about)


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a result depends on; None and "" are lines that it does not have."""

    measure: str  # images, pairs, reconstruction, texts, grids or likelihood
    features: str = ""  # name of the feature set
    features_digest: str = ""  # of the network's weights and of what it does to pictures
    resize: str = ""  # how pictures come to the network's size
    precision: str = "fp32"  # in which networks computed, and whether compiled; "" where there are none
    size: str = ""  # pixels before that
    tokenizer: str = ""  # that tokens are of
    prior: str = ""  # under which grids are scored
    protocol: str = ""  # what else decides what is measured
    generated: Side
    reference: Side | None = None
    copies: int | None = None  # generated pictures that are in the reference, pixel by pixel
    seed: int | None = None
    vqtool: str = __version__

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; lines that it does not have are left out."""
        return _without_blanks(
            {name: _without_blanks(its) if isinstance(its, dict) else its for name, its in asdict(self).items()}
        )

    def rows(self) -> list[tuple[str, str]]:
        """Its lines for people: "reference num" -> "256"."""
        found = []
        for name, value in self.as_dict().items():
            if isinstance(value, dict):
                found += [(f"{name} {part}", str(its)) for part, its in value.items()]
            else:
                found.append((name, str(value)))
        return [(name.replace("_", " "), value) for name, value in found]

    @classmethod
    def parse(cls, record: Any, where: str) -> "Card":
        """The card in a result.

        Raises:
            FormatError: it is none, or not one of this version.
        """
        return parse_record(cls, record, f"{where}: card")


def _without_blanks(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if value not in (None, "")}


# Lines that have to be equal for two results to be compared, each as what it is called, in the order in which a
# difference is told. What was generated, how much of it is double and the seed are what results may differ in.
MATTER = (
    "measure",
    "features",
    "features_digest",
    "resize",
    "precision",
    "size",
    "tokenizer",
    "prior",
    "protocol",
    "generated num",
    "generated fit",
    "reference split",
    "reference num",
    "reference fit",
    "reference id",
)


def first_difference(a: Card, b: Card) -> str | None:
    """The first line that matters and differs: "reference num: 256 and 2048"; None if the results compare."""
    for line in MATTER:
        ours, theirs = _value(a, line), _value(b, line)
        if ours != theirs and not (line in ("tokenizer", "prior") and a.measure in ("reconstruction", "likelihood")):
            return f"{line.replace('_', ' ')}: {_shown(ours)} and {_shown(theirs)}"
    return None


def _value(card: Card, line: str) -> Any:
    value: Any = card
    for part in line.split():
        value = None if value is None else getattr(value, part)
    return value


def _shown(value: Any) -> str:
    return "none" if value in (None, "") else str(value)


def split_of(sources: Sequence[str | Path], chosen: str | None = None) -> str:
    """ "train" or "test" as the split chosen or else the names of sources say; "" if they say neither, or both."""
    words = [chosen] if chosen else [part.lower() for path in sources for part in _parts(Path(path))]
    found = {"train" for word in words if word in _TRAIN} | {"test" for word in words if word in _HELD_OUT}
    return found.pop() if len(found) == 1 else ""


def _parts(path: Path) -> list[str]:
    return [part.partition(".")[0] for part in path.parts[-2:]]


@dataclass(frozen=True)
class Facts:
    """What of one side decides how far a number is to be trusted."""

    side: Side
    sizes: frozenset[tuple[int, int]] = frozenset()  # (height, width) of some of its pictures
    endings: Mapping[str, int] = field(default_factory=dict)  # of its files -> how many
    missing: Sequence[str] = ()  # parts that it lacks of a whole

    @property
    def compression(self) -> str:
        """Of its files: "JPEG" or "without losses"; "" if they are of both kinds, of others, or no files."""
        num = max(1, sum(self.endings.values()))
        for kind, known in (("JPEG", _JPEG), ("without losses", _LOSSLESS)):
            if sum(self.endings.get(ending, 0) for ending in known) >= _MOST * num:
                return kind
        return ""


def count_endings(locations: Sequence[str]) -> dict[str, int]:
    """The endings of image files, in lower case -> how many; rows of arrays have none."""
    return dict(Counter(Path(each).suffix.lower() for each in locations if has_image_suffix(each)))


def find_warnings(generated: Facts, reference: Facts, card: Card, feature_dim: int) -> list[str]:
    """Where a number is not to be trusted, a sentence each."""
    ours, theirs = generated.side, reference.side
    return [text for text in (
        _few(min(num for num in (ours.num, theirs.num, feature_dim) if num is not None), feature_dim),
        _unequal(ours.num, theirs.num),
        _mixed(generated, reference, card.size),
        _compressed(generated, reference),
        _trained(ours, theirs),
        _same(ours, theirs, card),
        _partial("what is scored", generated),
        _partial("the reference", reference),
    ) if text]  # fmt: skip


def _few(num: int, feature_dim: int) -> str:
    if num >= feature_dim:
        return ""
    return (
        f"{num} images a side are fewer than the {feature_dim} features: the Fréchet distance is badly biased upwards "
        "and compares only with ones of equally many images; KID is not biased"
    )


def _unequal(ours: int | None, theirs: int | None) -> str:
    if ours == theirs:
        return ""
    numbers = f"{ours or 'unknown'} images against {theirs or 'an unknown number'}"
    return f"{numbers}: scores compare only with ones of the same two numbers"


def _mixed(generated: Facts, reference: Facts, size: str) -> str:
    sizes = generated.sizes | reference.sizes
    if len(sizes) < 2:
        return ""
    smallest, largest = min(sizes), max(sizes)
    return (
        f"pictures of several sizes, {smallest[0]}x{smallest[1]} to {largest[0]}x{largest[1]}, were brought to {size} "
        "pixels: scaling alone moves scores"
    )


def _compressed(generated: Facts, reference: Facts) -> str:
    ours, theirs = generated.compression, reference.compression
    if not ours or not theirs or ours == theirs:
        return ""
    return f"the images are {ours}, those of the reference {theirs}: compression alone moves scores; store both alike"


def _trained(ours: Side, theirs: Side) -> str:
    if theirs.split != "train" or ours.split == "train":
        return ""
    return (
        "the reference is a training split: a model that repeats its training pictures scores best, and published "
        "scores against test pictures do not compare"
    )


def _same(ours: Side, theirs: Side, card: Card) -> str:
    if ours.id and ours.id == theirs.id:
        return "both sides are the same pictures: the scores are those of a perfect copy"
    if card.copies:
        pictures = "1 picture is" if card.copies == 1 else f"{card.copies} pictures are"
        return f"{pictures} in the reference too, pixel by pixel"
    return ""


def _partial(side: str, facts: Facts) -> str:
    if not facts.missing:
        return ""
    parts = f"part{'s' * (len(facts.missing) > 1)} {', '.join(facts.missing)}"
    return f"{side} lacks {parts} of its pictures: `vqtool eval merge` joins all parts"
