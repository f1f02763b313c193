"""Windows: the part of a picture that a prior works on, at the size that it knows, and how it comes back.

A window lies around what is drawn again. As long as twice that fits, a pixel of the window is a pixel of the picture;
more of it is shrunk. The window has the shape of the prior's own pictures where the picture has room for that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vqtool.images.pixels import fit_pixels
from vqtool.samplers.masks import paste_back

Size = tuple[int, int]  # (height, width)
Picture = NDArray[np.uint8]  # (3, height, width)
Mask = NDArray[np.bool_]  # (height, width)

CONTEXT = 2.0  # a window is so many times as high and as wide as what is drawn again


@dataclass(frozen=True)
class Window:
    """A part of a picture."""

    top: int  # pixels of the picture; negative beyond it
    left: int
    height: int
    width: int
    size: Size  # pixels that the tokenizer sees it at

    def cut(self, picture: Picture) -> Picture:
        """(3, *size): what the tokenizer sees; white beyond the picture."""
        (rows, columns), (own_rows, own_columns) = self._overlap(picture.shape[1:])
        part = np.full((3, self.height, self.width), 255, np.uint8)
        part[:, own_rows, own_columns] = picture[:, rows, columns]
        return fit_pixels(part.transpose(1, 2, 0), self.size, "stretch")

    def cut_mask(self, mask: Mask) -> Mask:
        """(height, width): a mask of the picture in the window; False beyond the picture."""
        inside, within = self._overlap(mask.shape)
        part: Mask = np.zeros((self.height, self.width), bool)
        part[within] = mask[inside]
        return part

    def put_back(self, made: Picture, picture: Picture, mask: Mask | None, feather: int = 0) -> Picture:
        """The picture with what was made of the window (3, *size) on the mask; everywhere in the window without one.

        Every pixel outside of the mask and its feather is the picture's own.
        """
        (rows, columns), (own_rows, own_columns) = self._overlap(picture.shape[1:])
        whole = fit_pixels(made.transpose(1, 2, 0), (self.height, self.width), "stretch")
        part, old = whole[:, own_rows, own_columns], picture[:, rows, columns]
        result: Picture = picture.copy()
        result[:, rows, columns] = part if mask is None else paste_back(part, old, mask[rows, columns], feather=feather)
        return result

    def _overlap(self, shape: Sequence[int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where the window lies in the picture, and the picture in the window."""
        rows = slice(max(0, self.top), min(shape[0], self.top + self.height))
        columns = slice(max(0, self.left), min(shape[1], self.left + self.width))
        within = slice(rows.start - self.top, rows.stop - self.top)
        return (rows, columns), (within, slice(columns.start - self.left, columns.stop - self.left))


def window_around(mask: Mask, known: Size, factor: int, *, margin: int = 0, context: float = CONTEXT) -> Window:
    """The window for what a mask covers.

    Args:
        mask: (height, width) bool, True at one pixel at least.
        known: (height, width) of the prior's pictures, pixels.
        factor: pixels a cell.
        margin: pixels around the mask that change too.
        context: see CONTEXT.
    """
    shape = (mask.shape[0], mask.shape[1])
    spans = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]
    starts = [max(0, int(span[0]) - margin) for span in spans]
    stops = [min(of, int(span[-1]) + 1 + margin) for span, of in zip(spans, shape, strict=True)]
    lengths = [stop - start for start, stop in zip(starts, stops, strict=True)]
    scale = max(1.0, *(context * length / side for length, side in zip(lengths, known, strict=True)))
    room = min(of / side for of, side in zip(shape, known, strict=True))
    if scale <= room:
        wanted = [scale * side for side in known]
    elif room >= max(length / side for length, side in zip(lengths, known, strict=True)):
        wanted = [room * side for side in known]  # less context, in the prior's own shape
    else:  # longer than that shape, by no more than the context
        wanted = [max(room * side, context * length) for side, length in zip(known, lengths, strict=True)]
    sides = [min(of, max(1, round(side))) for of, side in zip(shape, wanted, strict=True)]
    places = [
        min(max(0, start - (side - length) // 2), of - side)
        for start, side, length, of in zip(starts, sides, lengths, shape, strict=True)
    ]
    return _sized(places[0], places[1], sides[0], sides[1], known, factor)


def whole_window(shape: Size, known: Size, factor: int, fit: str) -> Window:
    """The window of a whole picture, as the prior's own pictures were fitted to its size.

    Padded pictures lie in a window that reaches beyond them; of those that were cropped, longer ones are done in tiles.
    """
    if fit == "stretch":
        return Window(0, 0, *shape, known)
    if fit == "pad":
        scale = max(of / side for of, side in zip(shape, known, strict=True))
        height, width = (max(of, round(scale * side)) for of, side in zip(shape, known, strict=True))
        return Window(-((height - shape[0]) // 2), -((width - shape[1]) // 2), height, width, known)
    return _sized(0, 0, *shape, known, factor)


def scale_of(shape: Size, known: Size) -> float:
    """Pixels of a picture for one that the prior sees, where the shorter side has the prior's length."""
    return min(of / side for of, side in zip(shape, known, strict=True))


def _sized(
    top: int, left: int, height: int, width: int, known: Size, factor: int, *, scale: float | None = None
) -> Window:
    """A window whose shorter side is as long as the prior knows it; the longer one has whole cells."""
    scale = scale_of((height, width), known) if scale is None else scale
    size = [max(side, round(of / scale / factor) * factor) for of, side in zip((height, width), known, strict=True)]
    return Window(top, left, height, width, (size[0], size[1]))


def canvas_window(shape: Size, picture: Size, known: Size, factor: int) -> Window:
    """The window of a whole canvas (height, width) on which a picture lies, at the scale that suits the picture."""
    return _sized(0, 0, *shape, known, factor, scale=scale_of(picture, known))
