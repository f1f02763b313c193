"""Which codes of one tokenizer stand where codes of another stood, and how often: what carries a prior over.

A link says that cells whose token was j have the token k now, with a weight. It is counted where both tokens of the
same cells are known, as after `refit` or with grids of the same images in both codes. Else the nearest codes are
linked: each old code with the new one that is nearest to it and with those that it is nearest to, in equal parts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from vqtool.codebooks.maps import Row

PSEUDO_COUNT = 0.5  # cells, of what was never seen


@dataclass(frozen=True)
class Links:
    """Pairs of an old and a new code, each pair once; every new code is in one."""

    old: Row  # (n,) in [0, num_old)
    new: Row  # (n,) in [0, num_new)
    weight: NDArray[np.float64]  # (n,) cells, above 0
    num_old: int
    num_new: int

    def shares(self) -> Tensor:
        """(n,) float64: of the cells with a link's new code, those that had its old one; 1 in sum for each."""
        return torch.from_numpy(self.weight / np.bincount(self.new, self.weight, self.num_new)[self.new])

    def mean_rows(self, rows: Tensor) -> Tensor:
        """Rows of the new codes, (num_new, ...): means of those of the old ones (num_old, ...), by share."""
        parts = self.shares().view(-1, *[1] * (rows.ndim - 1)) * rows.detach().cpu().double()[self.old]
        total = torch.zeros(self.num_new, *rows.shape[1:], dtype=torch.float64)
        return total.index_add(0, torch.from_numpy(self.new), parts).to(rows)

    def log_frequencies(self) -> tuple[Tensor, Tensor]:
        """Log of the cells of every old code (num_old,) and new code (num_new,), float64; 0 of those without a link."""
        counts = (np.bincount(self.old, self.weight, self.num_old), np.bincount(self.new, self.weight, self.num_new))
        logs = [torch.from_numpy(np.where(each > 0, each, 1.0)).log() for each in counts]
        return logs[0], logs[1]


def count_links(old: ArrayLike, new: ArrayLike, backward: Row | None, num_old: int, num_new: int) -> Links:
    """The links of cells whose old and new tokens are known.

    Args:
        old: tokens in [0, num_old), of any shape.
        new: the tokens of the same cells in [0, num_new).
        backward: (num_new,) the nearest old code of each new one, which codes that no cell has are linked to; None
            where distances mean nothing: these are linked to all codes, as often as they are found.
        num_old: codes that there were.
        num_new: codes that there are.
    """
    pairs = np.asarray(old, np.int64).ravel() * num_new + np.asarray(new, np.int64).ravel()
    found, counts = np.unique(pairs, return_counts=True)
    missing = np.setdiff1d(np.arange(num_new), found % num_new)
    if backward is not None:
        more, weights = backward[missing] * num_new + missing, np.full(len(missing), PSEUDO_COUNT)
    else:
        codes, cells = np.unique(np.asarray(old, np.int64), return_counts=True)
        more = (codes[:, None] * num_new + missing).ravel()
        weights = np.repeat(PSEUDO_COUNT * cells / cells.sum(), len(missing))
    return _links(np.concatenate([found, more]), np.concatenate([counts, weights]), num_old, num_new)


def nearest_links(forward: Row, backward: Row, counts: ArrayLike | None = None) -> Links:
    """The links of nearest codes.

    Args:
        forward: (num_old,) the nearest new code of each old one.
        backward: (num_new,) the nearest old code of each new one.
        counts: (num_old,) cells of each old code; None: all alike.
    """
    num_old, num_new = len(forward), len(backward)
    ways = [np.arange(num_old) * num_new + forward, backward * num_new + np.arange(num_new)]
    pairs = np.unique(np.concatenate(ways))
    cells = np.full(num_old, 1.0) if counts is None else np.asarray(counts, np.float64) + PSEUDO_COUNT
    old = pairs // num_new
    return _links(pairs, cells[old] / np.bincount(old, minlength=num_old)[old], num_old, num_new)


def _links(pairs: Row, weight: NDArray[np.float64], num_old: int, num_new: int) -> Links:
    return Links(pairs // num_new, pairs % num_new, weight.astype(np.float64), num_old, num_new)
