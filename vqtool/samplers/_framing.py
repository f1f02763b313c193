"""Images to edit, each of its own size: its window, what is drawn again, and how the result comes back."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import VqtoolError
from vqtool.grids import GridBatch, GridHeader
from vqtool.images.pixels import Own, find_fit, put_on_white, to_grey
from vqtool.samplers._changes import Wanted, check_array, parse_sides
from vqtool.samplers._windows import Picture, Size, Window, canvas_window, scale_of, whole_window, window_around
from vqtool.samplers.masks import Mask, spread, to_cells


@dataclass(frozen=True)
class Framed:
    """A picture and its window."""

    picture: Picture  # on its larger canvas, if it is enlarged
    own: Own  # (C, height, width): the same in channels of its own
    window: Window
    mask: NDArray[np.bool_] | None  # (height, width) of the picture; None where all of it may change
    cells: NDArray[np.bool_]  # (H, W) of the window that are drawn again


@dataclass(frozen=True)
class Given:
    """Some pictures, with grids of one size."""

    batch: GridBatch
    opened: GridBatch  # the same with the cells masked that are drawn again, and those that are added
    frames: Sequence[Framed] | None = None  # of images


@dataclass(frozen=True)
class Framing:
    """What is done to images.

    Attributes:
        header: of the grids of pictures of the size that the prior works at.
        wanted: what is done.
    """

    header: GridHeader
    wanted: Wanted
    _masks: dict[Size, Mask] = field(default_factory=dict)

    @property
    def _known(self) -> Size:
        return self.header.image_size

    @property
    def _factor(self) -> int:
        return self._known[0] // self.header.grid_size[0]

    def frame(self, own: Own, number: int) -> Framed:
        """A picture as it is edited, by its number in the run.

        Args:
            own: (C, height, width) in channels of its own, as `read_original` gives it; the prior sees it on white.
            number: of the picture.

        Raises:
            VqtoolError: the mask does not fit it.
        """
        picture = put_on_white(own)
        if not self.header.has_places:
            window = whole_window((picture.shape[1], picture.shape[2]), self._known, self._factor, "stretch")
            return Framed(picture, own, window, None, self._placeless_cells(number))
        if self.wanted.sides is not None:
            return self._enlarge(own)
        if self.wanted.mask is None:
            window = self._whole(picture.shape[1:])
            return Framed(picture, own, window, None, np.zeros(self.grid_size(window), bool))
        mask, window = self._find_mask(picture.shape[1:], number)
        return Framed(picture, own, window, mask, to_cells(window.cut_mask(mask), self.grid_size(window)))

    def finish(self, framed: Framed, made: Picture) -> Own:
        """A made window (3, h, w) as a picture of the original's size, channels and bits, with the pixels kept of it.

        What is drawn again is opaque.
        """
        is_kept = self.wanted.paste and framed.mask is not None
        whole = framed.window.put_back(
            made, framed.picture, framed.mask if is_kept else None, self.wanted.feather if is_kept else 0
        )
        own = framed.own
        drawn: Own = whole if len(own) > 2 else to_grey(whole)
        if own.dtype == np.uint16:
            drawn = drawn.astype(np.uint16) * 257  # 255 -> 65535
        elif len(own) % 2:
            return drawn
        else:
            drawn = np.concatenate([drawn, np.full_like(drawn[:1], 255)])
        is_drawn = framed.mask is None or framed.mask | (whole != framed.picture).any(0)  # (height, width)
        return np.where(is_drawn, drawn, own)

    def grid_size(self, window: Window) -> Size:
        """(H, W) cells of a window."""
        return window.size[0] // self._factor, window.size[1] // self._factor

    def _whole(self, shape: Any) -> Window:
        return whole_window(shape, self._known, self._factor, find_fit(self.header.preprocessing))

    def _find_mask(self, shape: Size, number: int) -> tuple[NDArray[np.bool_], Window]:
        wanted = self.wanted
        if isinstance(wanted.mask, str) and wanted.mask.startswith("random:"):
            window = self._whole(shape)
            cells = self._mask(shape, self.grid_size(window)).cells(number)
            beyond = Window(-window.top, -window.left, *shape, shape)  # the picture, as it lies in the window
            return beyond.cut_mask(spread(cells, (window.height, window.width))), window
        if isinstance(wanted.mask, str):
            mask = self._mask(shape, shape).pixels(number)
        else:
            mask = self._own_array(number, shape)
        return mask, window_around(
            mask, self._known, self._factor, margin=wanted.feather * wanted.paste, context=wanted.context
        )

    def _mask(self, shape: Size, grid_size: Size) -> Mask:
        if shape not in self._masks:
            self._masks[shape] = Mask(str(self.wanted.mask), shape, grid_size, seed=self.wanted.seed)
        return self._masks[shape]

    def _own_array(self, number: int, shape: Size) -> NDArray[np.bool_]:
        array = check_array(np.asarray(self.wanted.mask), self.header.grid_size, (shape[0], shape[1]))
        own = array if array.ndim == 2 else array[number]
        if not own.any():
            raise VqtoolError("`mask` keeps the whole picture, so that there is nothing to make anew")
        return own if own.shape == tuple(shape) else spread(own, shape)

    def _placeless_cells(self, number: int) -> NDArray[np.bool_]:
        mask = self.wanted.mask
        if isinstance(mask, str):
            return self._mask(self._known, self.header.grid_size).cells(number)
        if mask is None:
            return np.zeros(self.header.grid_size, bool)
        return np.asarray(mask) if np.ndim(mask) == 2 else np.asarray(mask)[number]

    def _enlarge(self, own: Own) -> Framed:
        shape = (own.shape[1], own.shape[2])
        cell = self._factor * scale_of(shape, self._known)  # pixels of the picture
        counts = parse_sides(self.wanted.sides or {})
        added = {side: count if in_pixels else round(count * cell) for side, (count, in_pixels) in counts.items()}
        around = ((added["top"], added["bottom"]), (added["left"], added["right"]))
        mask = np.pad(np.zeros(shape, bool), around, constant_values=True)
        canvas = np.pad(own, ((0, 0), *around), mode="edge")
        window = canvas_window((mask.shape[0], mask.shape[1]), shape, self._known, self._factor)
        return Framed(put_on_white(canvas), canvas, window, mask, to_cells(mask, self.grid_size(window)))


def cut_all(frames: Sequence[Framed]) -> NDArray[np.uint8]:
    """(B, 3, h, w): what the tokenizer sees of pictures whose windows have one size."""
    return np.stack([framed.window.cut(framed.picture) for framed in frames])


def mask_frames(batch: GridBatch, frames: Sequence[Framed], mask_id: int) -> Given:
    """The grids of windows with the cells masked that are drawn again."""
    cells = np.stack([framed.cells for framed in frames])
    return Given(batch, replace(batch, tokens=np.where(cells, mask_id, batch.tokens)), frames)


def finish_all(framing: Framing, frames: Sequence[Framed], made: NDArray[np.uint8]) -> Own:
    """Made windows (B * variants, 3, h, w), variants of each in a row, as pictures of their originals' size.

    Pictures that are finished together have one size, and the same channels and bits.
    """
    variants = len(made) // len(frames)
    return np.stack([framing.finish(frames[row // variants], image) for row, image in enumerate(made)])
