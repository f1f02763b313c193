"""Grids larger than those of training: the denoiser looks through overlapping windows of the training grid.

Every window sees its own cells at the positions and the time that the network was trained with. What the windows say
about a cell is combined as a product of experts, the weighted geometric mean

    p(k) = normalise(prod_w p_w(k) ** a_w),   a_w in proportion to hat(row) * hat(column),   sum_w a_w = 1,

where hat falls from the middle of a window to its border, where a window sees less around a cell. A cell of one window
has that window's law exactly; where all windows agree their law stays as it is; a grid of one window is the prior's own
prediction, bit for bit. The mean is linear in logarithms, and so is guidance: guiding windows before they are combined
or the combined law after it is the same, so it is done once a cell, after.
Cost: a look through every window a call, as many at once as fill the network.
Source: Bond-Taylor et al. 2022 (arXiv:2111.12701), on images larger than those of training; differs from its code: any
size, any sampler, any overlap, and a product, where the code averages probabilities.
"""

from math import ceil

import torch
from torch import Tensor

from vqtool.denoisers import EncodedCondition
from vqtool.errors import VqtoolError
from vqtool.priors import Prior

IMPOSSIBLE = -1e4  # nats, at least: windows that exclude each other's tokens leave those with the least objection

Size = tuple[int, int]


class Windows:
    """How a grid is covered by windows, evenly, the first and the last of a row and of a column flush with the border.

    Attributes:
        grid_size: (H, W) cells.
        size: (h, w) cells of a window.
        at_once: how many windows pass the network together.
        group_size: how many samples do so with all their windows, at least 1.
    """

    def __init__(self, grid_size: Size, size: Size, overlap: int | None, *, max_cells: int) -> None:
        """Cover a grid.

        Args:
            grid_size: (H, W) cells, each at least that of a window.
            size: (h, w) cells of a window, those of the training grids.
            overlap: how many cells neighbouring windows share at least; None for half a window.
            max_cells: how many fill the network.

        Raises:
            VqtoolError: the grid is smaller than a window, or windows cannot overlap so.
        """
        if grid_size[0] < size[0] or grid_size[1] < size[1]:
            raise VqtoolError(
                f"--grid {_shown(grid_size)}: smaller than the {_shown(size)} cells that the prior was trained on, and "
                "it has not seen parts of pictures: at least as large on both sides is needed"
            )
        if overlap is not None and not 0 <= overlap < min(size):
            raise VqtoolError(f"--overlap {overlap}: windows of {_shown(size)} cells share 0 to {min(size) - 1} cells")
        self.grid_size, self.size = grid_size, size
        tops, lefts = (
            _starts(whole, part, part // 2 if overlap is None else overlap)
            for whole, part in zip(grid_size, size, strict=True)
        )
        self.corners = [(top, left) for top in tops for left in lefts]
        self.at_once = max(1, max_cells // (size[0] * size[1]))
        self.group_size = max(1, self.at_once // len(self))
        self._shares = self._weigh()  # (windows, H, W)

    @property
    def num_cells(self) -> int:
        """H * W."""
        return self.grid_size[0] * self.grid_size[1]

    def __len__(self) -> int:
        return len(self.corners)

    def _weigh(self) -> Tensor:
        """(windows, H, W) float32: the exponents; 0 outside of a window."""
        weights = torch.zeros(len(self), *self.grid_size, dtype=torch.float64)
        height, width = self.size
        for weight, (top, left) in zip(weights, self.corners, strict=True):
            weight[top : top + height, left : left + width] = _hat(height)[:, None] * _hat(width)
        return (weights / weights.sum(0)).float()

    def log_x0(
        self, prior: Prior, x_t: Tensor, t: Tensor, condition: EncodedCondition | None, cells: Tensor | None = None
    ) -> Tensor:
        """Log p(x_0 | x_t, condition) of the whole grid.

        Args:
            prior: trained on grids of a window's size.
            x_t: (B, H, W) int64 tokens or mask_id, B of `group_size`.
            t: (B,) in [1, T].
            condition: a row a sample; None for the null condition.
            cells: (B, n) int64 in [0, H * W): the only cells that are wanted; None for all.

        Returns:
            (B, H, W, K) float32 log-probabilities, nats, or (B, n, K) with `cells`.
        """
        if len(self) == 1:
            return prior.log_x0(x_t, t, condition, cells)
        self._shares = self._shares.to(x_t.device)
        calls = ceil(len(self) * len(x_t) / max(self.at_once, len(x_t)))
        count = ceil(len(self) / calls)  # windows at once, of all samples each
        parts = [range(first, min(first + count, len(self))) for first in range(0, len(self), count)]
        few = cells is not None and cells.shape[1] < self.size[0] * self.size[1]
        shape = cells.shape if cells is not None and few else x_t.shape
        total = torch.zeros(*shape, prior.kernel.codebook_size, device=x_t.device)
        for part in parts:
            seen = torch.cat([self._cut(x_t, number) for number in part])  # (windows * B, h, w)
            steering = t.repeat(len(part)), _repeat(condition, len(part))
            if cells is not None and few:
                self._add_cells(total, prior, part, seen, steering, cells)
            else:
                self._add_windows(total, prior, part, seen, steering)
        alone = (self._shares == 1).any(0)  # (H, W)
        alone = alone.flatten()[cells] if cells is not None and few else alone
        law = torch.where(alone[..., None], total, total.log_softmax(-1))
        if cells is None or few:
            return law
        return law.flatten(1, 2).gather(1, cells[..., None].expand(-1, -1, law.shape[-1]))

    def _cut(self, grid: Tensor, number: int) -> Tensor:
        """What a window shows of a grid (B, H, W, ...): (B, h, w, ...), a view."""
        (top, left), (height, width) = self.corners[number], self.size
        return grid[:, top : top + height, left : left + width]

    def _add_windows(
        self, total: Tensor, prior: Prior, part: range, seen: Tensor, steering: tuple[Tensor, EncodedCondition | None]
    ) -> None:
        """Add what some windows say of all their cells to the sum (B, H, W, K)."""
        log_p = prior.log_x0(seen, *steering).clamp_(min=IMPOSSIBLE)
        for number, said in zip(part, log_p.chunk(len(part)), strict=True):
            share = self._cut(self._shares[number][None], number)[..., None]  # (1, h, w, 1)
            self._cut(total, number).addcmul_(said, share)

    def _add_cells(
        self,
        total: Tensor,
        prior: Prior,
        part: range,
        seen: Tensor,
        steering: tuple[Tensor, EncodedCondition | None],
        cells: Tensor,
    ) -> None:
        """Add what some windows say of a few cells (B, n) to the sum (B, n, K); cells outside of a window count 0."""
        shares = self._shares[part.start : part.stop].flatten(1)[:, cells]  # (windows, B, n)
        if not bool(shares.any()):
            return
        places = torch.cat([self._places(cells, number) for number in part])
        log_p = prior.log_x0(seen, *steering, places).clamp_(min=IMPOSSIBLE)
        for share, said in zip(shares, log_p.chunk(len(part)), strict=True):
            total.addcmul_(said, share[..., None])

    def _places(self, cells: Tensor, number: int) -> Tensor:
        """Where cells (B, n) of the grid are in a window, (B, n) in [0, h * w); the nearest place if outside."""
        (top, left), (height, width) = self.corners[number], self.size
        rows = (cells // self.grid_size[1] - top).clamp(0, height - 1)
        return rows * width + (cells % self.grid_size[1] - left).clamp(0, width - 1)


def _starts(whole: int, part: int, overlap: int) -> list[int]:
    """Where windows of `part` cells begin on an axis of `whole` cells: as few as overlap so, spread evenly."""
    last = ceil((whole - part) / (part - overlap))
    return [number * (whole - part) // max(1, last) for number in range(last + 1)]


def _hat(length: int) -> Tensor:
    """(length,) float64: 1, 2, ..., 2, 1."""
    place = torch.arange(length, dtype=torch.float64)
    return torch.minimum(place + 1, length - place)


def _repeat(condition: EncodedCondition | None, count: int) -> EncodedCondition | None:
    """The rows again and again; of one row without a copy."""
    if condition is None:
        return None
    return EncodedCondition(
        *(None if part is None else part.expand(count, *part.shape).flatten(0, 1) for part in condition)
    )


def _shown(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
