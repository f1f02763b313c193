"""Calls of a function as tasks of a Ray cluster: where they run, and what happens when a machine is lost, is Ray's.

`encode_shards`, `sample_shards` and `save_statistics` give it a function and the shards or parts. Tasks are told in
which folder the command was given, so that relative names are the same there, and tell what they would have told here.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from vqtool.distributed import alone
from vqtool.errors import VqtoolError, VqtoolWarning, warn
from vqtool.extras import install_command
from vqtool.tally import Tally

T = TypeVar("T")

IN_FLIGHT = 1000  # tasks that Ray knows of at a time
RETRIES = 10  # of a task whose process or machine was lost


@dataclass(frozen=True)
class Ended(Generic[T]):
    """What became of a call."""

    number: int  # of the call
    value: T | None = None  # what it returned
    error: VqtoolError | None = None  # or else why it did not
    tally: Tally = field(default_factory=Tally)  # of the images that a task has read
    warnings: tuple[str, ...] = ()  # that a task gave


def run_by_ray(function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> Iterator[Ended[T]]:
    """What becomes of calls of a function, as they end. It has to bear being called again where a process was lost.

    The cluster is that which this process is connected to, or else what `ray.init` finds: RAY_ADDRESS, one that runs on
    this machine, or a new one with its cores, which ends with the last call. A task takes one core, and a GPU if the
    cluster has any.

    Args:
        function: takes `on_error`, too; is sent to each machine once.
        calls: its arguments.

    Raises:
        VqtoolError: Ray is not installed, cannot be reached, or lost a task again and again.
    """
    ray = _import()
    begun = not ray.is_initialized()
    try:
        if begun:
            ray.init(log_to_driver=False)
        has_gpu = ray.cluster_resources().get("GPU", 0) > 0
        task = ray.remote(num_cpus=1, num_gpus=int(has_gpu), max_retries=RETRIES)(_task)
        sent, folder = ray.put(function), os.getcwd()
        left, waiting = iter(enumerate(calls)), list[Any]()
        while True:
            free = range(IN_FLIGHT - len(waiting))
            waiting += [task.remote(sent, *each, folder) for _, each in zip(free, left, strict=False)]
            if not waiting:
                return
            (done, *_), waiting = ray.wait(waiting, num_returns=1)
            ended: Ended[T] = ray.get(done)
            for text in ended.warnings:
                warn(text)
            yield ended
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise VqtoolError(f"Ray: {' '.join(str(error).split())[:300]}") from error
    finally:
        if begun:
            ray.shutdown()


def call_here(function: Callable[..., T], number: int, arguments: tuple[Any, ...], on_error: Any) -> Ended[T]:
    """What becomes of a call in this process."""
    try:
        return Ended(number, function(*arguments, on_error=on_error))
    except VqtoolError as error:
        return Ended(number, error=error)


def _task(function: Callable[..., T], number: int, arguments: tuple[Any, ...], folder: str) -> Ended[T]:
    """A call on any machine of a cluster."""
    if os.path.isdir(folder):  # of the driver: relative names are the same here
        os.chdir(folder)
    tally = Tally()
    with alone(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        ended = call_here(function, number, arguments, tally)
    tally.settle()
    told = tuple(str(each.message) for each in caught if issubclass(each.category, VqtoolWarning))
    return Ended(number, ended.value, ended.error, tally, told)


def _import() -> Any:
    # A task without a GPU leaves CUDA's variables alone.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise VqtoolError(f"`engine` ray needs Ray: {install_command('ray')}") from error
    return ray
