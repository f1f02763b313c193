"""Images against other images, by the features of both sides: pictures, decoded grids, or what was saved of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vqtool.errors import MismatchError, VqtoolError, size_text
from vqtool.images import ImageItem, OnError
from vqtool.metrics.card import Card, find_warnings
from vqtool.metrics.features import FeatureNetwork
from vqtool.metrics.galleries import show_images
from vqtool.metrics.pictures import ImageFiles, Pictures, Size
from vqtool.metrics.report import MAX_IMAGES, ClassScores, Report, choose
from vqtool.metrics.score import measure_features, measure_statistics
from vqtool.metrics.sides import (
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
        if network is None:
            raise ValueError("a network is needed for pictures")
        about = About(size=size, fit=each.choose_fit(size, fit), num_given=len(each.ids), split=split)
        rows = choose(len(each.ids), min(len(each.ids), max_images) if per_class else num, seed)
        with progress(f"features of {what}", len(rows)) as advance:
            found.append(read_features(each, rows, network, about, on_error=on_error, advance=advance))
    ours, theirs = _alike(*found)
    num = _common(max_images, [ours, theirs])
    classes, told = _classes(ours, theirs, seed, options) if per_class else ({}, [])
    ours, theirs = (_subset(each, num, seed) for each in (ours, theirs))
    report = _report(ours, theirs, given, size, seed, options)
    if exhibits and isinstance(ours, FeatureSet) and isinstance(theirs, FeatureSet):
        report = replace(report, exhibits=show_images(ours, theirs, progress=progress))
    return replace(report, per_class=classes, warnings=[*report.warnings, *told])


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


def _choose_size(given: Sequence[Pictures | Found], size: Size | None) -> Size:
    """What is asked for, else what saved features were read in, else what pictures share.

    Raises:
        MismatchError: saved features were read in another one.
    """
    saved = [its for each in given if not isinstance(each, Pictures) if (its := size_of(each)) is not None]
    shared = [each.common_size() for each in given if isinstance(each, Pictures)] if not (size or saved) else []
    size = size or next(filter(None, [*saved, *shared]), None) or MIXED_SIZE
    for its in saved:
        if its != size:
            raise MismatchError(
                f"features saved of pictures of {size_text(its)} pixels do not compare with ones of {size_text(size)}: "
                "save both with one `size`"
            )
    return size


def _alike(ours: Found, theirs: Found) -> tuple[Found, Found]:
    """Both sides, where one does not know of what features it is by the name of the other.

    Raises:
        MismatchError: they are of different features.
    """
    if isinstance(ours, FeatureSet) and isinstance(theirs, FeatureSet):
        return _named(ours, theirs), _named(theirs, ours)
    if isinstance(ours, FeatureSet) and isinstance(theirs, StatisticsSet):
        theirs.check_features(ours.features)
    elif isinstance(ours, StatisticsSet) and isinstance(theirs, FeatureSet):
        ours.check_features(theirs.features)
    elif isinstance(ours, StatisticsSet) and isinstance(theirs, StatisticsSet):
        ours.check_same(theirs)
    return ours, theirs


def _named(found: FeatureSet, other: FeatureSet) -> FeatureSet:
    if found.features.name:
        try:
            found.features.check_same(other.features)
        except MismatchError as error:
            if not other.features.name:
                return found
            raise MismatchError(f"{found.source or other.source}: {error}") from error
        return found
    about = {name: getattr(other.features, name) for name in ("name", "digest", "resize")}
    return replace(found, features=replace(found.features, **about))


def _report(
    ours: Found, theirs: Found, given: Sequence[Pictures | Found], size: Size, seed: int, options: dict[str, Any]
) -> Report:
    features = next((each.features for each in (ours, theirs) if isinstance(each, FeatureSet)), ours)
    name, digest, resize = (getattr(features, what) for what in ("name", "digest", "resize"))
    width = _width(ours)
    facts = facts_of(ours), facts_of(theirs)
    card = Card(
        measure="images",
        features=name,
        features_digest=digest,
        resize=resize,
        size=size_text(size),
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
    side = f"{nums[0]} images a side" if nums[0] == nums[1] else f"{nums[0]} images against {nums[1]}"
    headline = f"{side}, of {nums[2]} and {nums[3]} (seed {seed}); {card.size} pixels; features of {name}"
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
                f"class {label!r}: {len(rows[0])} images against {len(rows[1])} of the reference: not scored, as 2 are "
                "needed on each side"
            )
            continue
        own, other = (its[choose(len(its), num, seed)] for its in rows)
        scores = measure_features(theirs.features[other], ours.features[own], seed=seed, **options)
        found[label] = ClassScores(num, scores)
    return found, told
