"""The order in which a run sees its items: a new permutation each epoch, from the seed alone.

Items on disk are read in runs of neighbours, and the order is then a permutation of them all, too: runs are shuffled,
and all items of RUNS runs that follow each other. So every item is seen once an epoch, a run is read once, and a few
megabytes are enough; an item meets those of its own run more often than others, which is why runs are short.
"""

from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vqtool import distributed, rng
from vqtool.grids.stored import RUNS

Indices = NDArray[np.int64]


class Order(Protocol):
    """Says which items a step sees."""

    def __call__(self, step: int, num_items: int, batch_size: int, seed: int) -> tuple[Indices, Indices]:
        """The items of a step and their numbers in the run: (B,) int64 each."""


def step_items(step: int, num_items: int, batch_size: int, seed: int, *, run: int = 0) -> tuple[Indices, Indices]:
    """The items of a step and their numbers in the run: (B,) int64 each.

    The run walks through a new permutation of the items each epoch; batches may straddle two epochs.

    Args:
        step: from 0 on.
        num_items: how many there are.
        batch_size: items a step.
        seed: of the run.
        run: how many neighbours are read together; 0 for items in memory.
    """
    samples = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs, places = np.divmod(samples, num_items)
    parts = []
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        own = places[epochs == epoch]
        parts.append(_stored_items(seed, epoch, num_items, run, own) if run else _order(seed, epoch, num_items)[own])
    return np.concatenate(parts), samples


def upcoming(sample: int, count: int, num_items: int, batch_size: int, seed: int) -> Indices:
    """The items (count,) that this process sees next after one of its samples, in the order of `step_items`."""
    own = distributed.own_range(batch_size)
    found, step = [], sample // batch_size
    while count > 0:
        indices, samples = (each[own.start : own.stop] for each in step_items(step, num_items, batch_size, seed))
        found.append(indices[samples > sample][:count])
        count, step = count - len(found[-1]), step + 1
    return np.concatenate(found)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, num_items: int) -> Indices:
    return rng.permutation(seed, epoch, num_items)


def _stored_items(seed: int, epoch: int, num_items: int, run: int, places: Indices) -> Indices:
    """The items at some places, which rise, of an epoch's order of items that are read in runs."""
    _, starts = _groups(seed, epoch, num_items, run)
    groups = np.searchsorted(starts, places, side="right") - 1
    return np.concatenate(
        [
            _group(seed, epoch, num_items, run, group)[places[groups == group] - starts[group]]
            for group in np.unique(groups).tolist()
        ]
    )


@lru_cache(maxsize=2)
def _groups(seed: int, epoch: int, num_items: int, run: int) -> tuple[Indices, Indices]:
    """The runs in their order, and at which place of the epoch each RUNS of them begin."""
    order = rng.permutation(seed, epoch, -(-num_items // run))
    sizes = np.minimum((order + 1) * run, num_items) - order * run
    return order, np.concatenate([[0], np.add.reduceat(sizes, np.arange(0, len(order), RUNS)).cumsum()[:-1]])


@lru_cache(maxsize=4)
def _group(seed: int, epoch: int, num_items: int, run: int, group: int) -> Indices:
    """The items of some runs, shuffled."""
    order, _ = _groups(seed, epoch, num_items, run)
    runs = order[group * RUNS : (group + 1) * RUNS]
    items = (runs[:, None] * run + np.arange(run)).flatten()
    items = items[items < num_items]
    mixing = rng.generator(seed, (epoch + 1 << 32) + group, stream=rng.ORDER)  # epochs stand below
    return mixing.permutation(items)
