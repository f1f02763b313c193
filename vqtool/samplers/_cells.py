"""Cells of grids: the values at some, other values there, and which of them come first."""

import torch
from torch import Tensor


def pick(grid: Tensor, cells: Tensor) -> Tensor:
    """The values of a grid (B, H, W) at cells (B, n): (B, n)."""
    return grid.flatten(1).gather(1, cells)


def put(grid: Tensor, cells: Tensor, values: Tensor) -> Tensor:
    """A grid (B, H, W) with other values (B, n) at cells (B, n)."""
    return grid.flatten(1).scatter(1, cells, values).view_as(grid)


def place_first(wanted: Tensor) -> Tensor:
    """The cells of each sample, (B, H * W) int64: first those that are wanted (B, H, W), then the others."""
    return wanted.flatten(1).to(torch.uint8).argsort(dim=1, descending=True, stable=True)
