"""From vectors to tokens: `nearest` is how most tokenizers look one up; `highest` is below it.

Cost: N K D multiply-adds for N vectors and K codes of D numbers, in blocks of bounded memory.
"""

import torch
from torch import Tensor

DISTANCE_BYTES = 1 << 28  # largest block of distances that is held at once


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The nearest code of each vector in Euclidean distance; the first of equals.

    Args:
        vectors: (N, D).
        codebook: (K, D).

    Returns:
        (N,) int64 tokens. Holds at most `DISTANCE_BYTES` of distances at once.
    """
    return highest(vectors, codebook, -codebook.square().sum(1) / 2)  # |z - c|^2 = |z|^2 - 2 (z c - |c|^2 / 2)


def highest(vectors: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The row of a linear map with the highest value for each vector; the first of equals.

    Args:
        vectors: (N, D).
        weight: (K, D).
        bias: (K,).

    Returns:
        (N,) int64 in [0, K). Holds at most `DISTANCE_BYTES` of values at once.
    """
    budget = max(1, DISTANCE_BYTES // weight.element_size())
    columns = min(budget, len(weight))
    parts = torch.split(vectors, budget // columns)
    if columns == len(weight):
        found = [torch.addmm(bias, part, weight.T).argmax(1) for part in parts]
    else:
        found = [_highest_by_blocks(part, weight, bias, columns) for part in parts]
    return torch.cat(found or [torch.empty(0, dtype=torch.int64, device=vectors.device)])


def _highest_by_blocks(vectors: Tensor, weight: Tensor, bias: Tensor, columns: int) -> Tensor:
    tokens = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
    values = torch.full_like(vectors[:, 0], -torch.inf)
    for begin in range(0, len(weight), columns):
        end = begin + columns
        best, row = torch.addmm(bias[begin:end], vectors, weight[begin:end].T).max(1)
        tokens = torch.where(best > values, row + begin, tokens)
        values = torch.maximum(best, values)
    return tokens
