"""What editing does to pictures before the prior fills the masked cells: mask parts of them, and enlarge them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import VqtoolError
from vqtool.grids import GridBatch, GridHeader
from vqtool.priors import Prior
from vqtool.samplers._edit import find_start
from vqtool.samplers._windows import CONTEXT
from vqtool.samplers.masks import Mask, to_cells

Array = NDArray[Any]
_SIDES = ("top", "bottom", "left", "right")
Sides = Mapping[str, str | int]  # "top", "bottom", "left", "right": cells (4), or pixels ("32px")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be done to pictures; the fields are arguments of `edit` and `edit_to_file`."""

    mask: str | Array | None = None
    sides: Sides | None = None
    strength: float | None = None
    paste: bool = True
    feather: int = 0
    context: float = CONTEXT
    masked: bool = False
    seed: int = 0

    @property
    def step(self) -> str:
        """The name of what is done."""
        if self.mask is not None:
            return "inpaint"
        if self.sides is not None:
            return "outpaint"
        return "complete" if self.strength is None else "vary"

    @property
    def masks(self) -> bool:
        """Whether cells are masked that were not."""
        return self.mask is not None or self.sides is not None

    def check(self, prior: Prior, header: GridHeader, name: str) -> None:
        """Raise unless all of it is possible with grids under a header.

        Raises:
            VqtoolError: names what is not.
        """
        if self.mask is not None and self.sides is not None:
            raise VqtoolError("`mask` and `sides` both say what is made: edit twice")
        if self.strength is not None:
            find_start(prior.kernel, self.strength)
            if self.sides is not None:
                raise VqtoolError("`strength` starts from whole pictures: it does not go with `sides`")
        elif not self.masks and not header.masked:
            raise VqtoolError(f"{name}: has no masked cells to fill; `vqtool inpaint` makes parts of whole grids anew")
        if self.feather and not self.paste:
            raise VqtoolError("`feather` softens the edge of what is pasted back, and `paste` is off")
        if not 0 <= self.feather <= 256:
            raise VqtoolError(f"`feather` {self.feather}: 0 to 256 pixels are expected")
        if not 1 <= self.context <= 100:
            raise VqtoolError(f"`context` {self.context:g}: 1 (the mask alone) to 100 are expected")
        if not header.has_places:
            _check_placeless(header, name, self.mask, self.sides, self.feather)


def check_array(array: Array, grid_size: tuple[int, int], image_size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask that is given as an array, if it is of cells or of pixels.

    Raises:
        VqtoolError: another shape or type.
    """
    found = np.asarray(array)
    if found.dtype != bool or found.shape[-2:] not in (grid_size, image_size):
        raise VqtoolError(
            f"`mask` has shape {found.shape} and type {found.dtype}: bool of {grid_size} cells or {image_size} pixels "
            "is expected"
        )
    return found


class ArrayMask:
    """Masks given as an array: one for all grids, or one for each; of cells, or of pixels."""

    def __init__(self, array: Array, header: GridHeader) -> None:
        """Check the shape.

        Args:
            array: (H, W), (B, H, W), (height, width) or (B, height, width) bool, True where pictures are drawn again.
            header: of the grids.

        Raises:
            VqtoolError: another shape or type.
        """
        self._array, self._header = check_array(array, header.grid_size, header.image_size), header

    def cells(self, number: int) -> NDArray[np.bool_]:
        """(H, W) bool: the masked cells."""
        own = self._array if self._array.ndim == 2 else self._array[number]
        return own if own.shape == self._header.grid_size else to_cells(own, self._header.grid_size)


@dataclass(frozen=True)
class Change:
    """What is done to grids before the prior fills the masked cells.

    Attributes:
        header: of the grids that are made; masked if masked cells are to stay.
        mask: what is drawn again; None for nothing.
        border: cells added at the top, the bottom, the left and the right.
    """

    header: GridHeader
    mask: Mask | ArrayMask | None = None
    border: tuple[int, int, int, int] = (0, 0, 0, 0)

    def open(self, batch: GridBatch, number: int) -> GridBatch:
        """The masked grids; `number` is that of the first in the run."""
        tokens, mask_id = batch.tokens.astype(self.header.dtype), self.header.codebook_size
        if self.mask is not None:
            cells = np.stack([self.mask.cells(number + row) for row in range(len(batch))])
            tokens = np.where(cells, mask_id, tokens).astype(self.header.dtype)
        widths = ((0, 0), self.border[:2], self.border[2:])
        return replace(batch, tokens=np.pad(tokens, widths, constant_values=mask_id))


def build_change(prior: Prior, header: GridHeader, name: str, wanted: Wanted) -> Change:
    """What is done to grids under a header.

    Raises:
        MismatchError: the prior is of another tokenizer or codebook.
        VqtoolError: something is not possible, or the prior cannot make such grids.
    """
    wanted.check(prior, header, name)
    change = Change(replace(header, masked=wanted.masked))
    if wanted.sides is not None:
        change = _enlarge(change, wanted.sides)
    if isinstance(wanted.mask, str):
        change = replace(change, mask=Mask(wanted.mask, header.image_size, header.grid_size, seed=wanted.seed))
    elif wanted.mask is not None:
        change = replace(change, mask=ArrayMask(wanted.mask, header))
    check_fits(prior, change.header, name)
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
    added = {}
    for side, (count, in_pixels) in parse_sides(sides).items():
        if in_pixels and count % cell[side]:
            raise VqtoolError(f"`{side}` {sides[side]}: a cell is {cell[side]} pixels; whole cells are added")
        added[side] = count // cell[side] if in_pixels else count
    size = rows + added["top"] + added["bottom"], columns + added["left"] + added["right"]
    pixels = size[0] * height // rows, size[1] * width // columns
    border = added["top"], added["bottom"], added["left"], added["right"]
    return replace(change, header=replace(change.header, grid_size=size, image_size=pixels), border=border)


def parse_sides(sides: Sides) -> dict[str, tuple[int, bool]]:
    """How much is added on each side, and whether that is in pixels.

    Raises:
        VqtoolError: a side is none, an amount is none, or nothing is added.
    """
    if unknown := sides.keys() - set(_SIDES):
        raise VqtoolError(f"`sides` {', '.join(unknown)}: unknown; known are {', '.join(_SIDES)}")
    counts = {}
    for side in _SIDES:
        match = re.fullmatch(r"([0-9]{1,4})(px)?", str(sides.get(side, 0)).strip())
        if not match:
            raise VqtoolError(f"`{side}` {sides[side]}: a number of cells (4) or pixels (32px) is expected")
        counts[side] = int(match[1]), match[2] is not None
    if not any(count for count, _ in counts.values()):
        raise VqtoolError("nothing is added: say how much with `left`, `right`, `top` or `bottom`")
    return counts


def check_fits(prior: Prior, header: GridHeader, name: str) -> None:
    """Raise unless a prior can make grids under this header."""
    size, least = header.grid_size, prior.grid_spec.grid_size
    prior.check_grids(replace(header, grid_size=least, image_size=prior.grid_spec.image_size), name)
    if size[0] < least[0] or size[1] < least[1]:
        raise VqtoolError(
            f"{name} makes grids of {size[0]}x{size[1]}, but the prior knows those of {least[0]}x{least[1]} and no "
            "parts of them: encode with a larger `size`, or enlarge them with `vqtool outpaint`"
        )
