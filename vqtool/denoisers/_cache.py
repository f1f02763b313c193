"""What the attention of a network keeps from one call to the next, so that a call computes some cells only.

The other cells lend it the keys and values that they had when they were computed last. Which cells those are is the
sampler's business: see `vqtool.samplers._caches`.
"""

import torch
from torch import Tensor

from vqtool.denoisers._blocks import pick
from vqtool.products import Keep


class Cache:
    """The keys and values of every layer, of the samples that pass a network together."""

    def __init__(self) -> None:
        self._cells: Tensor | None = None
        self._writes: Tensor | None = None
        self._rows: Tensor | slice = slice(None)  # (B * r,) in [0, B * M), that the layers compute; or all
        self._kept: list[tuple[Tensor, Tensor]] = []  # of each layer (B * M, heads, D)
        self._layer = 0

    def begin(self, cells: Tensor | None, writes: Tensor | None) -> None:
        """Begin a call.

        Args:
            cells: (B, r) int64 that it computes, first those that are wanted; None for all, as in the first call.
            writes: (B,) bool, the samples whose keys and values it keeps; None for all.
        """
        self._cells, self._writes, self._rows, self._layer = cells, writes, slice(None), 0

    @property
    def computes_all(self) -> bool:
        """Whether the call computes all cells."""
        return self._cells is None

    def enter(self, x: Tensor, first: int = 0, num_cells: int | None = None) -> Tensor:
        """What the layers compute of the rows (B, M, D): those of cells, and those that are not of cells.

        Args:
            x: rows, those of cells from `first` on.
            first: row of the first cell.
            num_cells: how many rows are of cells; None for all from `first` on.
        """
        if self._cells is None:
            return x
        batch, num = x.shape[:2]
        numbers = torch.arange(num, device=x.device)
        last = num if num_cells is None else first + num_cells
        others = torch.cat([numbers[:first], numbers[last:]]).expand(batch, -1)
        rows = torch.cat([self._cells + first, others], dim=1)
        self._rows = (rows + num * torch.arange(batch, device=x.device)[:, None]).flatten()
        return pick(x, rows)

    def keep(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values (B, heads, M, D) of the next layer, of those that it has made, (B, heads, r, D) each."""
        made = [part.transpose(1, 2).flatten(0, 1) for part in (k, v)]  # (B * r, heads, D)
        layer, self._layer = self._layer, self._layer + 1
        if layer == len(self._kept):
            self._kept.append((made[0].clone(), made[1].clone()))
            return k, v
        for old, new in zip(self._kept[layer], made, strict=True):
            if self._writes is None:
                old[self._rows] = new
            else:
                writes = self._writes.repeat_interleave(k.shape[2])[:, None, None]
                old[self._rows] = torch.where(writes, new, old[self._rows])
        if self._cells is None:
            return k, v
        kept_k, kept_v = (old.view(len(k), -1, *old.shape[1:]).transpose(1, 2) for old in self._kept[layer])
        return kept_k, kept_v


def enter(x: Tensor, cache: Cache | None, first: int = 0, num_cells: int | None = None) -> tuple[Tensor, Keep | None]:
    """What the layers compute of the rows (B, M, D), see `Cache.enter`, and what knows the keys and values of all."""
    return (x, None) if cache is None else (cache.enter(x, first, num_cells), cache.keep)


def leave(x: Tensor, cells: Tensor, cache: Cache | None) -> Tensor:
    """Of what the layers have made the rows of the wanted cells, (B, n, D); `cells` (B, n) are these rows of all."""
    return pick(x, cells) if cache is None or cache.computes_all else x[:, : cells.shape[1]]
