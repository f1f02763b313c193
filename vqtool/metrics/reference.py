"""Images against other images: by their features, or pixel by pixel where their ids pair them."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import MismatchError, VqtoolError
from vqtool.images import ImageItem, OnError, choose_fit, common_size, read_batches
from vqtool.metrics import reconstruction
from vqtool.metrics.features import FeatureNetwork, extract
from vqtool.metrics.report import MAX_IMAGES, READ_BATCH, Report, choose
from vqtool.metrics.score import measure_features
from vqtool.progress import Progress, silent

MIXED_SIZE = (256, 256)  # of images of several sizes: the feature network sees 224


def compare_images(
    images: Sequence[ImageItem],
    reference: Sequence[ImageItem],
    network: FeatureNetwork,
    *,
    size: tuple[int, int] | None = None,
    fit: str | None = None,
    max_images: int = MAX_IMAGES,
    seed: int = 0,
    on_error: OnError | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Report:
    """Every metric of features, such as the Fréchet distance and KID, of images against reference images.

    Both sides are used in equal numbers (the larger one is subsampled) and read at the same size.

    Args:
        images: what is scored.
        reference: what it is compared with.
        network: images -> features.
        size: (height, width) both sides are brought to; by default `common_size` of `images`, or else the reference's.
        fit: how; None: each side as `vqtool.images.choose_fit` finds best.
        max_images: a side.
        seed: chooses the images of the larger side, and the subsets of KID.
        on_error: see read_batches.
        progress: shows how far it is.
        options: of the metrics, by name.

    Raises:
        VqtoolError: fewer than two images on a side, or an option that no metric has.
    """
    size = size or common_size(images) or common_size(reference) or MIXED_SIZE
    num = min(len(images), len(reference), max_images)
    _need_two(num)
    features = []
    for what, items in (("features of images", images), ("features of reference", reference)):
        chosen, how = [items[i] for i in choose(len(items), num, seed)], choose_fit(items, size, fit)
        with progress(what, num) as advance:
            batches = (batch.images for batch in read_batches(chosen, size, READ_BATCH, fit=how, on_error=on_error))
            features.append(extract(network, batches, advance=advance))
    num = min(map(len, features))
    _need_two(num)
    ours, theirs = (rows[choose(len(rows), num, seed)] for rows in features)
    about = {
        "kind": "images",
        "network": ours.name,
        "features": {"name": ours.name, "digest": ours.digest, "resize": ours.resize},
        "num_images": num,
        "num_given": {"images": len(images), "reference": len(reference)},
        "size": f"{size[0]}x{size[1]}",
        "seed": seed,
    }
    headline = (
        f"{num} images a side, of {len(images)} and {len(reference)} (seed {seed}); "
        f"{about['size']} pixels; features of {network.name}"
    )
    scores = measure_features(theirs, ours, seed=seed, **options)
    return Report(headline, scores, about, _feature_warnings(num, network.feature_dim))


def compare_pairs(
    images: Sequence[ImageItem],
    originals: Sequence[ImageItem],
    *,
    size: tuple[int, int] | None = None,
    fit: str | None = None,
    on_error: OnError | None = None,
    progress: Progress = silent,
) -> Report:
    """PSNR of images against originals of the same ids.

    Args:
        images: what is scored, e.g. reconstructions.
        originals: what it is compared with.
        size: (height, width) both are brought to; by default `common_size` of `images`.
        fit: how; None: each side as `vqtool.images.choose_fit` finds best.
        on_error: see read_batches.
        progress: shows how far it is.

    Raises:
        MismatchError: no id is on both sides.
        VqtoolError: none of the pairs could be read.
    """
    size = size or common_size(images) or MIXED_SIZE
    order = {item.id: i for i, item in enumerate(images)}
    theirs = sorted((item for item in originals if item.id in order), key=lambda item: order[item.id])
    ours = [images[order[item.id]] for item in theirs]
    if not ours:
        raise MismatchError(
            f"no picture is on both sides: ids such as {images[0].id!r} and {originals[0].id!r}; "
            "pairs have equal paths below their folders, apart from the ending"
        )
    errors: list[NDArray[np.float64]] = []
    with (
        progress("compare", len(ours)) as advance,
        closing(_pictures(ours, size, choose_fit(images, size, fit), on_error)) as left,
        closing(_pictures(theirs, size, choose_fit(originals, size, fit), on_error)) as right,
    ):
        for picture, original in _pairs(left, right, order):
            errors.append(reconstruction.mean_squared_errors(picture[None], original[None]))
            advance(1)
    if not errors:
        raise VqtoolError("none of the pairs could be read")
    unpaired = len(images) + len(originals) - 2 * len(ours)
    warnings = [f"{unpaired} pictures have no counterpart on the other side and were left out"] if unpaired else []
    about = {"kind": "pairs", "num_images": len(errors), "num_unpaired": unpaired, "size": f"{size[0]}x{size[1]}"}
    headline = f"{len(errors)} pairs of images; {about['size']} pixels"
    return Report(headline, reconstruction.measure(np.concatenate(errors)), about, warnings)


def _need_two(num: int) -> None:
    if num < 2:
        raise VqtoolError(f"{num} image{'s' * (num != 1)} on one side: at least 2 on each are needed to compare")


def _feature_warnings(num: int, feature_dim: int) -> list[str]:
    if num >= feature_dim:
        return []
    return [
        f"{num} images a side are fewer than the {feature_dim} features: the Fréchet distance is badly biased upwards "
        "and compares only with ones of equally many images; KID is not biased"
    ]


def _pictures(
    items: Sequence[ImageItem], size: tuple[int, int], fit: str, on_error: OnError | None
) -> Generator[tuple[str, NDArray[np.uint8]], None, None]:
    for batch in read_batches(items, size, READ_BATCH, fit=fit, on_error=on_error):
        yield from zip((item.id for item in batch.items), batch.images, strict=True)


def _pairs(
    ours: Iterator[tuple[str, NDArray[np.uint8]]],
    theirs: Iterator[tuple[str, NDArray[np.uint8]]],
    order: dict[str, int],
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Pictures that came through on both sides; both come in this order, with gaps where one could not be read."""
    a, b = next(ours, None), next(theirs, None)
    while a and b:
        if a[0] == b[0]:
            yield a[1], b[1]
            a, b = next(ours, None), next(theirs, None)
        elif order[a[0]] < order[b[0]]:
            a = next(ours, None)
        else:
            b = next(theirs, None)
