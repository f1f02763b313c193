"""Images against other images, by the features of both sides: pictures, decoded grids, or what was saved of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vqtool.errors import MismatchError, VqtoolError, count_text, size_text
from vqtool.images import ImageItem, OnError
from vqtool.metrics.card import Card, find_warnings
from vqtool.metrics.features import FeatureNetwork
from vqtool.metrics.galleries import show_images
from vqtool.metrics.pictures import ImageFiles, Pictures, Size
from vqtool.metrics.report import MAX_IMAGES, ClassScores, Report, choose
from vqtool.metrics.score import measure_features, measure_statistics
from vqtool.metrics.sides import (
    UNNAMED,
    About,
    FeatureSet,
    StatisticsSet,
    count_copies,
    facts_of,
    read_features,
    size_of,
)
from vqtool.progress import Progress, silent

MIXED_SIZE = (256, 256)  # of images of several sizes: the feature network sees 224
Given = Sequence[ImageItem] | Pictures | FeatureSet | StatisticsSet
Found = FeatureSet | StatisticsSet


def compare_images(
    images: Given,
    reference: Given,
    network: FeatureNetwork | None,
    *,
    size: tuple[int, int] | None = None,
    fit: str | None = None,
    max_images: int = MAX_IMAGES,
    per_class: bool = False,
    exhibits: bool = False,
    splits: tuple[str, str] = ("", ""),
    seed: int = 0,
    on_error: OnError | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Report:
    """Every metric of features, such as the Fréchet distance and KID, of images against reference images.

    Both sides are used in equal numbers (the larger one is subsampled) and read at the same size. Against statistics
    all images are used, and what needs single features is left out, with a warning.

    Args:
        images: what is scored.
        reference: what it is compared with.
        network: images -> features; None where both sides are saved.
        size: (height, width) both sides are brought to; by default that of saved features, `common_size` of `images`,
            or else the reference's.
        fit: how; None: each side as `vqtool.images.choose_fit` finds best.
        max_images: a side.
        per_class: score the images of each label too.
        exhibits: find what a page shows: neighbours and outliers.
        splits: "train" or "test", of images and reference, where that is known.
        seed: chooses the images of the larger side, and the subsets of KID.
        on_error: see read_batches.
        progress: shows how far it is.
        options: of the metrics, by name.

    Raises:
        MismatchError: saved features of other networks or sizes.
        VqtoolError: fewer than two images on a side, or an option that no metric has.
    """
    given = [ImageFiles(each) if isinstance(each, Sequence) else each for each in (images, reference)]
    size = _choose_size(given, size)
    num = _common(max_images, given)
    found: list[Found] = []
    for what, each, split in zip(("images", "reference"), given, splits, strict=True):
        if isinstance(each, FeatureSet | StatisticsSet):
            found.append(each)
            continue
        if network is None or size is None:
            raise ValueError("a network is needed for pictures")
        about = About(size=size, fit=each.choose_fit(size, fit), num_given=len(each.ids), split=split)
        rows = choose(len(each.ids), min(len(each.ids), max_images) if per_class else num, seed)
        with progress(f"features of {what}", len(rows)) as advance:
            found.append(read_features(each, rows, network, about, on_error=on_error, advance=advance))
    ours, theirs, told = _alike(*found)
    num = _common(max_images, [ours, theirs])
    classes, left_out = _classes(ours, theirs, seed, options) if per_class else ({}, [])
    ours, theirs = (_subset(each, num, seed) for each in (ours, theirs))
    report = _report(ours, theirs, given, size, seed, options)
    if exhibits and isinstance(ours, FeatureSet) and isinstance(theirs, FeatureSet):
        report = replace(report, exhibits=show_images(ours, theirs, progress=progress))
    return replace(report, per_class=classes, warnings=[*told, *report.warnings, *left_out])


def _common(max_images: int, given: Sequence[Pictures | Found]) -> int:
    """How many pictures a side there are, at most so many; of statistics alone the number does not count.

    Raises:
        VqtoolError: fewer than two.
    """
    sides = [each for each in given if not isinstance(each, StatisticsSet)]
    num = min([max_images, *(len(each.ids) if isinstance(each, Pictures) else len(each) for each in sides)])
    if num < 2:
        raise VqtoolError(f"{num} image{'s' * (num != 1)} on one side: at least 2 on each are needed to compare")
    return num


def _subset(found: Found, num: int, seed: int) -> Found:
    return found if isinstance(found, StatisticsSet) else found[choose(len(found), num, seed)]


def _choose_size(given: Sequence[Pictures | Found], size: Size | None) -> Size | None:
    """What is asked for, else what saved features were read in, else what pictures share; None if nobody knows.

    Raises:
        MismatchError: saved features were read in another one.
    """
    saved = [its for each in given if not isinstance(each, Pictures) if (its := size_of(each)) is not None]
    pictures = [] if size or saved else [each for each in given if isinstance(each, Pictures)]
    shared = next(filter(None, (each.common_size() for each in pictures)), MIXED_SIZE if pictures else None)
    size = size or next(iter(saved), shared)
    for its in saved:
        if size is not None and its != size:
            raise MismatchError(
                f"features saved of pictures of {size_text(its)} pixels do not compare with ones of {size_text(size)}: "
                "save both with one `size`"
            )
    return size


def _alike(ours: Found, theirs: Found) -> tuple[Found, Found, list[str]]:
    """Both sides under one name of features, and what is told: a side that does not know it takes the other's.

    Raises:
        MismatchError: they are of different features.
    """
    if isinstance(ours, FeatureSet) and isinstance(theirs, FeatureSet):
        _check_features(ours, theirs)
    elif isinstance(ours, FeatureSet) and isinstance(theirs, StatisticsSet):
        theirs.check_features(ours.features)
    elif isinstance(ours, StatisticsSet) and isinstance(theirs, FeatureSet):
        ours.check_features(theirs.features)
    elif isinstance(ours, StatisticsSet) and isinstance(theirs, StatisticsSet):
        ours.check_same(theirs)
    sides = (ours, theirs)
    named = next((side.named for side in sides if side.named["name"]), UNNAMED)
    of = f"those of {named['name']}" if named is not UNNAMED else "those of one network"
    unknown = dict.fromkeys(side.source for side in sides if not side.named["name"])
    told = [f"{source} does not say which features it holds: they are taken for {of}" for source in unknown]
    return ours.renamed(named), theirs.renamed(named), told


def _check_features(ours: FeatureSet, theirs: FeatureSet) -> None:
    """Raise MismatchError unless they are of one network, as far as both say which."""
    named = next((side.named for side in (ours, theirs) if side.named["name"]), UNNAMED)
    a, b = (side if side.named["name"] else side.renamed(named) for side in (ours, theirs))
    try:
        a.features.check_same(b.features)
    except MismatchError as error:
        raise MismatchError(f"{ours.source or theirs.source}: {error}") from error


def _report(
    ours: Found, theirs: Found, given: Sequence[Pictures | Found], size: Size | None, seed: int, options: dict[str, Any]
) -> Report:
    name, digest, resize, precision = ours.named.values()
    width = _width(ours)
    facts = facts_of(ours), facts_of(theirs)
    card = Card(
        measure="images",
        features=name,
        features_digest=digest,
        resize=resize,
        precision=precision,
        size="" if size is None else size_text(size),
        generated=facts[0].side,
        reference=facts[1].side,
        copies=count_copies(ours.digests, theirs.digests),
        seed=seed,
    )
    warnings = find_warnings(*facts, card, width)
    if isinstance(ours, FeatureSet) and isinstance(theirs, FeatureSet):
        scores = measure_features(theirs.features, ours.features, seed=seed, **options)
    else:
        rows = ours.features if isinstance(ours, FeatureSet) else None
        scores, left_out = measure_statistics(_statistics(theirs), _statistics(ours), name, rows, seed=seed, **options)
        warnings.append(
            f"from statistics alone {', '.join(left_out)} cannot be computed: `vqtool eval stats --keep-features` "
            "keeps what they need"
        )
    given_nums = [len(each.ids) if isinstance(each, Pictures) else each.about.num_given or len(each) for each in given]
    about = {
        "kind": "images",
        "network": name,
        "features": {"name": name, "digest": digest, "resize": resize},
        "num_images": len(ours),
        "num_given": dict(zip(("images", "reference"), given_nums, strict=True)),
        "size": card.size,
        "seed": seed,
    }
    nums = [str(each or "an unknown number") for each in (len(ours), len(theirs), *given_nums)]
    side = count_text(nums[0], "image") + (" a side" if nums[0] == nums[1] else f" against {nums[1]}")
    pixels = f"{card.size} pixels; " if size else ""
    whose = "an unknown network" if name == UNNAMED["name"] else name
    headline = f"{side}, of {nums[2]} and {nums[3]} (seed {seed}); {pixels}features of {whose}"
    unreadable = {"images": list(ours.about.unreadable), "reference": list(theirs.about.unreadable)}
    return Report(headline, scores, about, warnings, card, unreadable=unreadable)


def _width(found: Found) -> int:
    """D."""
    if isinstance(found, FeatureSet):
        return int(found.features.pooled.shape[1])
    return len(found.statistics["pooled"].mean)


def _statistics(found: Found) -> dict[str, Any]:
    return (found.statistics() if isinstance(found, FeatureSet) else found).statistics


def _classes(
    ours: Found, theirs: Found, seed: int, options: dict[str, Any]
) -> tuple[dict[str, ClassScores], list[str]]:
    if isinstance(ours, FeatureSet) and isinstance(theirs, FeatureSet):
        return measure_classes(ours, theirs, seed=seed, **options)
    return {}, ["statistics know no classes: `per_class` needs the images, or saved features"]


def measure_classes(
    ours: FeatureSet, theirs: FeatureSet, *, seed: int, **options: Any
) -> tuple[dict[str, ClassScores], list[str]]:
    """The scores of the pictures of each label, in equal numbers a side; and which labels have none, and why.

    Args:
        ours: what is scored.
        theirs: what it is compared with.
        seed: chooses the pictures of the larger side.
        options: of the metrics, by name.

    Raises:
        VqtoolError: a side has no labels.
    """
    for side, what in ((ours, "what is scored"), (theirs, "the reference")):
        if not any(side.labels):
            raise VqtoolError(f"`per_class`: {what} has no labels: give it in one folder a class")
    found: dict[str, ClassScores] = {}
    told = []
    for label in sorted({*ours.labels, *theirs.labels} - {""}):
        rows = [np.flatnonzero(np.array(side.labels) == label) for side in (ours, theirs)]
        num = min(map(len, rows))
        if num < 2:
            told.append(
                f"class {label!r}: {count_text(len(rows[0]), 'image')} against {len(rows[1])} of the reference: not "
                "scored, as 2 are needed on each side"
            )
            continue
        own, other = (its[choose(len(its), num, seed)] for its in rows)
        scores = measure_features(theirs.features[other], ours.features[own], seed=seed, **options)
        found[label] = ClassScores(num, scores)
    return found, told
