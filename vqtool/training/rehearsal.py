"""What a run would take: memory a process and steps an hour, without the network's weights and without a step of it.

A step is traced on torch's device "meta", whose tensors have shapes and no numbers: it tells what is kept for the
gradient and how many operations there are. The pace is that of a network of the same kind with two layers, which takes
a few steps here; that of the whole one follows by its operations. The exchange between machines is not counted.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vqtool import denoisers, distributed
from vqtool.errors import count_text
from vqtool.priors import Prior
from vqtool.progress import Notify
from vqtool.training._weights import checkpoint_blocks
from vqtool.training.clock import LoopConfig, Moment
from vqtool.training.data import GridData
from vqtool.training.loop import measure_step_seconds
from vqtool.training.objectives import PriorLoss, PriorObjective

META = torch.device("meta")
WEIGHTS = 8  # bytes a parameter: itself and its average, float32
LEARNED = 12  # more of one that learns: two moments and a gradient
FEW_LAYERS = 2  # of the network whose pace is measured
FEW_CELLS = 1024  # of grids that it is given at once on a CPU
PROCESSES = (8, 64)  # over which FSDP is shown where there is one process
_GB = 1e9


@dataclass(frozen=True)
class Traced:
    """What a step of one process with so many grids takes."""

    kept: int  # bytes for the gradient, in float32
    operations: int  # floating-point, forwards and backwards


class _Kept:
    """Counts the bytes that autograd keeps, in blocks and elsewhere, each tensor once."""

    def __init__(self, network: nn.Module, cells: int) -> None:
        self._cells = cells
        self._seen = {parameter.untyped_storage()._cdata: None for parameter in network.parameters()}
        self._alive: list[Tensor] = []  # so that no storage takes the place of another
        self.inside = self.outside = self.inputs = 0
        self.num_blocks, self._is_inside = 0, False
        for block in getattr(network, "blocks", ()):
            block.register_forward_pre_hook(self._enter)
            block.register_forward_hook(self._leave)

    def _enter(self, block: nn.Module, given: tuple[Tensor, ...]) -> None:
        self._is_inside = True
        self.num_blocks += 1
        self.inputs += given[0].nbytes

    def _leave(self, *_: object) -> None:
        self._is_inside = False

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor; matrices of attention are none that a GPU keeps."""
        place, is_matrix = tensor.untyped_storage()._cdata, tensor.shape[-2:] == (self._cells, self._cells)
        if place in self._seen or is_matrix:
            return tensor
        self._seen[place] = None
        self._alive.append(tensor)
        size = tensor.untyped_storage().nbytes()
        self.inside += size * self._is_inside
        self.outside += size * (not self._is_inside)
        return tensor

    def total(self, *, checkpoint: bool) -> int:
        """Bytes; with blocks that are computed again only their inputs, and what one of them keeps."""
        if not checkpoint:
            return self.inside + self.outside
        return self.outside + self.inputs + self.inside // max(1, self.num_blocks)


def trace(prior: Prior, loss: PriorLoss, run: LoopConfig, num: int) -> Traced:
    """A step of a prior's network with `num` grids, on the device "meta"."""
    with META:
        network = denoisers.build(prior.denoiser_name, asdict(prior.denoiser.config)).train()

    def step() -> Tensor:
        objective = PriorObjective(prior, _blank(prior, num), loss, replace(run, batch_size=num))
        return objective(network, np.arange(num), np.arange(num), Moment(0, 0.0, 1.0))[0]

    kept = _Kept(network, math.prod(prior.cells))
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        step()
    size = kept.total(checkpoint=run.checkpoint)
    if run.checkpoint:
        checkpoint_blocks(network)
    with FlopCounterMode(display=False) as counter:
        step().backward()  # type: ignore[no-untyped-call]
    return Traced(size, counter.get_total_flops())


class _Told(Prior):
    """A prior whose text encoder has read all captions before the first step."""

    def read_texts(self, condition: Tensor, *, together: bool = False) -> Tensor:
        """(B, L, D) ones."""
        config = self.denoiser.config
        return torch.ones(len(condition), config.text_length, config.text_width, device=condition.device)


def _blank(prior: Prior, num: int) -> GridData:
    """Grids without pictures."""
    return GridData(np.zeros((num, *prior.cells), np.int64), prior.conditioner.null(num), prior.grid_spec)


def _few_layers(prior: Prior) -> Prior:
    """A fresh prior of the same kind and width with few layers, or with all if its config does not say how many."""
    config: Mapping[str, Any] = asdict(prior.denoiser.config)
    if "num_layers" in config:
        config = {**config, "num_layers": min(FEW_LAYERS, config["num_layers"])}
    with torch.random.fork_rng(devices=[]):
        return replace(prior, denoiser=denoisers.build(prior.denoiser_name, config))


def rehearse(prior: Prior, loss: PriorLoss, run: LoopConfig, *, keep_best: bool, notify: Notify) -> None:
    """Say what a run would take.

    Args:
        prior: whose denoiser need have no weights.
        loss: what is minimised.
        run: how it goes.
        keep_best: whether the best weights are kept beside the last.
        notify: is told, line by line.

    Raises:
        VqtoolError: blocks are to be computed again, and the network has none.
    """
    if prior.text_encoder is not None:
        prior = _Told(**{each.name: getattr(prior, each.name) for each in fields(prior)})
    world = distributed.world_size()
    num = max(1, run.batch_size // (world * run.accumulate))
    traced = trace(prior, loss, run, num)
    parameters = list(prior.denoiser.parameters())
    total = sum(parameter.numel() for parameter in parameters)
    learned = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    state = total * (WEIGHTS + 4 * keep_best) + learned * LEARNED
    parts = f", {run.accumulate} parts of {num} each" if run.accumulate > 1 else f", {num} each"
    notify(f"a step: {count_text(run.batch_size, 'grid')}, by {world} process{'es' if world > 1 else ''}{parts}")
    notify(
        f"memory a process: {state / _GB:.3g} GB of weights, averages, moments and gradients, and at most "
        f"{traced.kept / _GB:.3g} GB for the gradient (float32; about half in bfloat16)"
    )
    blocks = getattr(prior.denoiser, "blocks", None)
    if isinstance(blocks, nn.ModuleList):
        whole = 2 * max(sum(4 * parameter.numel() for parameter in block.parameters()) for block in blocks)
        shares = [
            f"{(state / over + whole) / _GB:.3g} GB over {over}" for over in ([world] if world > 1 else PROCESSES)
        ]
        notify(f"in place of the first figure by FSDP: {', '.join(shares)} processes")
    small, few = _few_layers(prior), max(1, FEW_CELLS // math.prod(prior.cells))
    at_once = num if torch.cuda.is_available() else min(num, few)
    trial = replace(run, batch_size=at_once * world, accumulate=1, minutes=None, num_steps=100)
    objective = PriorObjective(small, _blank(small, at_once * world), loss, trial)
    seconds = measure_step_seconds(small.denoiser, objective, num_items=at_once * world, config=trial)
    rate = trace(small, loss, run, at_once).operations / seconds
    operations = traced.operations * run.accumulate
    layers = getattr(small.denoiser.config, "num_layers", "all")
    notify(
        f"{operations / 1e12:.3g} TFLOP a step and process: {3600 * rate / operations:.3g} steps an hour at the "
        f"{rate / 1e12:.2g} TFLOP/s of a network of {layers} layers here, without the exchange between processes; "
        "nothing is written"
    )
