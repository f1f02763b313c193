"""How scores answer to known damage of real pictures, as a table: each should get worse with each step.

Two halves of the pictures that are given: one is the reference, the other one is damaged more and more, by blur, noise
and JPEG, by leaving out kinds of pictures (clusters of the features), and by putting copies in place of others.

    python scripts/damage_table.py build/pictures/photographs-64.tar.gz --num 500
"""

import argparse
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from sklearn.cluster import KMeans

from vqtool.errors import VqtoolError
from vqtool.images import find_images, read_images
from vqtool.metrics import FeatureNetwork, Features, extract, load_features, measure_features

Damage = Callable[[Image.Image, float, np.random.Generator], Image.Image]
BATCH = 64
CLUSTERS = 10


def blur(picture: Image.Image, amount: float, generator: np.random.Generator) -> Image.Image:
    """A Gaussian of so many pixels."""
    return picture.filter(ImageFilter.GaussianBlur(amount))


def noise(picture: Image.Image, amount: float, generator: np.random.Generator) -> Image.Image:
    """Gaussian noise of this standard deviation in 0..255."""
    pixels = np.asarray(picture) + generator.normal(scale=amount, size=(*picture.size[::-1], 3))
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def jpeg(picture: Image.Image, amount: float, generator: np.random.Generator) -> Image.Image:
    """JPEG of this quality."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=int(amount))
    return Image.open(buffer).convert("RGB")


OF_PIXELS: dict[str, tuple[Damage, tuple[float, ...]]] = {  # a damage and its steps
    "blur, pixels": (blur, (0.5, 1.0, 2.0)),
    "noise, of 255": (noise, (8, 16, 32)),
    "JPEG quality": (jpeg, (75, 30, 10)),
}
OF_SETS = {"kinds left out, of 10": (2, 5, 8), "share of copies": (0.25, 0.5, 0.9)}


def damaged(images: NDArray[np.uint8], damage: Damage, amount: float, seed: int) -> NDArray[np.uint8]:
    """Pictures (N, 3, h, w), each damaged."""
    generator = np.random.default_rng(seed)
    pictures = (damage(Image.fromarray(each.transpose(1, 2, 0)), amount, generator) for each in images)
    return np.stack([np.asarray(picture).transpose(2, 0, 1) for picture in pictures])


def without_kinds(features: Features, num: int, seed: int) -> Features:
    """As many pictures, repeated at random, without those of so many clusters."""
    kinds = KMeans(CLUSTERS, n_init=1, random_state=seed).fit_predict(features.pooled)
    generator = np.random.default_rng(seed)
    kept = np.flatnonzero(~np.isin(kinds, generator.permutation(CLUSTERS)[:num]))
    return features[kept]


def with_copies(features: Features, share: float, seed: int) -> Features:
    """This share of the pictures replaced by copies of the others."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(features))
    kept = order[: max(1, round(len(features) * (1 - share)))]
    return features[np.concatenate([kept, generator.choice(kept, len(features) - len(kept))])]


@dataclass(frozen=True)
class Row:
    """The scores of one step of one damage."""

    damage: str
    amount: float | None
    scores: dict[str, float]
    errors: dict[str, float]
    better: dict[str, str]


def rows(images: NDArray[np.uint8], network: FeatureNetwork, seed: int) -> Iterator[Row]:
    """The undamaged half first, then every step of every damage."""
    order = np.random.default_rng(seed).permutation(len(images))
    half = len(images) // 2
    theirs, ours = images[order[:half]], images[order[half : 2 * half]]
    reference, clean = (_features(network, part) for part in (theirs, ours))

    def row(damage: str, amount: float | None, features: Features) -> Row:
        some = reference if len(features) == len(reference) else reference[: len(features)]
        found = {score.name.rpartition("-" + features.name)[0]: score for score in measure_features(some, features)}
        errors = {name: score.standard_error or 0.0 for name, score in found.items()}
        return Row(
            damage,
            amount,
            {name: score.value for name, score in found.items()},
            errors,
            {name: score.better for name, score in found.items()},
        )

    yield row("none", None, clean)
    for damage, (function, steps) in OF_PIXELS.items():
        for amount in steps:
            yield row(damage, amount, _features(network, damaged(ours, function, amount, seed)))
    for amount in OF_SETS["kinds left out, of 10"]:
        kept = without_kinds(clean, int(amount), seed)
        filled = np.random.default_rng(seed).choice(len(kept), len(clean))
        filled[: len(kept)] = np.arange(len(kept))
        yield row("kinds left out, of 10", amount, kept[filled])
    for amount in OF_SETS["share of copies"]:
        yield row("share of copies", amount, with_copies(clean, amount, seed))


def _features(network: FeatureNetwork, images: NDArray[np.uint8]) -> Features:
    return extract(network, (images[start : start + BATCH] for start in range(0, len(images), BATCH)))


def turns(found: Sequence[Row]) -> dict[tuple[str, str], bool]:
    """Whether a score gets worse with each step of a damage: (damage, score) -> yes."""
    first, told = found[0], {}
    for damage in dict.fromkeys(row.damage for row in found[1:]):
        steps = [first, *(row for row in found if row.damage == damage)]
        for name, better in first.better.items():
            sign = 1 if better == "lower" else -1
            values = [sign * row.scores[name] for row in steps]
            told[damage, name] = all(b >= a for a, b in pairwise(values)) and values[-1] > values[0]
    return told


def table(found: Sequence[Row]) -> Iterator[str]:
    """Markdown: a row a step; the last one of a damage marks the scores that got worse at every step."""
    names = list(found[0].scores)
    worse = turns(found)
    yield "| damage | step | " + " | ".join(names) + " |"
    yield "|---" * (2 + len(names)) + "|"
    for row, following in zip(found, [*found[1:], None], strict=True):
        last = row.damage != "none" and (following is None or following.damage != row.damage)
        marks = {name: " ✓" if last and worse[row.damage, name] else "" for name in names}
        amount = "" if row.amount is None else f"{row.amount:g}"
        cells = [f"{row.scores[name]:.3g}{marks[name]}" for name in names]
        yield f"| {row.damage} | {amount} | " + " | ".join(cells) + " |"


def main(arguments: Sequence[str] | None = None, network: FeatureNetwork | None = None) -> int:
    """Print the table of the pictures that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--num", type=int, default=500, help="pictures a side")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="JSON file of all numbers")
    options = parser.parse_args(arguments)
    try:
        items = find_images(options.pictures)
        chosen = np.random.default_rng(options.seed).permutation(len(items))[: 2 * options.num]
        images = read_images([items[i] for i in np.sort(chosen)], (options.size, options.size), words="none").images
        found = list(rows(images, network or load_features(), options.seed))
    except VqtoolError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(images) // 2} pictures of {options.size} px a side, seed {options.seed}\n")
    print("\n".join(table(found)))
    if options.output is not None:
        options.output.write_text(json.dumps([vars(row) for row in found], indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
