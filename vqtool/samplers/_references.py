"""What guidance compares with, kept for some calls: it changes less from one call to the next than what it guides.

Each sample's own calls decide when its reference is computed again, so that it is the same in every batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor


class References:
    """The reference of each sample, computed in every call of its own that is guided, or in every m-th.

    Args:
        every: m.
        num: of samples.
    """

    def __init__(self, every: int, num: int) -> None:
        self._every = every
        self._guided = torch.zeros(num, dtype=torch.int64)  # calls of each sample that were guided
        self._kept: dict[int, Tensor] = {}  # microbatch -> (places, H, W, K), what was found last

    def due(self, guided: Tensor) -> Tensor:
        """The samples (B,) bool whose reference a call computes, among those that it guides."""
        due = guided & (self._guided % self._every == 0)
        self._guided += guided
        return due

    def find(self, number: int, due: Tensor, ask: Callable[[Tensor | None], Tensor], cells: Tensor | None) -> Tensor:
        """The reference of a microbatch.

        Args:
            number: of the microbatch.
            due: (places,) bool on the CPU, whose reference is to be computed.
            ask: computes it for cells, or for all of them.
            cells: (places, n) that are wanted; None for all.

        Returns:
            (places, H, W, K), or (places, n, K) with `cells`.
        """
        if self._every == 1:
            return ask(cells)
        if bool(due.any()):
            fresh, kept = ask(None), self._kept.get(number)
            rows = due.to(fresh.device).view(-1, *[1] * (fresh.ndim - 1))
            self._kept[number] = fresh if kept is None else torch.where(rows, fresh, kept)
        found = self._kept[number]
        if cells is None:
            return found
        return found.flatten(1, 2).gather(1, cells[..., None].expand(-1, -1, found.shape[-1]))
