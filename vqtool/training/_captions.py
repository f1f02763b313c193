"""Captions of grids on disk as conditions: read and tokenised where a step looks at them."""

import hashlib
import json
from collections import OrderedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool.conditions import Conditioner
from vqtool.grids.stored import RUNS, StoredTexts


class StoredConditions:
    """Conditions (N, ...) of grids whose captions stay on disk."""

    def __init__(self, texts: StoredTexts, conditioner: Conditioner) -> None:
        """What there is.

        Args:
            texts: one a grid; several captions as by `captions.join_captions`.
            conditioner: of captions.
        """
        self._texts, self._conditioner = texts, conditioner
        self._runs: OrderedDict[int, tuple[NDArray[np.int64], Tensor]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits over what makes conditions of captions; the captions count in the files' digests."""
        result = hashlib.sha256(json.dumps(self._conditioner.config(), sort_keys=True).encode())
        for name, tensor in sorted(self._conditioner.tensors().items()):
            result.update(name.encode() + tensor.numpy().tobytes())
        return result.hexdigest()[:16]

    def chosen(self, indices: NDArray[np.int64]) -> "StoredConditions":
        """Those of some of the grids, by rising numbers."""
        return StoredConditions(self._texts.chosen(indices), self._conditioner)

    def take(self, indices: NDArray[np.int64], draws: NDArray[np.float64] | None = None) -> Tensor:
        """Conditions (n, ...) int64 of grids by their numbers, in any order.

        Args:
            indices: (n,) which.
            draws: (n,) in [0, 1), which of several captions each has; None: the first.

        Raises:
            VqtoolError: a file is damaged, gone, or another one.
        """
        found = self._conditioner.null(len(indices))
        runs = indices // self._texts.run
        for number in np.unique(runs).tolist():
            own = np.flatnonzero(runs == number)
            starts, rows = self._run(number)
            within = indices[own] - number * self._texts.run
            places = starts[within]
            if draws is not None:
                places = places + (draws[own] * (starts[within + 1] - places)).astype(np.int64)
            found[torch.from_numpy(own)] = rows[torch.from_numpy(places)].long()
        return found

    def all_of(self) -> tuple[Tensor, NDArray[np.int64]]:
        """Conditions (M, ...) of all captions, and (N + 1,) where those of each grid begin; for few grids."""
        starts, rows = zip(*(self._run(number) for number in range(-(-len(self) // self._texts.run))), strict=True)
        numbers = np.concatenate([np.diff(each) for each in starts])
        return torch.cat(rows).long(), np.concatenate([[0], numbers.cumsum()])

    def _run(self, number: int) -> tuple[NDArray[np.int64], Tensor]:
        """Of a run of neighbours, where the captions of each grid begin, and the conditions of all."""
        if number in self._runs:
            self._runs.move_to_end(number)
            return self._runs[number]
        texts = self._conditioner.select_all(None, self._texts.read_run(number)) or []
        starts = np.cumsum([0, *map(len, texts)])
        rows = self._conditioner.encode([text for own in texts for text in own]).int()
        self._runs[number] = starts, rows
        if len(self._runs) > 2 * RUNS:
            self._runs.popitem(last=False)
        return starts, rows
