"""Which picture or grid of one set is nearest to each of another: for sheets of neighbours, outliers and memorisation.

Cost: O(N M D) in float32, memory O(block (N + M)). Distances of features and pixels are Euclidean; those of grids are
shares of cells whose tokens differ.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

_BLOCK = 1024  # rows at once
THUMBNAIL = 16  # pixels a side that pictures are reduced to before their pixels are compared


@dataclass(frozen=True)
class Nearest:
    """The k nearest rows of another set, the nearest first."""

    rows: NDArray[np.int64]  # (N, k)
    distances: NDArray[np.float32]  # (N, k)


def nearest(x: NDArray[np.floating], y: NDArray[np.floating], k: int = 1, *, skip_self: bool = False) -> Nearest:
    """The k nearest rows of y to each row of x, or all of y where there are fewer.

    Distances are computed again from the differences of the rows that are found, so that equal ones are at 0.

    Args:
        x: (N, D).
        y: (M, D).
        k: how many.
        skip_self: x is y, and no row counts as its own neighbour.
    """
    a, b = (torch.from_numpy(np.ascontiguousarray(rows, np.float32)) for rows in (x, y))
    centre = b.mean(0)  # shorter vectors, smaller rounding errors
    a, b = a - centre, b - centre
    squares = b.square().sum(1)
    rows, distances = [], []
    for start in range(0, len(a), _BLOCK):
        block = a[start : start + _BLOCK]
        squared = squares - 2 * block @ b.T  # without |a|^2, which is the same for all of a row
        if skip_self:
            own = torch.arange(len(block))
            squared[own, own + start] = torch.inf
        found = squared.topk(min(k, len(b) - skip_self), largest=False).indices
        distance = (block[:, None] - b[found]).square().sum(2).sqrt()
        order = distance.argsort(dim=1, stable=True)
        rows.append(found.gather(1, order))
        distances.append(distance.gather(1, order))
    return Nearest(torch.cat(rows).numpy(), torch.cat(distances).numpy())


def nearest_grids(x: NDArray[np.integer], y: NDArray[np.integer]) -> Nearest:
    """The nearest grid of y (M, H, W) to each of x (N, H, W): which has most equal tokens; of equals the first."""
    ours, theirs = x.reshape(len(x), -1), y.reshape(len(y), -1)
    rows, shares = [], []
    block = max(1, (64 << 20) // max(1, theirs.size))  # grids whose comparison takes 64 MiB
    for start in range(0, len(ours), block):
        different = (ours[start : start + block, None] != theirs[None]).sum(2)  # (block, M)
        best = different.argmin(1)
        rows.append(best)
        shares.append(different[np.arange(len(best)), best] / ours.shape[1])
    return Nearest(np.concatenate(rows)[:, None], np.concatenate(shares).astype(np.float32)[:, None])


def outside(x: NDArray[np.floating], y: NDArray[np.floating], k: int) -> NDArray[np.float32]:
    """How far each row of x (N, D) lies outside of the balls around the rows of y (M, D), each to its k-th neighbour.

    Returns:
        (N,) distance to the ball that is nearest, as a multiple of its radius; above 1 is outside of all.
    """
    radii = torch.from_numpy(nearest(y, y, k, skip_self=True).distances[:, -1])
    a, b = (torch.from_numpy(np.ascontiguousarray(rows, np.float32)) for rows in (x, y))
    parts = [(torch.cdist(block, b) / radii.clamp(min=1e-12)).min(1).values for block in torch.split(a, _BLOCK)]
    return torch.cat(parts).numpy()


def thumbnails(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pictures (B, 3, h, w) reduced to (B, 3 * 16 * 16), in steps of 8-bit pixels."""
    small = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(images).float(), THUMBNAIL)
    return small.flatten(1).numpy()
