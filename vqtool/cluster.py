"""Calls of a function as tasks of a Ray cluster: where they run, and what happens when a machine is lost, is Ray's."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from vqtool.errors import VqtoolError
from vqtool.extras import install_command

T = TypeVar("T")

IN_FLIGHT = 1000  # tasks that Ray knows of at a time
RETRIES = 10  # of a task whose process or machine was lost


def run_by_ray(function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> Iterator[T]:
    """What calls of a function return, as they end. It has to bear being called again where a process was lost.

    The cluster is that which this process is connected to, or else what `ray.init` finds: RAY_ADDRESS, one that runs on
    this machine, or a new one with its cores, which ends with the last call. A task takes one core, and a GPU if the
    cluster has any.

    Args:
        function: can be imported where tasks run.
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
        task = ray.remote(num_cpus=1, num_gpus=int(has_gpu), max_retries=RETRIES)(function)
        left, waiting = iter(calls), list[Any]()
        while True:
            waiting += [task.remote(*call) for _, call in zip(range(IN_FLIGHT - len(waiting)), left, strict=False)]
            if not waiting:
                return
            (done, *_), waiting = ray.wait(waiting, num_returns=1)
            yield ray.get(done)
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise VqtoolError(f"Ray: {' '.join(str(error).split())[:300]}") from error
    finally:
        if begun:
            ray.shutdown()


def _import() -> Any:
    # A task without a GPU leaves CUDA's variables alone.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise VqtoolError(f"`engine` ray needs Ray: {install_command('ray')}") from error
    return ray
