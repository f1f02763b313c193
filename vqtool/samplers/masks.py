"""Masks for inpainting, in pixels and in cells of the grid: named halves, boxes, random cells, or an image file.

A mask is True (white) where the sampler draws the picture again. A cell is masked if at least one of its pixels is;
its other pixels can be pasted back from the original, with a soft edge. Of an image file with transparent pixels the
opaque ones are the mask, whatever their colour.
"""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqtool import rng
from vqtool.errors import FormatError, VqtoolError
from vqtool.images.pixels import read_mask

Pixels = NDArray[np.bool_]

# Top, left, bottom, right as shares of the sides.
NAMED = {
    "left-half": (0.0, 0.0, 1.0, 0.5),
    "right-half": (0.0, 0.5, 1.0, 1.0),
    "top-half": (0.0, 0.0, 0.5, 1.0),
    "bottom-half": (0.5, 0.0, 1.0, 1.0),
    "center": (0.25, 0.25, 0.75, 0.75),
}
_KNOWN = f"{', '.join(NAMED)}, box:TOP,LEFT,HEIGHT,WIDTH in pixels, random:SHARE of the cells, or an image file"
_DARK, _LIGHT = 64, 192  # a mask is black or white, but for its edges


class Mask:
    """The mask of each picture of a run: the same for all, unless it is random.

    Args:
        text: one of NAMED, box:..., random:... or the path of an image.
        image_size: (height, width) of the pictures, pixels.
        grid_size: (H, W) of their grids, cells; the same as image_size where only pixels are asked for.
        seed: of a random mask.

    Raises:
        VqtoolError: the text is no mask, does not fit the pictures, or masks no cell or all of them.
    """

    def __init__(self, text: str, image_size: tuple[int, int], grid_size: tuple[int, int], *, seed: int = 0) -> None:
        self._image_size, self._grid_size, self._seed = image_size, grid_size, seed
        self._chosen: int | None = None  # cells of a random mask
        self._pixels = np.zeros(image_size, dtype=bool)
        if text.startswith("random:"):
            self._chosen = _count(text, grid_size[0] * grid_size[1])
        else:
            self._pixels = _read(text, image_size)
            cells = to_cells(self._pixels, grid_size)
            unit = "pixel" if grid_size == image_size else "cell"
            if not cells.any():
                raise VqtoolError(f"`mask` {text}: keeps the whole picture, so that there is nothing to make anew")
            if cells.all():
                raise VqtoolError(
                    f"`mask` {text}: keeps no {unit} of the {grid_size[0]}x{grid_size[1]}: `vqtool sample` makes whole "
                    "pictures anew, `vqtool vary` makes pictures like yours"
                )

    def cells(self, number: int) -> NDArray[np.bool_]:
        """(H, W) bool: the masked cells of a picture, by its number in the run."""
        if self._chosen is None:
            return to_cells(self._pixels, self._grid_size)
        noise = rng.uniform(self._seed, [number], 0, self._grid_size, stream=rng.MASK)[0].numpy()
        ranks = noise.ravel().argsort(kind="stable").argsort(kind="stable")
        chosen: NDArray[np.bool_] = (ranks < self._chosen).reshape(self._grid_size)
        return chosen

    def pixels(self, number: int) -> Pixels:
        """(height, width) bool: the masked pixels of a picture, by its number in the run."""
        if self._chosen is None:
            return self._pixels
        return spread(self.cells(number), self._image_size)


def spread(cells: NDArray[np.bool_], image_size: tuple[int, int]) -> Pixels:
    """(height, width) bool: the pixels of the cells (H, W) that are True."""
    rows, columns = _places(image_size, (cells.shape[0], cells.shape[1]))
    return cells[rows[:, None], columns]


def to_cells(pixels: Pixels, grid_size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) bool: the cells in which at least one of the pixels (height, width) is True."""
    rows, columns = _places((pixels.shape[0], pixels.shape[1]), grid_size)
    cells = np.zeros(grid_size, dtype=bool)
    np.logical_or.at(cells, (rows[:, None], columns), pixels)
    return cells


def paste_back(
    made: NDArray[np.uint8], original: NDArray[np.uint8], pixels: Pixels, *, feather: int = 0
) -> NDArray[np.uint8]:
    """Blend two pictures: `made` on the mask, `original` elsewhere, and a linear ramp of `feather` pixels between them.

    Args:
        made: (3, height, width), the picture that was drawn.
        original: (3, height, width), the picture that it was drawn over.
        pixels: (height, width) bool, the mask.
        feather: width in pixels of the ramp, which lies outside of the mask; 0: every pixel outside is the original's.
    """
    share = _soften(pixels, feather)
    mixed = original + share * (made.astype(np.float64) - original)
    return np.where(share > 0, np.where(share < 1, mixed.round(), made), original).astype(np.uint8)


def _soften(pixels: Pixels, feather: int) -> NDArray[np.float64]:
    """1 on the mask, falling evenly to 0 at a distance of `feather` + 1 pixels, along rows, columns and diagonals."""
    share, reached = pixels.astype(np.float64), pixels
    for distance in range(1, feather + 1):
        padded = np.pad(reached, 1)
        height, width = reached.shape
        # Neighbours by sides and by corners in turn: circles become octagons.
        offsets = [(0, 1), (1, 0), (1, 1), (1, 2), (2, 1)]
        offsets += [(0, 0), (0, 2), (2, 0), (2, 2)] if distance % 2 == 0 else []
        grown = np.any([padded[y : y + height, x : x + width] for y, x in offsets], axis=0)
        share[grown & ~reached] = 1.0 - distance / (feather + 1)
        reached = grown
    return share


def _read(text: str, image_size: tuple[int, int]) -> Pixels:
    height, width = image_size
    if text in NAMED:
        top, left, bottom, right = NAMED[text]
        return _fill(image_size, round(top * height), round(left * width), round(bottom * height), round(right * width))
    if text.startswith("box:"):
        match = re.fullmatch(r"box:(\d{1,6}),(\d{1,6}),(\d{1,6}),(\d{1,6})", text)
        if not match:
            raise VqtoolError(f"`mask` {text}: expected box:TOP,LEFT,HEIGHT,WIDTH in pixels, as in box:16,16,24,32")
        top, left, tall, wide = map(int, match.groups())
        if not (tall and wide and top + tall <= height and left + wide <= width):
            raise VqtoolError(f"`mask` {text}: the box is empty, or not inside of pictures of {height}x{width} pixels")
        return _fill(image_size, top, left, top + tall, left + wide)
    return _read_file(text, image_size)


def _fill(size: tuple[int, int], top: int, left: int, bottom: int, right: int) -> Pixels:
    pixels = np.zeros(size, dtype=bool)
    pixels[top:bottom, left:right] = True
    return pixels


def _read_file(text: str, image_size: tuple[int, int]) -> Pixels:
    path = Path(text)
    if not path.is_file():
        raise VqtoolError(f"`mask` {text}: neither a file nor one of {_KNOWN}")
    try:
        with path.open("rb") as file:
            light = read_mask(file)
    except (FormatError, OSError) as error:
        raise VqtoolError(f"`mask` {text}: cannot be read as an image: {error}") from error
    if light.shape != image_size:
        raise VqtoolError(
            f"`mask` {text}: has {light.shape[0]}x{light.shape[1]} pixels, the pictures have "
            f"{image_size[0]}x{image_size[1]} (height x width): a mask of their size is needed"
        )
    if ((light > _DARK) & (light < _LIGHT)).mean() > 0.5:
        raise VqtoolError(f"`mask` {text}: most of it is neither black (keep) nor white (make anew): not a mask")
    white: Pixels = light >= (_DARK + _LIGHT) / 2
    return white


def _count(text: str, num_cells: int) -> int:
    """How many cells a random mask covers."""
    try:
        share = float(text.removeprefix("random:"))
    except ValueError:
        share = -1.0
    count = round(share * num_cells) if 0 <= share <= 1 else 0
    if not 0 < count < num_cells:
        raise VqtoolError(f"`mask` {text}: expected a share of the {num_cells} cells, some but not all: random:0.5")
    return count


def _places(image_size: tuple[int, int], grid_size: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The row of cells of each row of pixels (height,), and the column of each column (width,)."""
    rows, columns = (np.arange(length) * cells // length for length, cells in zip(image_size, grid_size, strict=True))
    return rows, columns
