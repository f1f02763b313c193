"""What editing does to pictures before the prior fills the masked cells: mask parts of them, and enlarge them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import VqtoolError
from vqtool.grids import GridBatch, GridHeader
from vqtool.priors import Prior
from vqtool.samplers._edit import find_start
from vqtool.samplers._pictures import Images
from vqtool.samplers.masks import Mask, paste_back, to_cells

Array = NDArray[Any]
Sides = Mapping[str, str | int]  # "top", "bottom", "left", "right": cells (4), or pixels ("32px")


class Masks(Protocol):
    """What is drawn again of each picture, by its number in the run."""

    def cells(self, number: int) -> NDArray[np.bool_]:
        """(H, W) bool: the masked cells."""

    def pixels(self, number: int) -> NDArray[np.bool_]:
        """(height, width) bool: the masked pixels."""


class ArrayMask:
    """Masks given as an array: one for all pictures, or one for each; of cells, or of pixels."""

    def __init__(self, array: Array, header: GridHeader) -> None:
        """Check the shape.

        Args:
            array: (H, W), (B, H, W), (height, width) or (B, height, width) bool, True where pictures are drawn again.
            header: of the grids.

        Raises:
            VqtoolError: another shape or type.
        """
        self._array, self._header = np.asarray(array), header
        if self._array.dtype != bool or self._array.shape[-2:] not in (header.grid_size, header.image_size):
            raise VqtoolError(
                f"`mask` has shape {self._array.shape} and type {self._array.dtype}: bool of {header.grid_size} cells "
                f"or {header.image_size} pixels is expected"
            )

    def cells(self, number: int) -> NDArray[np.bool_]:
        """(H, W) bool: the masked cells."""
        own = self._own(number)
        return own if own.shape == self._header.grid_size else to_cells(own, self._header.grid_size)

    def pixels(self, number: int) -> NDArray[np.bool_]:
        """(height, width) bool: the masked pixels."""
        own, (height, width) = self._own(number), self._header.image_size
        if own.shape == self._header.image_size:
            return own
        rows, columns = self._header.grid_size
        return own.repeat(height // rows, axis=0).repeat(width // columns, axis=1)

    def _own(self, number: int) -> NDArray[np.bool_]:
        return self._array if self._array.ndim == 2 else self._array[number]


@dataclass(frozen=True)
class Change:
    """What is done to pictures before the prior fills the masked cells.

    Attributes:
        header: of the grids that are made; masked if masked cells are to stay.
        mask: what is drawn again; None for nothing.
        border: cells added at the top, the bottom, the left and the right.
        paste: whether pictures get back the pixels of their originals outside of the mask.
        feather: width of the soft edge between both, pixels.
    """

    header: GridHeader
    mask: Masks | None = None
    border: tuple[int, int, int, int] = (0, 0, 0, 0)
    paste: bool = True
    feather: int = 0

    @property
    def masks(self) -> bool:
        """Whether cells are masked that were not."""
        return self.mask is not None or any(self.border)

    def open(self, batch: GridBatch, number: int) -> GridBatch:
        """The masked grids; `number` is that of the first in the run."""
        tokens, mask_id = batch.tokens.astype(self.header.dtype), self.header.codebook_size
        if self.mask is not None:
            cells = np.stack([self.mask.cells(number + row) for row in range(len(batch))])
            tokens = np.where(cells, mask_id, tokens).astype(self.header.dtype)
        return replace(batch, tokens=_pad(tokens, self.border, mask_id))

    def finish(self, made: Images, originals: Images, number: int) -> Images:
        """Made pictures, variants of each in a row, with the pixels of the originals that are kept."""
        if not (self.paste and self.masks):
            return made
        variants, (top, bottom, left, right) = len(made) // len(originals), self.border
        rows, columns = (pixels // cells for pixels, cells in zip(made.shape[2:], self.header.grid_size, strict=True))
        around = (top * rows, bottom * rows, left * columns, right * columns)
        results = []
        for row, image in enumerate(made):
            original, place = originals[row // variants], number + row // variants
            anew = np.zeros(original.shape[1:], bool) if self.mask is None else self.mask.pixels(place)
            original, anew = _pad(original[None], around, 0)[0], _pad(anew[None], around, True)[0]
            results.append(paste_back(image, original, anew, feather=self.feather))
        return np.stack(results)


def build_change(
    prior: Prior,
    header: GridHeader,
    name: str,
    *,
    mask: str | Array | None = None,
    sides: Sides | None = None,
    strength: float | None = None,
    paste: bool = True,
    feather: int = 0,
    masked: bool = False,
    seed: int = 0,
) -> Change:
    """What is done to grids under a header; the arguments are those of `edit` and `edit_to_file`.

    Raises:
        MismatchError: the prior is of another tokenizer or codebook.
        VqtoolError: an argument is not possible, or the prior cannot make such grids.
    """
    if mask is not None and sides is not None:
        raise VqtoolError("`mask` and `sides` both say what is made: edit twice")
    if strength is not None:
        find_start(prior.kernel, strength)
        if sides is not None:
            raise VqtoolError("`strength` starts from whole pictures: it does not go with `sides`")
    elif mask is None and sides is None and not header.masked:
        raise VqtoolError(f"{name}: has no masked cells to fill; `vqtool inpaint` makes parts of whole grids anew")
    if feather and not paste:
        raise VqtoolError("`feather` softens the edge of what is pasted back, and `paste` is off")
    if not 0 <= feather <= 256:
        raise VqtoolError(f"`feather` {feather}: 0 to 256 pixels are expected")
    if not header.has_places:
        _check_placeless(header, name, mask, sides, feather)
        paste = False
    change = Change(replace(header, masked=masked), paste=paste, feather=feather)
    if sides is not None:
        change = _enlarge(change, sides)
    if isinstance(mask, str):
        change = replace(change, mask=Mask(mask, header.image_size, header.grid_size, seed=seed))
    elif mask is not None:
        change = replace(change, mask=ArrayMask(mask, header))
    _check_fits(prior, change.header, name)
    return change


def _check_placeless(
    header: GridHeader, name: str, mask: str | Array | None, sides: Sides | None, feather: int
) -> None:
    """Raise VqtoolError if something is asked for that needs the place of a token in the image."""
    if isinstance(mask, str):
        by_place = not mask.startswith("random:")
    else:
        by_place = mask is not None and mask.shape[-2:] == header.image_size
    if sides is not None or by_place or feather:
        raise VqtoolError(
            f"{name}: each of its {header.grid_size[1]} tokens stands for the whole image, so no part of it can be "
            "made anew and none added: `vqtool vary` and a `mask` random:SHARE of the tokens make images like it"
        )


def _enlarge(change: Change, sides: Sides) -> Change:
    (rows, columns), (height, width) = change.header.grid_size, change.header.image_size
    cell = {"top": height // rows, "bottom": height // rows, "left": width // columns, "right": width // columns}
    if unknown := sides.keys() - cell.keys():
        raise VqtoolError(f"`sides` {', '.join(unknown)}: unknown; known are {', '.join(cell)}")
    added = {side: _count_cells(side, str(sides.get(side, 0)), cell[side]) for side in cell}
    if not any(added.values()):
        raise VqtoolError("nothing is added: say how much with `left`, `right`, `top` or `bottom`")
    size = rows + added["top"] + added["bottom"], columns + added["left"] + added["right"]
    pixels = size[0] * height // rows, size[1] * width // columns
    border = added["top"], added["bottom"], added["left"], added["right"]
    return replace(change, header=replace(change.header, grid_size=size, image_size=pixels), border=border)


def _count_cells(side: str, text: str, cell: int) -> int:
    match = re.fullmatch(r"([0-9]{1,4})(px)?", text.strip())
    if not match:
        raise VqtoolError(f"`{side}` {text}: a number of cells (4) or pixels (32px) is expected")
    count = int(match[1])
    if match[2] and count % cell:
        raise VqtoolError(f"`{side}` {text}: a cell is {cell} pixels; whole cells are added")
    return count // cell if match[2] else count


def _pad(rows: Array, border: tuple[int, int, int, int], value: Any) -> Array:
    """Rows (B, ..., height, width) with a value around them."""
    widths = [(0, 0)] * (rows.ndim - 2) + [border[:2], border[2:]]
    return np.pad(rows, widths, constant_values=value)


def _check_fits(prior: Prior, header: GridHeader, name: str) -> None:
    """Raise unless a prior can make grids under this header."""
    size, least = header.grid_size, prior.grid_spec.grid_size
    prior.check_grids(replace(header, grid_size=least, image_size=prior.grid_spec.image_size), name)
    if size[0] < least[0] or size[1] < least[1]:
        raise VqtoolError(
            f"{name} makes grids of {size[0]}x{size[1]}, but the prior knows those of {least[0]}x{least[1]} and no "
            "parts of them: encode with a larger `size`, or enlarge them with `vqtool outpaint`"
        )
