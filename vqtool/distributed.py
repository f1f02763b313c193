"""Which part of the work this process does. `accelerate launch` sets RANK and WORLD_SIZE; alone, a process does all."""

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def rank() -> int:
    """Number of this process, 0 being the main one."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes share the work."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process speaks and writes for all."""
    return rank() == 0


def own_range(total: int) -> range:
    """The contiguous part of `range(total)` that this process does; parts differ by at most one in length."""
    return range(total * rank() // world_size(), total * (rank() + 1) // world_size())


def own_share(items: Sequence[T]) -> Sequence[T]:
    """The contiguous part of `items` that this process does."""
    share = own_range(len(items))
    return items[share.start : share.stop]
