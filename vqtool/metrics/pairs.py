"""Images against originals of the same ids, pixel by pixel."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import MismatchError, VqtoolError, count_text, size_text
from vqtool.images import ImageItem, OnError, choose_fit, common_size, read_batches
from vqtool.metrics import reconstruction
from vqtool.metrics.card import Card, side_of
from vqtool.metrics.features import FeatureNetwork
from vqtool.metrics.galleries import Pair, keep_worst, show_worst
from vqtool.metrics.pictures import READ_BATCH, noting, pixel_digests
from vqtool.metrics.reference import MIXED_SIZE
from vqtool.metrics.report import Report
from vqtool.progress import Progress, silent
from vqtool.training.perceptual import Perceptual


def compare_pairs(
    images: Sequence[ImageItem],
    originals: Sequence[ImageItem],
    *,
    size: tuple[int, int] | None = None,
    fit: str | None = None,
    exhibits: bool = False,
    perceptual: Perceptual | None = None,
    network: FeatureNetwork | None = None,
    seed: int = 0,
    on_error: OnError | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Report:
    """PSNR, SSIM and MS-SSIM of images against originals of the same ids.

    Args:
        images: what is scored, e.g. reconstructions.
        originals: what it is compared with.
        size: (height, width) both are brought to; by default `common_size` of `images`.
        fit: how; None: each side as `vqtool.images.choose_fit` finds best.
        exhibits: find the worst pairs, which a page shows.
        perceptual: a distance as a network sees it, measured too.
        network: of features, by which both sides are compared as sets.
        seed: of what metrics of features draw.
        on_error: see read_batches.
        progress: shows how far it is.
        options: of metrics of features.

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
    found = reconstruction.PairScores(perceptual, network)
    digests: list[list[bytes]] = [[], []]
    worst: list[Pair] = []
    left_out: list[str] = []

    skip = noting(left_out, on_error)
    fits = choose_fit(images, size, fit), choose_fit(originals, size, fit)
    with (
        progress("compare", len(ours)) as advance,
        closing(_pictures(ours, size, fits[0], skip)) as left,
        closing(_pictures(theirs, size, fits[1], skip)) as right,
    ):
        for name, picture, original in _pairs(left, right, order):
            error = found.add(picture[None], original[None])
            digests[0] += pixel_digests(picture[None])
            digests[1] += pixel_digests(original[None])
            if exhibits:
                worst = keep_worst(worst, [name], picture[None], original[None], error)
            advance(1)
    if not len(found):
        raise VqtoolError("none of the pairs could be read")
    unpaired = len(images) + len(originals) - 2 * len(ours)
    alone = f"{count_text(unpaired, 'picture')} without a counterpart on the other side"
    warnings = [f"{alone} {'was' if unpaired == 1 else 'were'} left out"] if unpaired else []
    about = {"kind": "pairs", "num_images": len(found), "num_unpaired": unpaired, "size": size_text(size)}
    headline = f"{count_text(len(found), 'pair')} of images; {about['size']} pixels"
    card = Card(
        measure="pairs",
        precision="" if network is None else "fp32",
        size=size_text(size),
        generated=side_of(digests[0], num_given=len(images), unreadable=len(left_out), fit=fits[0]),
        reference=side_of(digests[1], num_given=len(originals), fit=fits[1]),
    )
    shown = [show_worst(worst)] if exhibits else []
    scores = found.scores(seed=seed, **options)
    return Report(headline, scores, about, warnings, card, unreadable={"pairs": left_out}, exhibits=shown)


def _pictures(
    items: Sequence[ImageItem], size: tuple[int, int], fit: str, on_error: OnError
) -> Generator[tuple[str, NDArray[np.uint8]], None, None]:
    for batch in read_batches(items, size, READ_BATCH, fit=fit, on_error=on_error):
        yield from zip((item.id for item in batch.items), batch.images, strict=True)


def _pairs(
    ours: Iterator[tuple[str, NDArray[np.uint8]]],
    theirs: Iterator[tuple[str, NDArray[np.uint8]]],
    order: dict[str, int],
) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Pictures that came through on both sides; both come in this order, with gaps where one could not be read."""
    a, b = next(ours, None), next(theirs, None)
    while a and b:
        if a[0] == b[0]:
            yield a[0], a[1], b[1]
            a, b = next(ours, None), next(theirs, None)
        elif order[a[0]] < order[b[0]]:
            a = next(ours, None)
        else:
            b = next(theirs, None)
