"""How a machine draws: the same tokens for every batch size or as fast as it can, in which precision, how much at once.

On a CPU microbatches of one fixed size, filled up, cost nothing and keep every token the same for every batch size. On
a GPU they would cost much where few grids are drawn, so there a microbatch is as large as the batch and the memory ask,
unless `exact` is on; the tokens of a seed are then those of another batch size but for rounding.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch

from vqtool.denoisers._onnx import run_by_onnx
from vqtool.distributed import free_memory
from vqtool.errors import VqtoolError, warn
from vqtool.options import Checked, option
from vqtool.priors import Prior
from vqtool.products import compiled, computing, refuse_without_gpu
from vqtool.runtimes import try_to_run
from vqtool.samplers._tiles import Size, TileOptions, Tiling

CPU_CELLS = 256  # in a microbatch: with 512 a grid of many is 3 to 12 % faster, and one alone takes twice as long
GPU_CELLS = 16384  # in one of fixed size
MOST_GPU_CELLS = 1 << 17  # in one of any size
SHARE_OF_MEMORY = 0.25  # of what is free, that a microbatch may take
LOGIT_BYTES = 24  # a logit of a call: log-probabilities, with guidance, sorted
ACTIVATIONS = 24  # floats a cell and unit of width that a layer of a denoiser holds at once


@dataclass(frozen=True, kw_only=True)
class MachineOptions(Checked):
    """How the machine draws."""

    exact: bool | None = option(
        None, "The same tokens for every batch size, to the bit.", shown="on a CPU", advanced=True
    )
    precision: str = option(
        "auto",
        "Of the network; auto: bf16 on a GPU, but fp32 if exact.",
        choices=("auto", "fp32", "tf32", "bf16"),
        advanced=True,
    )
    compile: bool = option(False, "Compile the network, for GPUs: minutes at first, for many grids.", advanced=True)
    runtime: str = option(
        "torch",
        "What runs networks on a CPU; auto: ONNX Runtime, if there.",
        choices="runtimes.py:RUNTIMES",
        advanced=True,
    )
    threads: str = option(
        "all",
        "Of PyTorch on a CPU; auto: one fewer where two calls are faster so.",
        choices=("all", "auto"),
        advanced=True,
    )


@dataclass(frozen=True)
class Machine:
    """What `MachineOptions` come to on a device."""

    exact: bool = True
    precision: str = "fp32"  # of the network, one of `products.PRECISIONS`, but never auto
    compile: bool = False
    runtime: str = "torch"
    threads: int | None = None  # that were chosen, of PyTorch

    @classmethod
    def choose(cls, options: MachineOptions, device: torch.device) -> "Machine":
        """What options come to.

        Raises:
            VqtoolError: something for GPUs without one.
        """
        on_cpu = device.type == "cpu"
        refuse_without_gpu(options.precision, device, compile=options.compile)
        exact = on_cpu if options.exact is None else options.exact
        usual = "fp32" if on_cpu or exact else "bf16"
        return cls(exact, usual if options.precision == "auto" else options.precision, options.compile)

    @property
    def record(self) -> dict[str, Any]:
        """What stands in a history: nothing, if every machine draws the same but for rounding of its own."""
        usual = self.exact and self.precision == "fp32"
        precision = {} if usual else {"exact": self.exact, "precision": self.precision}
        precision |= {"compile": True} if self.compile else {}
        threads = {} if self.threads is None else {"threads": self.threads}
        return precision | threads | ({} if self.runtime == "torch" else {"runtime": self.runtime})

    def autocast(self, device: torch.device) -> AbstractContextManager[None]:
        """Where the network computes; probabilities are made of its logits in float32 in any case."""
        return computing(device, self.precision)

    def prepare(self, prior: Prior) -> Prior:
        """The same prior, whose network is compiled if that is asked for; the one given stays as it is."""
        return replace(prior, denoiser=compiled(prior.denoiser)) if self.compile else prior

    def max_cells(self, prior: Prior) -> int:
        """Cells in a microbatch."""
        if prior.device.type == "cpu":
            return CPU_CELLS
        if self.exact:
            return GPU_CELLS
        room = int(find_free_memory(prior.device) * SHARE_OF_MEMORY) // call_bytes(prior)
        return min(max(room, 1), MOST_GPU_CELLS)


EXACT = Machine()


def use_runtime(prior: Prior, runtime: str) -> tuple[Prior, str]:
    """The same prior with its denoiser run as asked, and what runs it, "torch" or "onnx".

    Args:
        prior: on the device to use.
        runtime: one of `runtimes.RUNTIMES`.

    Raises:
        VqtoolError: as `runtimes.choose`; or the denoiser cannot be exported, and `runtime` is onnx.
    """

    def by_onnx() -> Prior:
        example = prior.encode_condition(None, 1)
        return replace(prior, denoiser=run_by_onnx(prior.denoiser, example, f"the denoiser {prior.denoiser_name}"))

    return try_to_run(runtime, prior.device, prior, by_onnx)


@torch.no_grad()
def choose_threads(prior: Prior, tiling: Tiling, clock: Callable[[], float] = time.perf_counter) -> int:
    """Let PyTorch compute with all its threads or one fewer, as two short calls are faster, and say with how many.

    Its threads wait for each other after every operation: beside other work that has one core, all wait for that core.
    The number changes how results are rounded, and so a token now and then: hence only where it is asked for.

    Args:
        prior: on the CPU.
        tiling: of its grids.
        clock: seconds.
    """
    most, num = torch.get_num_threads(), min(tiling.at_once, tiling.microbatch * len(tiling))
    if most == 1:
        return most
    x_t = torch.arange(num * prod(tiling.size)).remainder(prior.kernel.codebook_size).view(num, *tiling.size)
    times, condition = torch.ones(num, dtype=torch.int64), prior.encode_condition(None, num)
    seconds = dict[int, float]()
    for threads in (most, most - 1):
        torch.set_num_threads(threads)
        for _ in range(2):  # the first warms up
            start = clock()
            prior.log_x0(x_t, times, condition)
            seconds[threads] = clock() - start
    chosen = min(seconds, key=lambda threads: seconds[threads])
    torch.set_num_threads(chosen)
    return chosen


def find_free_memory(device: torch.device) -> int:
    """Bytes that are free where a prior is."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return free_memory()
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


def call_bytes(prior: Prior) -> int:
    """Bytes that a call of the denoiser takes for a cell: logits, and activations of a layer."""
    width = int(getattr(prior.denoiser.config, "width", 0))
    return prior.kernel.codebook_size * LOGIT_BYTES + width * 4 * ACTIVATIONS


def build_tiling(
    prior: Prior,
    grid_size: Size,
    *,
    overlap: int | None = None,
    grid_mode: str = "tiles",
    machine: Machine = EXACT,
) -> Tiling:
    """The tiles in which grids pass a prior's denoiser.

    Args:
        prior: on the device to use.
        grid_size: (H, W) cells.
        overlap: how many cells neighbouring tiles share at least; None for half a tile.
        grid_mode: "tiles" of the training grid, or "stretch": one tile, over which the denoiser spreads its positions.
        machine: says how many pass it together.

    Raises:
        VqtoolError: an unknown mode, or one that is not for this prior, grid or overlap.
    """
    cells = machine.max_cells(prior)
    TileOptions(overlap=overlap, grid_mode=grid_mode)
    if grid_size == prior.cells and (overlap is not None or grid_mode != "tiles"):
        option = "overlap" if overlap is not None else "grid_mode"
        raise VqtoolError(f"`{option}` is about grids larger than those of training: make larger ones, or leave it out")
    if grid_mode == "tiles":
        return Tiling(grid_size, prior.cells, overlap, max_cells=cells)
    if overlap is not None:
        raise VqtoolError("`overlap` is about tiles, and `grid_mode` stretch has none: leave one out")
    if not prior.denoiser.stretches:
        raise VqtoolError(
            f"`grid_mode` stretch: this prior's denoiser, {prior.denoiser_name}, knows the positions of its training "
            "grid only: use tiles"
        )
    return Tiling(grid_size, grid_size, None, max_cells=cells)


def halve(tiling: Tiling, num: int, *, exact: bool) -> Tiling:
    """For half as many of `num` samples at once, where memory ran out.

    Raises:
        VqtoolError: one alone is too much, or it must be as many as it is.
    """
    at_once = min(tiling.at_once, num * len(tiling))
    if exact or at_once == 1:
        remedy = "turn `exact` off" if exact else "make smaller grids"
        raise VqtoolError(f"out of memory with {at_once} grids or tiles in the network at once: {remedy}")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    warn(f"out of memory with {at_once} grids or tiles in the network at once: going on with {at_once // 2}")
    return tiling.limited(at_once // 2)
