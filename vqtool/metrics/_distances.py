"""Distances between the rows of two feature sets, a tile at a time, in float32 where that decides and in float64 else.

A squared distance by |x|^2 + |y|^2 - 2 x.y in float32 takes half the time of one in float64 and is off by `error_bound`
at most. Comparisons that this leaves open, some in a million, are made again by sums of squared differences in float64.
Where a tile leaves many open, as where rows repeat, it is computed in float64; what is then still open is a tie.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TILE_ROWS = 1024
MOST_OPEN = 1 << 14  # pairs of a tile that are computed one by one; more are faster in a matrix product
PAIR_BYTES = 8 << 20  # of differences held at once
SPARE = 8  # neighbours kept beside the k-th
ROUNDING = {np.float32: 2.0**-24, np.float64: 2.0**-53}
TIE = 1e-12  # distances that differ by this share are equal

Slices = tuple[slice, slice]


@dataclass(frozen=True)
class Rows:
    """Rows (N, D) less a common centre: shorter vectors have smaller rounding errors."""

    values: NDArray[np.floating]  # (N, D), as given
    centre: NDArray[np.float64]  # (D,)
    squares: NDArray[np.float64]  # (N,) squared lengths about the centre

    @classmethod
    def about(cls, values: NDArray[np.floating], centre: NDArray[np.float64]) -> "Rows":
        """Rows about a centre of numbers that float32 has."""
        squares = np.empty(len(values))
        for start in range(0, len(values), TILE_ROWS):
            part = slice(start, start + TILE_ROWS)
            squares[part] = ((values[part] - centre) ** 2).sum(axis=1)
        return cls(values, centre, squares)

    def __len__(self) -> int:
        return len(self.values)

    def part(self, rows: slice, kind: type[np.floating]) -> Tensor:
        """Some rows about the centre, in float32 or float64."""
        if self.values.dtype == np.float32 and kind is np.float32:
            return torch.from_numpy(self.values[rows] - self.centre.astype(np.float32))
        return torch.from_numpy((self.values[rows] - self.centre).astype(kind))

    def tiles(self) -> Iterator[slice]:
        """The rows in parts of a tile."""
        for start in range(0, len(self), TILE_ROWS):
            yield slice(start, min(start + TILE_ROWS, len(self)))


def error_bound(x: Rows, y: Rows, kind: type[np.floating]) -> float:
    """How far a squared distance of a tile may be off: of the sum of D products and of the terms' own rounding."""
    return float(ROUNDING[kind] * (2 * x.values.shape[1] ** 0.5 + 8) * (x.squares.max() + y.squares.max()))


def tile(x: Rows, y: Rows, part: Slices, kind: type[np.floating]) -> NDArray[np.floating]:
    """Squared distances (n, m) of some rows of x and of y, computed in float32 or float64."""
    squared: NDArray[np.floating] = (x.part(part[0], kind) @ y.part(part[1], kind).T).numpy()
    squared *= -2
    squared += x.squares[part[0], None].astype(kind)
    squared += y.squares[part[1]].astype(kind)
    return squared


def pairs(x: Rows, y: Rows, i: NDArray[np.integer], j: NDArray[np.integer]) -> NDArray[np.float64]:
    """Squared distances of rows i of x and j of y, one by one, in float64."""
    found = np.empty(len(i))
    step = max(1, PAIR_BYTES // (8 * x.values.shape[1]))
    for start in range(0, len(i), step):
        part = slice(start, start + step)
        found[part] = ((x.values[i[part]].astype(np.float64) - y.values[j[part]]) ** 2).sum(axis=1)
    return found


def inside(
    x: Rows,
    y: Rows,
    part: Slices,
    radii: NDArray[np.float64],
    squared: NDArray[np.floating],
    *,
    closed: bool,
) -> NDArray[np.bool_]:
    """Which squared distances of a tile lie below radii that broadcast to it, decided as in float64.

    Args:
        x: the rows of the tile.
        y: its columns.
        part: which of them.
        radii: squared, (n, 1) or (1, m).
        squared: the tile in float32 or float64.
        closed: whether a distance equal to a radius counts.
    """
    kind = np.float64 if squared.dtype == np.float64 else np.float32
    error = error_bound(x, y, kind)
    found: NDArray[np.bool_] = squared < (radii - error).astype(kind)
    i, j = np.nonzero((squared < (radii + error).astype(kind)) & ~found)
    if len(i) <= MOST_OPEN:
        exact = pairs(x, y, i + part[0].start, j + part[1].start)
        limit = np.broadcast_to(radii, squared.shape)[i, j]
        found[i, j] = exact <= limit * (1 + TIE) if closed else exact < limit * (1 - TIE)
    elif kind is np.float32:
        return inside(x, y, part, radii, tile(x, y, part, np.float64), closed=closed)
    else:
        found[i, j] = closed
    return found


def squared_radii(x: Rows, ks: tuple[int, ...]) -> NDArray[np.float64]:
    """(N, len(ks)) squared distances of each row to its k-th nearest other row."""
    kept = min(max(ks) + SPARE, len(x) - 1)
    near = np.full((len(x), kept), np.inf, np.float32)
    which = np.zeros((len(x), kept), np.int64)
    parts = list(x.tiles())
    for number, rows in enumerate(parts):
        for columns in parts[number:]:
            squared = tile(x, x, (rows, columns), np.float32)
            if rows == columns:
                np.fill_diagonal(squared, np.inf)
            else:
                _keep(near[columns], which[columns], squared.T, rows.start)
            _keep(near[rows], which[rows], squared, columns.start)
    return np.stack([_settle(x, near, which, k) for k in ks], axis=1)


def _keep(near: NDArray[np.float32], which: NDArray[np.int64], squared: NDArray[np.floating], start: int) -> None:
    """Put the least of a tile's columns among the nearest that are known, in place."""
    rows, kept = near.shape
    squared = np.ascontiguousarray(squared)
    least = min(kept, squared.shape[1])
    limit = np.minimum(np.partition(squared, least - 1, axis=1)[:, least - 1], near[:, -1])
    i, j = np.nonzero(squared <= limit[:, None])
    order = np.lexsort((squared[i, j], i))
    i, j = i[order], j[order]
    place = np.arange(len(i)) - np.searchsorted(i, i)  # in its row
    i, j, place = i[place < least], j[place < least], place[place < least]
    values, indices = np.full((rows, kept + least), np.inf, np.float32), np.zeros((rows, kept + least), np.int64)
    values[:, :kept], indices[:, :kept] = near, which
    values[i, kept + place], indices[i, kept + place] = squared[i, j], j + start
    order = np.argsort(values, axis=1)[:, :kept]
    near[:], which[:] = np.take_along_axis(values, order, axis=1), np.take_along_axis(indices, order, axis=1)


def _settle(x: Rows, near: NDArray[np.float32], which: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """(N,) the exact distance to the k-th nearest, of candidates (N, kept) sorted by their distances in float32."""
    error = 2 * error_bound(x, x, np.float32)
    middle = near[:, k - 1].astype(np.float64)[:, None]
    below = (near < middle - error).sum(axis=1)  # nearer than the k-th for sure
    open_ = (near >= middle - error) & (near <= middle + error)
    radii = np.empty(len(x))
    full = open_[:, -1] & (near.shape[1] < len(x) - 1)  # others may be as near: all of the row is looked at
    i, column = np.nonzero(open_ & ~full[:, None])
    exact = np.full(near.shape, np.inf)
    exact[i, column] = pairs(x, x, i, which[i, column])
    settled = np.sort(exact, axis=1)
    rest = np.flatnonzero(~full)
    radii[rest] = settled[rest, k - 1 - below[rest]]
    for start in range(0, int(full.sum()), TILE_ROWS):
        rows = np.flatnonzero(full)[start : start + TILE_ROWS]
        some = Rows(x.values[rows], x.centre, x.squares[rows])
        squared = tile(some, x, (slice(0, len(rows)), slice(0, len(x))), np.float64)
        squared[np.arange(len(rows)), rows] = -np.inf  # the row itself is its 0-th neighbour, whatever rounding says
        radii[rows] = pairs(x, x, rows, np.argpartition(squared, k, axis=1)[:, k])
    return radii
