"""What is learnt from, as arrays: token grids with their conditions, and digests of images."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool import rng
from vqtool.conditions import Conditioner
from vqtool.grids import GridBatch
from vqtool.priors import GridSpec
from vqtool.training.loop import Indices

HELD_OUT_SHARE = 0.03
MAX_HELD_OUT = 128
MIN_GRIDS_TO_HOLD_OUT = 200


def digest(array: NDArray[np.uint8]) -> str:
    """16 hexadecimal digits over the shape and content of an array."""
    result = hashlib.sha256(str(array.shape).encode())
    for start in range(0, len(array), 4096):
        result.update(np.ascontiguousarray(array[start : start + 4096]).data)
    return result.hexdigest()[:16]


@dataclass(frozen=True)
class GridData:
    """The grids to learn from, with their conditions."""

    tokens: NDArray[np.integer[Any]]  # (N, H, W)
    conditions: Tensor  # (N, ...) int64
    grid_spec: GridSpec

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Grids (b, H, W) int64 and conditions (b, ...) of some of them."""
        return torch.from_numpy(self.tokens[indices].astype(np.int64)), self.conditions[torch.from_numpy(indices)]

    def split(self, seed: int) -> tuple["GridData", "GridData | None"]:
        """Those to train on, and a few held out where there are enough."""
        if len(self) < MIN_GRIDS_TO_HOLD_OUT:
            return self, None
        order = rng.generator(seed, 0, stream=rng.SELECTION).permutation(len(self))
        count = min(MAX_HELD_OUT, int(HELD_OUT_SHARE * len(self)))
        return self._take(np.sort(order[count:])), self._take(np.sort(order[:count]))

    def _take(self, indices: Indices) -> "GridData":
        return replace(self, tokens=self.tokens[indices], conditions=self.conditions[torch.from_numpy(indices)])

    def digest(self) -> str:
        """16 hexadecimal digits over grids and conditions."""
        result = hashlib.sha256(json.dumps([self.tokens.shape, self.conditions.shape]).encode())
        result.update(np.ascontiguousarray(self.tokens, np.int64).data)
        result.update(self.conditions.numpy().data)
        return result.hexdigest()[:16]


def build_data(batch: GridBatch, conditioner: Conditioner, grid_spec: GridSpec) -> GridData:
    """The grids of a file with the conditions that their labels or captions stand for."""
    texts = conditioner.select(batch.labels, batch.captions) or [None] * len(batch)
    return GridData(batch.tokens, conditioner.encode(texts), grid_spec)
