"""Noise that depends on (seed, sample index, step) only: never on batch size, rank or resume point.

Equation: a Philox-4x64 counter generator with key (seed, stream) and counter (0, sample index, step, 0).
Every number is read from the raw 64-bit outputs, so the stream is fixed by the definition of Philox and not by a
library's choice of how to make floats. NumPy computes them, or integer arithmetic of torch: bit for bit the same, on
any device, for all samples at once.

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
DROPOUT = 8
JUDGE = 9
LATENT = 10

MAX_SEED = 2**63 - 1

_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)  # added to the key after each round
_ROUNDS = 10
_LOW = 2**32 - 1
_FEW = 64  # numbers a sample up to which integer arithmetic on the CPU is faster than NumPy, if there are many samples


def uniform(
    seed: int,
    indices: Tensor | NDArray[np.int64] | Iterable[int],
    step: int | range,
    shape: tuple[int, ...],
    *,
    stream: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Uniform noise for a batch of samples, one independent stream a sample.

    Args:
        seed: in [0, 2**63).
        indices: (B,) index of each sample in the whole run, each in [0, 2**63).
        step: which call of the run this is, 0 or more; or several that follow each other.
        shape: of one sample's noise.
        stream: keeps different uses of the same numbers apart.
        device: that computes the noise; its bits are the same on all.

    Returns:
        (B, *shape) float64 in [0, 1), on the device; (steps, B, *shape) of several steps.
    """
    device, count = torch.device(device), prod(shape)
    rows = _index_tensor(indices, device)
    if isinstance(step, range):
        steps = torch.arange(step.start, step.stop, device=device)
        bits = philox(seed, stream, rows.repeat(len(steps)), steps.repeat_interleave(len(rows)), count)
        return _to_floats(bits).reshape(len(steps), len(rows), *shape)
    few = count <= _FEW and len(rows) >= _FEW
    if device.type == "cpu" and not few:
        raw = np.empty((len(rows), count), dtype=np.uint64)
        for place, index in enumerate(rows.tolist()):
            raw[place] = _raw(seed, stream, index, step, count)
        noise = torch.from_numpy((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53)
    else:
        noise = _to_floats(philox(seed, stream, rows, step, count))
    return noise.reshape(len(rows), *shape)


def _to_floats(bits: Tensor) -> Tensor:
    """The high 53 bits of each number as a fraction of 1, float64."""
    return (bits >> 11 & 2**53 - 1).double() * 2.0**-53


def philox(seed: int, stream: int, indices: Tensor, step: int | Tensor, count: int) -> Tensor:
    """Raw outputs of the generator, by integer arithmetic on the device of the indices.

    Torch has no unsigned 64-bit arithmetic: int64 holds the bits, sums and products wrap, and shifts to the right are
    followed by a mask.

    Args:
        seed: first word of the key, in [0, 2**64).
        stream: second word of the key, in [0, 2**64).
        indices: (B,) int64.
        step: 0 or more; or (B,) int64.
        count: outputs a sample.

    Returns:
        (B, count) int64: the bits of unsigned numbers.
    """
    blocks = -(-count // 4)
    c0 = torch.arange(1, blocks + 1, device=indices.device)  # NumPy counts up, then draws
    c1 = indices[:, None]
    c2 = step[:, None] if isinstance(step, Tensor) else torch.full((1, 1), step, device=indices.device)
    c3 = torch.zeros_like(c2)
    keys: tuple[int, ...] = (seed, stream)
    for _ in range(_ROUNDS):
        (high_0, low_0), (high_1, low_1) = _multiply(c0, _MULTIPLIERS[0]), _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high_1 ^ c1 ^ _signed(keys[0]), low_1, high_0 ^ c3 ^ _signed(keys[1]), low_0
        keys = tuple((key + more) % 2**64 for key, more in zip(keys, _WEYL, strict=True))
    words = [word.expand(len(indices), blocks) for word in (c0, c1, c2, c3)]
    return torch.stack(words, dim=-1).flatten(1)[:, :count]


def _multiply(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low 64 bits of the 128-bit products of unsigned numbers, from products of their halves."""
    low, high = factor & _LOW, factor >> 32
    x_low, x_high = x & _LOW, x >> 32 & _LOW
    first = x_high * low + (x_low * low >> 32 & _LOW)  # below 2**64
    second = (first & _LOW) + x_low * high
    return x_high * high + (first >> 32 & _LOW) + (second >> 32 & _LOW), x * _signed(factor)


def _signed(word: int) -> int:
    """The int64 of the same bits."""
    return word - 2**64 if word >= 2**63 else word


def _index_tensor(indices: Tensor | NDArray[np.int64] | Iterable[int], device: torch.device) -> Tensor:
    if isinstance(indices, range):
        return torch.arange(indices.start, indices.stop, indices.step, device=device)
    if isinstance(indices, Tensor):
        return indices.to(device)
    rows = indices if isinstance(indices, np.ndarray) else list(indices)
    return torch.as_tensor(rows, dtype=torch.int64, device=device)


def _raw(seed: int, stream: int, index: int, step: int, count: int) -> NDArray[np.uint64]:
    key = np.array([seed, stream], dtype=np.uint64)
    counter = np.array([0, index, step, 0], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


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
