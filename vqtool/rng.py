"""Noise that depends on (seed, sample index, step) only: never on batch size, rank or resume point.

Equation: a Philox-4x64 counter generator with key (seed, stream) and counter (0, sample index, step, 0).
Every number is read from the raw 64-bit outputs, so the stream is fixed by the definition of Philox and not by a
library's choice of how to make floats.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool.errors import VqtoolError

# Streams keep uses apart that share a seed, an index and a step.
TRAINING = 1
SAMPLING = 2
ORDER = 3
SELECTION = 4
LIKELIHOOD = 5
MASK = 6
CAPTION = 7

MAX_SEED = 2**63 - 1


def _raw(seed: int, stream: int, index: int, step: int, count: int) -> NDArray[np.uint64]:
    key = np.array([seed, stream], dtype=np.uint64)
    counter = np.array([0, index, step, 0], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def uniform(
    seed: int, indices: Tensor | Iterable[int], step: int, shape: tuple[int, ...], *, stream: int = 0
) -> Tensor:
    """Uniform noise for a batch of samples, one independent stream a sample.

    Args:
        seed: in [0, 2**63).
        indices: (B,) index of each sample in the whole run, each in [0, 2**63).
        step: which call of the run this is, 0 or more.
        shape: of one sample's noise.
        stream: keeps different uses of the same numbers apart.

    Returns:
        (B, *shape) float64 in [0, 1), on the CPU.
    """
    count = prod(shape)
    rows = [_raw(seed, stream, int(index), step, count) for index in indices]
    raw = np.stack(rows) if rows else np.empty((0, count), dtype=np.uint64)
    return torch.from_numpy((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53).reshape(len(rows), *shape)


def generator(seed: int, step: int, *, stream: int = 0) -> np.random.Generator:
    """A NumPy generator for choices that are made once a run or once a step (subsets, permutations)."""
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], np.uint64), counter=[0, 0, step, 1]))


def check_seed(seed: Any) -> None:
    """Raise VqtoolError unless this is a seed, a whole number from 0 to MAX_SEED."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise VqtoolError(f"`seed` {seed}: a whole number from 0 to 2**63 - 1 is expected")


def permutation(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The order in which epoch `epoch` visits n items: (n,) int64."""
    return generator(seed, epoch, stream=ORDER).permutation(n)
