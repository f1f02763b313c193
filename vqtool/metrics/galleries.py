"""What the page of each kind of result shows: neighbours, outliers, memorised pictures, usage."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqtool.errors import VqtoolError
from vqtool.grids import GridHeader
from vqtool.images import to_uint8
from vqtool.metrics.exhibits import Curve, Exhibit, Picture, Sheet
from vqtool.metrics.frechet import frechet_distance
from vqtool.metrics.neighbours import nearest, nearest_grids, outside, thumbnails
from vqtool.metrics.report import choose
from vqtool.metrics.sides import FeatureSet
from vqtool.progress import Advance, Progress, silent
from vqtool.tokenizers import Tokenizer, tokenizer_of

SHEET = 24  # generated pictures that are shown beside their neighbours
NEIGHBOURS = 3  # of each
FEW = 12  # outliers of a kind, and memorised pictures
_FEWEST = 16  # pictures for a curve over numbers of them
RADIUS_K = 3  # to which neighbour the balls of outliers reach, as in improved precision and recall


def show_images(ours: FeatureSet, theirs: FeatureSet, *, progress: Progress = silent) -> list[Exhibit]:
    """Generated pictures beside the reference pictures that are nearest, by features and by pixels, and the outliers.

    Args:
        ours: what is scored.
        theirs: the reference.
        progress: shows how far the reading of pixels is.
    """
    found = nearest(ours.features.pooled, theirs.features.pooled, NEIGHBOURS)
    places = np.unique(np.linspace(0, len(ours) - 1, min(SHEET, len(ours))).round().astype(int))
    shown: list[Exhibit] = [
        _beside(
            "Samples and their nearest reference pictures",
            "Left of each group a scored picture, then the reference pictures with the nearest features, and how far.",
            ours,
            theirs,
            places,
            found.rows[places],
            [[f"{distance:.3g}" for distance in row] for row in found.distances[places]],
        ),
    ]
    shown += _memorised(ours, theirs, progress)
    k = min(RADIUS_K, len(ours) - 1, len(theirs) - 1)
    shown += _outliers(ours, theirs, k)
    if len(ours) >= _FEWEST:
        shown.append(_over_numbers(ours, theirs))
    distances = np.sort(found.distances[:, 0])
    shown.append(
        Curve(
            "How near the nearest reference pictures are",
            "The distance from each scored picture to the nearest reference picture, in features, sorted: a flat start "
            "near zero is a sign of pictures learned by heart.",
            list(range(1, len(distances) + 1)),
            [float(distance) for distance in distances],
            x_name="scored pictures, the nearest first",
            y_name="distance",
        )
    )
    return shown


def _over_numbers(ours: FeatureSet, theirs: FeatureSet) -> Curve:
    """The Fréchet distance of some pictures of both sides, for several numbers of them."""
    most = min(len(ours), len(theirs))
    nums = [most // share for share in (8, 4, 2, 1)]
    rows = [[side.features.pooled[choose(len(side), num, 0)] for side in (theirs, ours)] for num in nums]
    distances = [frechet_distance(*sides) for sides in rows]
    return Curve(
        "Fréchet distance over the number of images",
        "Of equally many images a side. Where it still falls, it says more about the number than about the pictures.",
        nums,
        distances,
        x_name="images a side",
        y_name="Fréchet distance",
    )


def _beside(
    title: str,
    note: str,
    ours: FeatureSet,
    theirs: FeatureSet,
    rows: NDArray[np.int64],
    neighbours: NDArray[np.int64],
    texts: Sequence[Sequence[str]],
) -> Sheet:
    """Pictures of one side, each before its neighbours (n, k) of the other with texts under them."""
    left = ours.read(rows.tolist())
    flat = theirs.read(neighbours.reshape(-1).tolist())
    width = neighbours.shape[1]
    groups = []
    for place, row in enumerate(rows):
        beside = [
            Picture(flat[place * width + i], f"{_name(theirs, neighbours[place, i])}\n{texts[place][i]}".strip())
            for i in range(width)
        ]
        groups.append([Picture(left[place], _name(ours, row)), *beside])
    return Sheet(title, note, groups)


def _name(found: FeatureSet, row: int) -> str:
    label = found.labels[row] if found.labels else ""
    name = found.ids[row] if found.ids else str(row)
    return f"{name} ({label})" if label and label not in name else name


def _memorised(ours: FeatureSet, theirs: FeatureSet, progress: Progress) -> list[Exhibit]:
    """The scored pictures whose pixels are nearest to a reference picture; none where pixels are not at hand."""
    if ours.pictures is None or theirs.pictures is None:
        return []
    small = []
    for what, side in (("images", ours), ("reference", theirs)):
        with progress(f"pixels of {what}", len(side)) as advance:
            small.append(_thumbnails(side, advance))
    found = nearest(small[0], small[1])
    rows = np.argsort(found.distances[:, 0], kind="stable")[:FEW]
    apart = found.distances[:, 0] / np.sqrt(small[0].shape[1])  # root mean square, in steps of 8-bit pixels
    return [
        _beside(
            "Nearest to a reference picture by pixels",
            "The scored pictures that come nearest to a picture of the reference, pixel by pixel (at 16x16; root mean "
            "square of 255 steps). Give the training pictures as reference to see what was learned by heart: below "
            "about 5 a picture is a copy to the eye.",
            ours,
            theirs,
            rows,
            found.rows[rows],
            [[f"{apart[row]:.1f} of 255"] for row in rows],
        )
    ]


def _thumbnails(side: FeatureSet, advance: Advance) -> NDArray[np.float32]:
    parts = []
    if side.pictures is None or side.rows is None:
        raise ValueError("pictures are not at hand")
    size = (side.about.size[0], side.about.size[1])
    for _, images in side.pictures.batches(side.rows, size, side.about.fit, None):
        parts.append(thumbnails(images))
        advance(len(images))
    return np.concatenate(parts)


def _outliers(ours: FeatureSet, theirs: FeatureSet, k: int) -> list[Exhibit]:
    """What lowers precision and recall: pictures far outside of the balls around all pictures of the other side."""
    if k < 1:
        return []
    shown: list[Exhibit] = []
    for side, other, title, note in (
        (ours, theirs, "Outliers of precision", "Scored pictures that lie farthest from all reference pictures"),
        (theirs, ours, "Outliers of recall", "Reference pictures that lie farthest from all scored pictures"),
    ):
        far = outside(side.features.pooled, other.features.pooled, k)
        rows = np.argsort(-far, kind="stable")[:FEW]
        rows = rows[far[rows] > 1]
        share = float((far > 1).mean())
        pictures = side.read(rows.tolist())
        figures = [
            [Picture(picture, f"{_name(side, row)}\n{far[row]:.2f} radii")]
            for picture, row in zip(pictures, rows, strict=True)
        ]
        outer = f"{share:.1%} are outside of every ball to the neighbour number {k}"
        shown.append(Sheet(title, f"{note}: {outer}.", figures))
    return shown


def show_usage(counts: NDArray[np.int64], title: str = "Usage of the codebook") -> Curve:
    """The token histogram (K,), the most used code first."""
    used = int((counts > 0).sum())
    ordered = np.sort(counts)[::-1]
    return Curve(
        title,
        f"Tokens of each code, the most used first; {used} of {len(counts)} codes occur.",
        list(range(1, len(counts) + 1)),
        [float(count) for count in ordered],
        x_name="codes",
        y_name="tokens",
        bars=True,
    )


Pair = tuple[float, str, NDArray[np.uint8], NDArray[np.uint8]]  # squared error, name, picture, its original


def keep_worst(
    worst: Sequence[Pair],
    names: Sequence[str],
    images: NDArray[np.uint8],
    originals: NDArray[np.uint8],
    errors: NDArray[np.float64],
) -> list[Pair]:
    """The pairs with the largest errors, of those kept before and of new ones (B, 3, h, w)."""
    new = [(float(each[0]), *each[1:]) for each in zip(errors, names, images, originals, strict=True)]
    return sorted([*worst, *new], key=lambda pair: -pair[0])[:FEW]


def show_worst(worst: Sequence[Pair]) -> Sheet:
    """Originals beside what was made of them, the worst first."""
    rows = [
        [Picture(original, name), Picture(image, f"error {error**0.5:.1f} of 255")]
        for error, name, image, original in worst
    ]
    return Sheet("Farthest from their originals", "Left the original, right what is scored (root mean square).", rows)


def show_bits(curve: Mapping[str, Sequence[float | None]]) -> Curve:
    """What each timestep adds to the bits per token: `likelihood.Likelihood.curve`."""
    known = [
        (float(t or 0), bits, error or 0.0)
        for t, bits, error in zip(curve["t"], curve["bits_per_token"], curve["standard_errors"], strict=True)
        if bits is not None
    ]
    t, bits, errors = ([each[i] for each in known] for i in range(3))
    return Curve(
        "Where the bits arise",
        "What each timestep adds to the bits per token; the area is the bound without its stationary term.",
        t,
        bits,
        errors,
        x_name="t (1: clean, T: noisiest)",
        y_name="bits per token and step",
    )


Grids = tuple[NDArray[np.integer[Any]], list[str]]  # (N, H, W) tokens, and their ids


def show_grids(ours: Grids, theirs: Grids, header: GridHeader, source: str | Path) -> list[Exhibit]:
    """The grids that have most tokens in common with a grid of the reference, decoded, beside it.

    Args:
        ours: what is scored.
        theirs: the reference.
        header: of the grids: it names the tokenizer.
        source: the file that they stand in.
    """
    title, note = (
        "Nearest to a reference grid",
        (
            "The scored grids that have most tokens in common with a grid of the reference, beside it. Give the "
            "training grids as reference to see what was learned by heart."
        ),
    )
    if ours[0].shape[1:] != theirs[0].shape[1:]:
        return []
    found = nearest_grids(ours[0], theirs[0])
    rows = np.argsort(found.distances[:, 0], kind="stable")[:FEW]
    others = found.rows[rows, 0]
    try:
        tokenizer = tokenizer_of(header, source)
    except VqtoolError as error:
        return [Sheet(title, f"{note} The pictures cannot be shown: {error}.", [])]
    pictures = [_decode(tokenizer, tokens) for tokens in (ours[0][rows], theirs[0][others])]
    groups = [
        [
            Picture(pictures[0][i], ours[1][row]),
            Picture(pictures[1][i], f"{theirs[1][other]}\n{1 - found.distances[row, 0]:.0%} of the tokens"),
        ]
        for i, (row, other) in enumerate(zip(rows, others, strict=True))
    ]
    return [Sheet(title, note, groups)]


@torch.no_grad()
def _decode(tokenizer: Tokenizer, tokens: NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
    return to_uint8(tokenizer.decode(torch.from_numpy(tokens.astype(np.int64))))
