"""Grids larger than those of training: overlapping tiles of the training size, with blended predictions.

The network sees every tile at the positions and the time that it was trained with. Its predictions for a cell that
lies in several tiles are blended as a product of experts, the weighted geometric mean

    p(k) = normalise(prod_w p_w(k) ** a_w),   sum_w a_w = 1,

with blend weights a_w that are the product of a weight of the row and one of the column; both fall linearly from the
middle of a tile to its border, where a tile sees less around a cell. A cell of one tile has that tile's law exactly;
where all tiles agree their law stays as it is; a grid of one tile is the prior's own prediction, bit for bit. The mean
is linear in logarithms, and so is guidance: to guide the tiles and then blend is the same as to blend and then guide,
so guidance is done once a cell, after.
Cost: every tile passes the network once a call, as many at once as fill it.
Source: Bond-Taylor et al. 2022 (arXiv:2111.12701), on images larger than those of training; differs from its code: any
size, any sampler, any overlap, and a product, where the code averages probabilities.
"""

from copy import copy
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from vqtool.denoisers import EncodedCondition
from vqtool.errors import VqtoolError, size_text
from vqtool.options import Checked, option
from vqtool.priors import Prior

IMPOSSIBLE = -1e4  # nats, in place of -inf: where tiles exclude each other's tokens, the least unlikely are left

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class TileOptions(Checked):
    """How grids larger than those of training pass the denoiser."""

    overlap: int | None = option(
        None, "Cells that neighbouring tiles share at least.", shown="half a tile", minimum=0, advanced=True
    )
    grid_mode: str = option(
        "tiles", "Tiles of the training size, or one stretched layout.", choices=("tiles", "stretch"), advanced=True
    )


class Tiling:
    """How a grid is covered by tiles: evenly spaced, the first and the last of a row and column flush with the border.

    Attributes:
        grid_size: (H, W) cells.
        size: (h, w) cells of a tile.
        at_once: how many tiles pass the network together.
        microbatch: how many samples do so with all their tiles, at least 1.
    """

    def __init__(self, grid_size: Size, size: Size, overlap: int | None, *, max_cells: int) -> None:
        """Cover a grid.

        Args:
            grid_size: (H, W) cells, each at least that of a tile.
            size: (h, w) cells of a tile, those of the training grids.
            overlap: how many cells neighbouring tiles share at least; None for half a tile.
            max_cells: how many fill the network.

        Raises:
            VqtoolError: the grid is smaller than a tile, or tiles cannot overlap so much.
        """
        if grid_size[0] < size[0] or grid_size[1] < size[1]:
            raise VqtoolError(
                f"`grid_size` {size_text(grid_size)}: smaller than the {size_text(size)} cells that the prior was "
                "trained on, and it knows no parts of pictures: both sides have to be at least as large"
            )
        if overlap is not None and not 0 <= overlap < min(size):
            raise VqtoolError(f"`overlap` {overlap}: tiles of {size_text(size)} cells share 0 to {min(size) - 1} cells")
        self.grid_size, self.size = grid_size, size
        tops, lefts = (
            _starts(whole, part, part // 2 if overlap is None else overlap)
            for whole, part in zip(grid_size, size, strict=True)
        )
        self.corners = [(top, left) for top in tops for left in lefts]
        self.at_once = max(1, max_cells // (size[0] * size[1]))
        self.microbatch = max(1, self.at_once // len(self))
        self._weights = self._blend_weights()  # (tiles, H, W)

    def limited(self, at_once: int) -> "Tiling":
        """The same tiles, of which no more pass the network together."""
        other = copy(self)
        other.at_once = at_once
        other.microbatch = max(1, at_once // len(self))
        return other

    @property
    def num_cells(self) -> int:
        """H * W."""
        return self.grid_size[0] * self.grid_size[1]

    def __len__(self) -> int:
        return len(self.corners)

    def _blend_weights(self) -> Tensor:
        """(tiles, H, W) float32: the exponents a_w; 0 outside of a tile."""
        weights = torch.zeros(len(self), *self.grid_size, dtype=torch.float64)
        height, width = self.size
        for weight, (top, left) in zip(weights, self.corners, strict=True):
            weight[top : top + height, left : left + width] = _ramp(height)[:, None] * _ramp(width)
        return (weights / weights.sum(0)).float()

    def log_x0(
        self,
        prior: Prior,
        x_t: Tensor,
        t: Tensor,
        condition: EncodedCondition | None,
        cells: Tensor | None = None,
        *,
        raw: bool = False,
    ) -> Tensor:
        """Log p(x_0 | x_t, condition) of the whole grid.

        Args:
            prior: trained on grids of a tile's size.
            x_t: (B, H, W) int64 tokens or mask_id, B of `microbatch`.
            t: (B,) in [1, T].
            condition: a row a sample; None for the null condition.
            cells: (B, n) int64 in [0, H * W): the only cells that are wanted; None for all.
            raw: return the logits, if there is one tile alone.

        Returns:
            (B, H, W, K) float32 log-probabilities, nats, or (B, n, K) with `cells`.
        """
        if len(self) == 1:
            return prior.log_x0(x_t, t, condition, cells, raw=raw)
        self._weights = self._weights.to(x_t.device)
        calls = ceil(len(self) * len(x_t) / max(self.at_once, len(x_t)))
        count = ceil(len(self) / calls)  # tiles at once, of all samples each
        parts = [range(first, min(first + count, len(self))) for first in range(0, len(self), count)]
        few = cells is not None and cells.shape[1] < self.size[0] * self.size[1]
        shape = cells.shape if cells is not None and few else x_t.shape
        total = torch.zeros(*shape, prior.kernel.codebook_size, device=x_t.device)
        for part in parts:
            seen = torch.cat([self._cut(x_t, number) for number in part])  # (tiles * B, h, w)
            conditioning = t.repeat(len(part)), _repeat(condition, len(part))
            if cells is not None and few:
                self._add_cells(total, prior, part, seen, conditioning, cells)
            else:
                self._add_tiles(total, prior, part, seen, conditioning)
        alone = (self._weights == 1).any(0)  # (H, W)
        alone = alone.flatten()[cells] if cells is not None and few else alone
        law = torch.where(alone[..., None], total, total.log_softmax(-1))
        if cells is None or few:
            return law
        return law.flatten(1, 2).gather(1, cells[..., None].expand(-1, -1, law.shape[-1]))

    def _cut(self, grid: Tensor, number: int) -> Tensor:
        """A tile of a grid (B, H, W, ...): (B, h, w, ...), a view."""
        (top, left), (height, width) = self.corners[number], self.size
        return grid[:, top : top + height, left : left + width]

    def _add_tiles(
        self,
        total: Tensor,
        prior: Prior,
        part: range,
        seen: Tensor,
        conditioning: tuple[Tensor, EncodedCondition | None],
    ) -> None:
        """Add the predictions of some tiles for all their cells to the sum (B, H, W, K)."""
        log_p = prior.log_x0(seen, *conditioning).clamp_(min=IMPOSSIBLE)
        for number, own in zip(part, log_p.chunk(len(part)), strict=True):
            share = self._cut(self._weights[number][None], number)[..., None]  # (1, h, w, 1)
            self._cut(total, number).addcmul_(own, share)

    def _add_cells(
        self,
        total: Tensor,
        prior: Prior,
        part: range,
        seen: Tensor,
        conditioning: tuple[Tensor, EncodedCondition | None],
        cells: Tensor,
    ) -> None:
        """Add the predictions of some tiles for a few cells (B, n) to the sum (B, n, K), 0 for cells outside."""
        shares = self._weights[part.start : part.stop].flatten(1)[:, cells]  # (tiles, B, n)
        if shares.device.type == "cpu" and not bool(shares.any()):  # a GPU would have to be waited for
            return
        places = torch.cat([self._places(cells, number) for number in part])
        log_p = prior.log_x0(seen, *conditioning, places).clamp_(min=IMPOSSIBLE)
        for share, own in zip(shares, log_p.chunk(len(part)), strict=True):
            total.addcmul_(own, share[..., None])

    def _places(self, cells: Tensor, number: int) -> Tensor:
        """Where cells (B, n) of the grid are in a tile, (B, n) in [0, h * w); the nearest place if outside."""
        (top, left), (height, width) = self.corners[number], self.size
        rows = (cells // self.grid_size[1] - top).clamp(0, height - 1)
        return rows * width + (cells % self.grid_size[1] - left).clamp(0, width - 1)


def _starts(whole: int, part: int, overlap: int) -> list[int]:
    """Where tiles of `part` cells begin on an axis of `whole` cells: the fewest that overlap so far, evenly spaced."""
    last = ceil((whole - part) / (part - overlap))
    return [number * (whole - part) // max(1, last) for number in range(last + 1)]


def _ramp(length: int) -> Tensor:
    """(length,) float64 blend weights: 1, 2, ..., 2, 1."""
    place = torch.arange(length, dtype=torch.float64)
    return torch.minimum(place + 1, length - place)


def _repeat(condition: EncodedCondition | None, count: int) -> EncodedCondition | None:
    """The rows, `count` times; of one row without a copy."""
    if condition is None:
        return None
    return EncodedCondition(
        *(None if part is None else part.expand(count, *part.shape).flatten(0, 1) for part in condition)
    )
