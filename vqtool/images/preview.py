"""Pictures for people: preview grids with captions, originals over reconstructions, single PNG files."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vqtool.errors import VqtoolError
from vqtool.images.pixels import Own, to_pillow
from vqtool.outputs import atomic_path

_CELL = 128  # pixels that the longer side of a small picture is magnified to, about
_LARGEST_CELL = 256  # pixels; longer sides are shrunk to this
_GAP = 6  # pixels between cells and around the preview
_SMALL_GAP = 2  # pixels between an original and its reconstruction
_FONT = "dejavu-sans.ttf"  # Pillow's own has no accents
_FONT_SIZE = 11  # pixels
_CAPTION_LINES = 2
_LONGEST_CAPTION = 500  # characters looked at
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_LINE_HEIGHT = 15  # pixels
_LARGEST_PREVIEW = 100_000_000  # pixels
_PNG_LEVEL = 4  # zlib; higher ones take much longer and save little


@dataclass(frozen=True)
class _Row:
    images: NDArray[np.uint8]  # (columns or fewer, 3, h, w)
    captions: Sequence[str]  # none, or one an image
    joined: bool = False  # close to the row below


def preview_grid(
    images: NDArray[np.uint8],
    captions: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    scale: int | None = None,
) -> Image.Image:
    """Lay images out on white, row by row, captions under them.

    Args:
        images: (N, 3, h, w) uint8.
        captions: one an image, wrapped to two lines and cut with an ellipsis where they are longer.
        columns: None: about as wide as four thirds of the height.
        scale: whole number to magnify by, each pixel a square; None: small images are magnified to about 128
            pixels, those above 256 are shrunk to it.

    Raises:
        VqtoolError: no images, or so many that the preview would pass 100 million pixels.
    """
    _check(images, captions, columns, scale)
    if columns is None:
        height, width = _cell_size(images.shape[2:], scale)
        height += _CAPTION_LINES * _LINE_HEIGHT if captions else 0
        columns = math.ceil(math.sqrt(len(images) * 4 / 3 * (height + _GAP) / (width + _GAP)))
    columns = min(columns, len(images))
    rows = [
        _Row(images[i : i + columns], captions[i : i + columns] if captions else ())
        for i in range(0, len(images), columns)
    ]
    return _draw(rows, columns, images.shape[2:], scale)


def comparison_grid(
    originals: NDArray[np.uint8],
    reconstructions: NDArray[np.uint8],
    captions: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    scale: int | None = None,
) -> Image.Image:
    """Lay out rows of originals, each over the row of its reconstructions.

    Args:
        originals: (N, 3, h, w) uint8.
        reconstructions: (N, 3, h, w) uint8, in the same order.
        captions: one a pair, under the reconstruction.
        columns: None: at most 8.
        scale: as for `preview_grid`.

    Raises:
        VqtoolError: as for `preview_grid`.
    """
    if originals.shape != reconstructions.shape:
        raise ValueError(f"originals are {originals.shape}, reconstructions {reconstructions.shape}")
    _check(originals, captions, columns, scale)
    columns = min(columns or 8, len(originals))
    rows: list[_Row] = []
    for i in range(0, len(originals), columns):
        rows.append(_Row(originals[i : i + columns], (), joined=True))
        rows.append(_Row(reconstructions[i : i + columns], captions[i : i + columns] if captions else ()))
    return _draw(rows, columns, originals.shape[2:], scale)


def png_bytes(image: Own | Image.Image) -> bytes:
    """Encode (C, h, w) of `to_pillow`, or a preview, as PNG."""
    buffer = io.BytesIO()
    _to_pillow(image).save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def save_image(image: Own | Image.Image, path: str | Path, *, force: bool = False) -> None:
    """Write (C, h, w) of `to_pillow`, or a preview, as a PNG file: whole or not at all.

    Raises:
        VqtoolError: the file exists, and not `force`.
    """
    data = png_bytes(image)
    with atomic_path(Path(path), force=force) as unfinished:
        Path(unfinished).write_bytes(data)


def _check(images: NDArray[np.uint8], captions: Sequence[str] | None, columns: int | None, scale: int | None) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8:
        raise ValueError(f"expected (N, 3, h, w) uint8, not {images.shape} {images.dtype}")
    if len(images) == 0:
        raise VqtoolError("no images to show")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(captions)} captions for {len(images)} images")
    if min(1 if columns is None else columns, 1 if scale is None else scale) < 1:
        raise ValueError(f"columns and scale must be at least 1: {columns}, {scale}")


def _cell_size(size: Sequence[int], scale: int | None) -> tuple[int, int]:
    """(height, width) at which an image of the given one is shown."""
    height, width = size
    longest = max(height, width)
    if scale is None and longest > _LARGEST_CELL:
        return max(1, round(height * _LARGEST_CELL / longest)), max(1, round(width * _LARGEST_CELL / longest))
    scale = scale if scale is not None else max(1, round(_CELL / longest))
    return height * scale, width * scale


def _draw(rows: Sequence[_Row], columns: int, size: Sequence[int], scale: int | None) -> Image.Image:
    height, width = _cell_size(size, scale)
    lines = [[_wrap(caption, width) for caption in row.captions] for row in rows]
    words = [_LINE_HEIGHT * max((len(cell) for cell in row), default=0) for row in lines]  # height in pixels
    tops = [_GAP]
    for row, below in zip(rows, words, strict=True):
        tops.append(tops[-1] + height + below + (_SMALL_GAP if row.joined else _GAP))
    across, down = _GAP + columns * (width + _GAP), tops[-1]
    if across * down > _LARGEST_PREVIEW:
        raise VqtoolError(
            f"the preview would have {down}x{across} pixels, more than {_LARGEST_PREVIEW}: show fewer images, "
            "or at a smaller scale"
        )
    preview = Image.new("RGB", (across, down), "white")
    pen = ImageDraw.Draw(preview)
    for row, top, cells in zip(rows, tops, lines, strict=False):
        for column, image in enumerate(row.images):
            left = _GAP + column * (width + _GAP)
            preview.paste(_resize(image, height, width), (left, top))
            for number, line in enumerate(cells[column] if cells else ()):
                pen.text((left, top + height + 1 + number * _LINE_HEIGHT), line, fill="black", font=_font())
    return preview


def _resize(image: NDArray[np.uint8], height: int, width: int) -> Image.Image:
    picture = _to_pillow(image)
    if (width, height) == picture.size:
        return picture
    shrinks = height < picture.height or width < picture.width
    return picture.resize((width, height), Image.Resampling.BICUBIC if shrinks else Image.Resampling.NEAREST)


def _to_pillow(image: Own | Image.Image) -> Image.Image:
    return image if isinstance(image, Image.Image) else to_pillow(image)


@cache
def _font() -> Any:
    """DejaVu Sans, which has Latin, Greek and Cyrillic; Pillow's small bitmap font where it has no FreeType."""
    try:
        return ImageFont.truetype(str(files("vqtool") / "builtin" / _FONT), _FONT_SIZE)
    except (ImportError, OSError):
        return ImageFont.load_default_imagefont()


def _measure(text: str) -> float:
    return float(_font().getlength(text))


def _wrap(caption: str, width: int) -> list[str]:
    """At most two lines of at most `width` pixels; what does not fit is cut with an ellipsis."""
    text = " ".join("".join(c if c.isprintable() else " " for c in caption[:_LONGEST_CAPTION]).split())
    if not isinstance(_font(), ImageFont.FreeTypeFont):  # the bitmap font knows Latin-1 only
        text = text.encode("latin-1", "replace").decode("latin-1")
    lines: list[str] = []
    while text and len(lines) < _CAPTION_LINES:
        end = _count_fitting(text, width)
        if end < len(text) and len(lines) == _CAPTION_LINES - 1:
            lines.append(text[: _count_fitting(text, width - _measure(_ELLIPSIS))].rstrip() + _ELLIPSIS)
            break
        if end < len(text) and " " in text[1 : end + 1]:  # between words, where there are words
            end = text.rindex(" ", 1, end + 1)
        lines.append(text[:end])
        text = text[end:].lstrip()
    return lines


def _count_fitting(text: str, width: float) -> int:
    """How many characters, at least one, fit into `width` pixels."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _measure(text[:middle]) <= width else (low, middle - 1)
    return low
