"""Pictures of many shapes in one size: what each way to fit them loses, and which one is taken.

One number says how near a picture's shape is to a size: the smaller of both ratios of height to width over the
larger, 1 where they agree. `crop` keeps that share of the picture, `pad` fills that share of the size with it and
leaves the rest white, `stretch` makes the picture so much narrower than it was.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import FormatError, VqtoolError, size_text, warn
from vqtool.images.pixels import read_size
from vqtool.images.sources.items import ImageItem

MANY = 1000  # images: of more, so many are looked at, evenly spread
LOST = 0.2  # a crop that cuts off more than this share of a picture is told
FEW = 0.05  # where more than this share of the pictures lose so much, they are padded rather than cropped
_BESIDE = 4  # pixels of a border that a cell of the picture may reach
_WORTH = 0.05  # a size is proposed that leaves so much less of itself unused

Size = tuple[int, int]  # (height, width)


def choose_fit(
    items: Sequence[ImageItem], size: Size | None, fit: str | None = None, *, factor: int | None = None
) -> str:
    """How pictures are brought to a size: as the user says, else as loses least; what is lost is told.

    Args:
        items: the pictures; of many, 1,000 are looked at, their shapes alone.
        size: (height, width) in pixels; None where they keep their own.
        fit: "crop", "pad" or "stretch"; None: "pad" where a crop would cut more than a fifth off more than one in
            twenty pictures, else "crop".
        factor: pixels a cell, for a proposal of another size; 0 proposes none, None tells nothing at all.

    Warns:
        VqtoolWarning: pictures lose more than a fifth to the crop, or are padded that would; says what helps.
    """
    if size is None:
        return fit or "crop"
    shapes = _find_shapes(items)
    if not shapes:
        return fit or "crop"
    cut = 1 - shared(shapes, size)
    chosen = fit or ("pad" if (cut > LOST).mean() > FEW else "crop")
    if factor is not None and (cut > LOST).any():
        warn(_describe(shapes, size, chosen, len(items), factor))
    return chosen


def shared(shapes: Sequence[Size], size: Size) -> NDArray[np.float64]:
    """(N,) in (0, 1]: the share of each picture that a crop to a size keeps, and of the size that padding leaves it."""
    ratios = np.array([height / width for height, width in shapes]) / (size[0] / size[1])
    return np.minimum(ratios, 1 / ratios)


def border(shape: Size, size: Size) -> NDArray[np.bool_]:
    """(height, width) bool: the pixels of a size that padding leaves white, but for a few beside the picture."""
    scale = min(size[0] / shape[0], size[1] / shape[1])
    inner = [math.ceil(side * scale) + 2 * _BESIDE for side in shape]
    distance = [np.abs(np.arange(side) - (side - 1) / 2) for side in size]
    beyond: NDArray[np.bool_] = (distance[0] > inner[0] / 2)[:, None] | (distance[1] > inner[1] / 2)
    return beyond


def median_size(shapes: Sequence[Size], size: Size, factor: int) -> Size:
    """(height, width) of about as many cells as a size, in the median shape of some pictures."""
    ratio = float(np.median([height / width for height, width in shapes]))
    cells = size[0] * size[1] / factor**2
    rows = max(1, round(math.sqrt(cells * ratio)))
    return rows * factor, max(1, round(rows / ratio)) * factor


def _find_shapes(items: Sequence[ImageItem]) -> list[Size]:
    """(height, width) of pictures that can be read, as they are upright."""
    places = np.unique(np.linspace(0, len(items) - 1, min(MANY, len(items))).round().astype(int)) if items else ()
    return [shape for shape in (find_shape(items[place]) for place in places) if shape is not None]


def find_shape(item: ImageItem) -> Size | None:
    """(height, width) of a picture without decoding it; None of a bad one, which is named when it is read for good."""
    try:
        raw = item.origin.open()
        if isinstance(raw, np.ndarray):
            return int(raw.shape[0]), int(raw.shape[1])
        with raw:
            return read_size(raw)
    except (VqtoolError, FormatError, OSError):
        return None


def _describe(shapes: Sequence[Size], size: Size, fit: str, num: int, factor: int) -> str:
    """What is lost, and what helps."""
    used = shared(shapes, size)
    lose, of = int((1 - used > LOST).sum()), f"{len(shapes):,} pictures"
    if len(shapes) < num:
        of = f"the {of} looked at"
    better = median_size(shapes, size, factor) if factor else size
    after, proposal = shared(shapes, better), ""
    if (after - used).mean() > _WORTH:
        proposal = f"; `size` {size_text(better)}, their median shape, "
    left = f"{(1 - after > LOST).sum():,}"
    if fit == "crop":
        return (
            f"{lose:,} of {of} lose more than a fifth to the crop, {1 - used.min():.0%} at most: `fit` pad keeps them "
            f"whole{proposal and f'{proposal}would cut so much off {left}'}"
        )
    if fit == "stretch":
        return (
            f"{lose:,} of {of} are stretched by more than a quarter, {1 / used.min():.1f} times at most"
            f"{proposal and f'{proposal}would do so to {left}'}"
        )
    return (
        f"{lose:,} of {of} would lose more than a fifth to a crop, so white borders keep all whole and take "
        f"{1 - used.mean():.0%} of the cells (`fit` crop, or stretch)"
        f"{proposal and f'{proposal}leaves {1 - after.mean():.0%}'}"
    )
