"""The order in which a run sees its items: a new permutation each epoch, from the seed alone."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vqtool import rng


def step_items(step: int, num_items: int, batch_size: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The items of a step and their numbers in the run: (B,) int64 each.

    The run walks through a new permutation of the items each epoch; batches may straddle two epochs.
    """
    samples = np.arange(step * batch_size, (step + 1) * batch_size, dtype=np.int64)
    epochs, places = np.divmod(samples, num_items)
    orders = [_order(seed, epoch, num_items) for epoch in range(epochs[0], epochs[-1] + 1)]
    return np.concatenate([order[places[epochs == epoch]] for epoch, order in enumerate(orders, epochs[0])]), samples


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, num_items: int) -> NDArray[np.int64]:
    return rng.permutation(seed, epoch, num_items)
