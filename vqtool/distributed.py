"""Which part of the work this process does, and what its machine has for it.

`accelerate launch` sets RANK and WORLD_SIZE; alone, a process does all.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vqtool.errors import VqtoolError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

T = TypeVar("T")

CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # bytes
_FSDP = "ACCELERATE_USE_FSDP"  # what `accelerate launch --use_fsdp` sets
LONGEST_WAIT = timedelta(days=7)  # for a slower process; if one dies, its launcher ends them all

_alone: ContextVar[bool] = ContextVar("alone", default=False)


def rank() -> int:
    """Number of this process, 0 being the main one."""
    return 0 if _alone.get() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes share the work."""
    return 1 if _alone.get() else int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def alone() -> Iterator[None]:
    """Work without the other processes while the block lasts: each is then its own main process and waits for none."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def splits_weights() -> bool:
    """Whether each process holds a part of a network that is trained: `accelerate launch --use_fsdp` asks for it."""
    return os.environ.get(_FSDP, "false").lower() in ("true", "1", "yes", "on") and world_size() > 1


@contextmanager
def without_fsdp() -> Iterator[None]:
    """Let accelerate not know that networks are split: it would do it itself, and refuses processes without GPUs."""
    asked = os.environ.pop(_FSDP, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[_FSDP] = asked


def is_main_process() -> bool:
    """Whether this process speaks and writes for all."""
    return rank() == 0


@dataclass(frozen=True)
class Part:
    """One of several parts of some work, whose workers know nothing of each other."""

    number: int  # 1 to num
    num: int

    def __str__(self) -> str:
        return f"{self.number}/{self.num}"

    def range(self, total: int) -> range:
        """Its contiguous part of `range(total)`; parts differ by at most one in length."""
        return range(total * (self.number - 1) // self.num, total * self.number // self.num)

    def of(self, inner: "Part") -> "Part":
        """An inner part of this one."""
        return Part((self.number - 1) * inner.num + inner.number, self.num * inner.num)


def parse_part(text: str) -> Part:
    """The part that "1/4" means: the first of four.

    Raises:
        VqtoolError: it means none.
    """
    match = re.fullmatch(r"\s*([0-9]{1,9})/([0-9]{1,9})\s*", text)
    number, num = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= num:
        raise VqtoolError(f"`partial` {text}: the number of the part and how many there are is expected, as in 1/4")
    return Part(number, num)


def own_part(partial: str | None = None) -> Part:
    """The part of this process, by what whoever started it has said.

    `partial`, or else the member of a SLURM array that this is; of that, the rank that `accelerate` or `torchrun` gave
    (RANK), or, without `partial`, the task of `srun` (SLURM_PROCID).

    Args:
        partial: such as "1/4".

    Raises:
        VqtoolError: it means no part, or the numbers of a SLURM array have gaps.
    """
    given = os.environ
    outer = parse_part(partial) if partial is not None else _part_of_array()
    if "RANK" in given:
        return outer.of(Part(rank() + 1, world_size()))
    if partial is None and "SLURM_STEP_NUM_TASKS" in given:  # of a step of srun: a batch script alone has none
        return outer.of(Part(int(given["SLURM_PROCID"]) + 1, int(given["SLURM_STEP_NUM_TASKS"])))
    return outer


def _part_of_array() -> Part:
    """The member of a SLURM array that this process is; outside of one, all of the work."""
    names = ("ID", "COUNT", "MIN", "MAX", "STEP")
    found = [os.environ.get(f"SLURM_ARRAY_TASK_{name}") for name in names]
    if found[0] is None:
        return Part(1, 1)
    number, num, first, last, step = (int(text or 0) for text in found)
    if step < 1 or (last - first) // step + 1 != num:
        raise VqtoolError(
            f"the SLURM array has {num} members from {first} to {last}, so that which part each does is not known: "
            "give `partial`, such as 3/8"
        )
    return Part((number - first) // step + 1, num)


def own_range(total: int) -> range:
    """The contiguous part of `range(total)` that this process does; parts differ by at most one in length."""
    return Part(rank() + 1, world_size()).range(total)


def own_share(items: Sequence[T]) -> Sequence[T]:
    """The contiguous part of `items` that this process does."""
    share = own_range(len(items))
    return items[share.start : share.stop]


def join_group() -> None:
    """Connect this process with the others, if there are any; to be called before anything else of accelerate.

    Accelerate on its own leaves several processes on a machine without a GPU unconnected unless it is told "cpu".
    """
    if world_size() > 1:
        from accelerate import PartialState

        PartialState(cpu=not has_gpu(), timeout=LONGEST_WAIT)


def has_gpu() -> bool:
    """Whether there is an accelerator that vqtool can use: Apple's have no float64, in which noise and kernels are."""
    import torch

    return torch.accelerator.is_available() and not torch.backends.mps.is_available()


def free_memory() -> int:
    """Bytes that are free, in this machine or in the container that the process is in."""
    import psutil

    limits = [path.read_text().strip() for path in map(Path, CONTAINER_LIMITS) if path.is_file()]
    return min([psutil.virtual_memory().available, *(int(limit) for limit in limits if limit.isdigit())])


def _rank_here() -> int:
    """Number of this process among those of its machine, which share the GPUs."""
    given = os.environ
    for name in ("LOCAL_RANK", "RANK", "SLURM_LOCALID"):
        if name in given:
            return int(given[name])
    return 0


def choose_device(name: str) -> str:
    """The device that a name means: "auto" is a CUDA GPU, each process's own under `accelerate`, or else the CPU.

    Raises:
        VqtoolError: it cannot be used here, or it is "mps".
    """
    import torch

    if name.partition(":")[0] == "mps":
        raise VqtoolError(f"`device` {name}: Apple's GPUs have no float64, in which noise and kernels are: use cpu")
    if name == "auto":
        if torch.cuda.is_available():
            return f"cuda:{_rank_here() % torch.cuda.device_count()}"
        return "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise VqtoolError(f"`device` {name}: cannot be used here: {str(error).splitlines()[0]}") from error
    return name


def to_device(tensor: "Tensor", device: "torch.device") -> "Tensor":
    """A tensor of the CPU on a device, without waiting for a GPU: from memory that it copies by itself."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def broadcast(value: T) -> T:
    """What the main process has for `value`."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    join_group()
    result: list[T] = broadcast_object_list([value])
    return result[0]


def gather_objects(value: T) -> list[T]:
    """What each process has for `value`, in the order of the processes."""
    if world_size() == 1:
        return [value]
    from accelerate.utils import gather_object

    join_group()
    result: list[T] = gather_object([value])
    return result


def gather(rows: "Tensor") -> "Tensor":
    """The rows of all processes, in the order of the processes; each has as many."""
    if world_size() == 1:
        return rows
    from accelerate.utils import gather as gather_rows

    result: Tensor = gather_rows(rows)
    return result


def total(tensor: "Tensor") -> "Tensor":
    """The sum of a tensor over all processes, in its place."""
    if world_size() > 1:
        import torch

        torch.distributed.all_reduce(tensor)
    return tensor


def of_main(tensor: "Tensor") -> "Tensor":
    """A tensor as the main process has it, in its place."""
    if world_size() > 1:
        import torch

        torch.distributed.broadcast(tensor, 0)
    return tensor


def wait_for_all() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        from accelerate import PartialState

        join_group()
        PartialState().wait_for_everyone()
