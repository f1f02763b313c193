"""Pictures are edited: some tokens of a grid are given and the others made, or a grid is made noisy and clean again.

Given tokens come out as they went in. A picture may be made in several variants; variant v of picture i is sample
i * variants + v of the run, whatever the batches.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool import samplers
from vqtool.errors import VqtoolError
from vqtool.grids import GridBatch, GridHeader
from vqtool.priors import Prior
from vqtool.samplers.masks import Mask, paste_back

Array = NDArray[Any]
Images = NDArray[np.uint8]  # (B, 3, height, width)


@dataclass(frozen=True)
class Repainted:
    """Grids masked where a mask image is white.

    Attributes:
        header: of what is made; masked if masked cells are to stay.
        mask: what is made anew.
        paste: whether pictures get back the pixels outside of the mask.
        feather: width of the soft edge between both, pixels.
    """

    header: GridHeader
    mask: Mask
    paste: bool = True
    feather: int = 0

    def open(self, batch: GridBatch, number: int) -> GridBatch:
        """The masked grids; `number` is that of the first in the run."""
        cells = np.stack([self.mask.cells(number + row) for row in range(len(batch))])
        return replace(batch, tokens=np.where(cells, self.header.codebook_size, batch.tokens))

    def finish(self, made: Images, originals: Images, number: int) -> Images:
        """Made pictures, variants of each in a row, with the pixels of the originals outside of the mask."""
        if not self.paste:
            return made
        variants = len(made) // len(originals)
        pairs = enumerate(zip(made, originals.repeat(variants, axis=0), strict=True))
        return np.stack(
            [
                paste_back(image, original, self.mask.pixels(number + row // variants), feather=self.feather)
                for row, (image, original) in pairs
            ]
        )


@dataclass(frozen=True)
class Enlarged:
    """Grids in the middle of larger ones, with masked cells around.

    Attributes:
        header: of what is made.
        border: cells added at the top, the bottom, the left and the right.
        feather: width of the soft edge around the originals, pixels.
    """

    header: GridHeader
    border: tuple[int, int, int, int]
    feather: int = 0

    def open(self, batch: GridBatch, number: int) -> GridBatch:
        """The grids with masked cells around."""
        tokens = batch.tokens.astype(self.header.dtype)
        return replace(batch, tokens=_pad(tokens, self.border, self.header.codebook_size))

    def finish(self, made: Images, originals: Images, number: int) -> Images:
        """Made pictures, variants of each in a row, with the pixels of the originals in their middle."""
        (height, width), (rows, columns) = self.header.image_size, self.header.grid_size
        cells = height // rows, height // rows, width // columns, width // columns
        top, bottom, left, right = (count * pixels for count, pixels in zip(self.border, cells, strict=True))
        around = (top, bottom, left, right)
        placed = _pad(originals.repeat(len(made) // len(originals), axis=0), around, 0)
        anew = _pad(np.zeros((1, *originals.shape[2:]), bool), around, True)[0]
        pairs = zip(made, placed, strict=True)
        return np.stack([paste_back(image, original, anew, feather=self.feather) for image, original in pairs])


def enlarge(header: GridHeader, sides: Mapping[str, str], *, feather: int = 0) -> Enlarged:
    """What puts grids on a larger canvas.

    Args:
        header: of the grids.
        sides: "top", "bottom", "left", "right": how much is added, in cells ("4") or pixels ("32px").
        feather: width of the soft edge around the originals, pixels.

    Raises:
        VqtoolError: nothing is added, or no whole number of cells.
    """
    (rows, columns), (height, width) = header.grid_size, header.image_size
    cell = {"top": height // rows, "bottom": height // rows, "left": width // columns, "right": width // columns}
    added = {side: _count_cells(side, text, cell[side]) for side, text in sides.items()}
    if not any(added.values()):
        raise VqtoolError("nothing is added: say how much with --left, --right, --top or --bottom")
    size = rows + added["top"] + added["bottom"], columns + added["left"] + added["right"]
    pixels = size[0] * height // rows, size[1] * width // columns
    border = added["top"], added["bottom"], added["left"], added["right"]
    return Enlarged(replace(header, grid_size=size, image_size=pixels), border, feather)


def _count_cells(side: str, text: str, cell: int) -> int:
    match = re.fullmatch(r"([0-9]{1,4})(px)?", text.strip())
    if not match:
        raise VqtoolError(f"--{side} {text}: a number of cells (4) or pixels (32px) is expected")
    count = int(match[1])
    if match[2] and count % cell:
        raise VqtoolError(f"--{side} {text}: a cell is {cell} pixels; whole cells are added")
    return count // cell if match[2] else count


def _pad(rows: Array, border: tuple[int, int, int, int], value: Any) -> Array:
    """Rows (B, ..., height, width) with a value around them."""
    widths = [(0, 0)] * (rows.ndim - 2) + [border[:2], border[2:]]
    return np.pad(rows, widths, constant_values=value)


@dataclass(frozen=True)
class Variants:
    """What was made of some pictures."""

    batch: GridBatch  # those of one picture in a row
    samples: range  # their numbers
    num_calls: float  # of the denoiser, the mean of the samples


def make_variants(
    prior: Prior,
    batch: GridBatch,
    texts: Sequence[str | None] | None,
    *,
    number: int,
    variants: int = 1,
    strength: float | None = None,
    **options: Any,
) -> Variants:
    """Fill the masked cells of grids, or vary whole ones.

    Args:
        prior: of such grids; they may be larger than those it was trained on.
        batch: B grids; a token K is a masked cell.
        texts: labels or captions to make them by, one a grid, as the prior takes them; None for the null condition.
        number: of the first grid in the run.
        variants: how many are made of each grid.
        strength: None fills the masked cells and keeps all tokens; else whole grids start from q(x_t | x_0) at this
            share t / T.
        options: further arguments of `samplers.sample`.

    Raises:
        VqtoolError: an option does not go with the prior.
    """
    samples = range(number * variants, (number + len(batch)) * variants)
    known = known_rows(prior, batch, texts, number=number, variants=variants, strength=strength)
    made = list(samplers.sample_batches(prior, len(samples), start=samples.start, **known, **options))
    grids = torch.cat([part.grids for part in made]).numpy().astype(batch.tokens.dtype)
    calls = sum(part.num_calls * len(part.samples) for part in made) / max(1, len(samples))
    return Variants(_spread(batch, grids, variants), samples, calls)


def known_rows(
    prior: Prior,
    batch: GridBatch,
    texts: Sequence[str | None] | None,
    *,
    number: int,
    variants: int = 1,
    strength: float | None = None,
) -> dict[str, Any]:
    """What `samplers.sample` is told of grids: the arguments are those of ``make_variants``."""

    def of_samples(rows: Tensor) -> Callable[[range], Tensor]:
        return lambda samples: rows[[sample // variants - number for sample in samples]]

    tokens = of_samples(torch.from_numpy(batch.tokens.astype(np.int64)))
    return {
        "condition": None if texts is None else of_samples(prior.conditioner.encode(texts)),
        "grid_size": batch.tokens.shape[1:],
        **({"given": tokens} if strength is None else {"source": tokens, "strength": strength}),
    }


def _spread(batch: GridBatch, tokens: Array, variants: int) -> GridBatch:
    """What is known of each grid, for each of its variants; ids get -1, -2, ... where there are several."""
    ids = batch.ids if variants == 1 else [f"{id}-{v}" for id in batch.ids for v in range(1, variants + 1)]
    labels, captions = (
        None if column is None else [text for text in column for _ in range(variants)]
        for column in (batch.labels, batch.captions)
    )
    return GridBatch(tokens, ids, labels, captions)


def check_fits(prior: Prior, header: GridHeader, name: str) -> None:
    """Raise unless a prior can make grids under this header.

    Raises:
        MismatchError: another tokenizer or codebook.
        VqtoolError: smaller than the grids of training.
    """
    size, least = header.grid_size, prior.grid_spec.grid_size
    prior.check_grids(replace(header, grid_size=least), name)
    if size[0] < least[0] or size[1] < least[1]:
        raise VqtoolError(
            f"{name} makes grids of {size[0]}x{size[1]}, but the prior knows those of {least[0]}x{least[1]} and no "
            "parts of them: encode with a larger --size, or enlarge them with `vqtool outpaint`"
        )
