"""What sampling takes: calls of the denoiser, memory, time; and how many samples to draw at once.

The calls are counted by a rehearsal: the sampler runs with a denoiser that computes nothing, once with even
predictions and once with certain ones, between which every other lies. Time is that of one call, measured. Memory
is a model of the tensors that a walk holds, good to a factor of two.
"""

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vqtool.denoisers import Denoiser, EncodedCondition
from vqtool.priors import Prior
from vqtool.samplers import Method, Rows, Settings, Walk
from vqtool.samplers._machine import EXACT, LOGIT_BYTES, Machine, call_bytes, find_free_memory
from vqtool.samplers._tiles import Tiling

__all__ = [
    "count_calls", "estimate_memory", "find_batch_size", "find_free_memory", "rehearse", "time_call",
]  # fmt: skip

USEFUL_CELLS = 16384  # of a batch: what is done once a step is small beside the rest from here on
SHARE_OF_MEMORY = 0.5  # of what is free, that a run may take
NUM_REHEARSED = 4  # samples: some samplers call as often as chance has it
_CELL_BYTES = 160  # a cell of a sample: noise, tokens, orders of cells
_SURE = 1e4  # nats


class _Blank(Denoiser):
    """Predicts the same for every cell, without computing."""

    caches = True
    stretches = True

    def __init__(self, denoiser: Denoiser, codebook_size: int, nats: float) -> None:
        super().__init__()
        self.config, self.sees_time = denoiser.config, denoiser.sees_time
        self.counts_calls = denoiser.counts_calls
        self.logits = nn.Parameter(torch.zeros(codebook_size), requires_grad=False)
        self.logits[0] = nats

    def encode_condition(self, condition: Tensor) -> EncodedCondition:
        """Nothing."""
        return EncodedCondition()

    def set_frequencies(self, frequencies: Tensor) -> None:
        """Nothing is trained here."""

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Tensor | EncodedCondition | None = None,
        cells: Tensor | None = None,
        cache: object = None,
    ) -> Tensor:
        """The same logits everywhere."""
        shape = x_t.shape if cells is None else cells.shape
        return self.logits.expand(*shape, -1)


def count_calls(
    prior: Prior, samples: range, *, condition: Rows | None = None, **arguments: Any
) -> tuple[float, float]:
    """The fewest and the most calls of the denoiser a sample, means over the first few samples.

    Args:
        prior: what would be sampled.
        samples: numbers of the samples.
        condition: and all further arguments: those of `vqtool.sample`; what differs between samples is a function of
            their numbers.
    """
    rows = {name: arguments.pop(name) for name in ("known", "source", "strength") if name in arguments}
    method = Method.build(prior, has_condition=condition is not None, **arguments)
    return rehearse(method, samples, condition=condition, **rows)


def rehearse(method: Method, samples: range, **rows: Any) -> tuple[float, float]:
    """``count_calls`` of a method.

    Args:
        method: how samples would be drawn.
        samples: their numbers.
        rows: condition, known, source and strength of `Method.batches`.
    """
    first, counts, second = samples[:NUM_REHEARSED], [], method.settings.guide_with
    for nats in (0.0, _SURE):
        settings = method.settings if second is None else replace(method.settings, guide_with=_blank(second, nats))
        blank = replace(method, prior=_blank(method.prior, nats), settings=settings)
        batches = blank.batches(len(first), start=first.start, **rows)
        counts.append(sum(batch.num_calls * len(batch.samples) for batch in batches) / len(first))
    return min(counts), max(counts)


def _blank(prior: Prior, nats: float) -> Prior:
    denoiser = _Blank(prior.denoiser, prior.kernel.codebook_size, nats).to(prior.device)
    return replace(prior, denoiser=denoiser, parameterisation="direct")


@torch.no_grad()
def time_call(prior: Prior, tiling: Tiling, machine: Machine = EXACT) -> float:
    """Seconds of one call of the denoiser for as many samples as pass it together, after one to warm up."""
    samples = range(tiling.microbatch)
    size = tiling.grid_size
    walk = Walk(prior, samples, None, seed=0, grid_size=size, settings=Settings(), tiling=tiling, machine=machine)
    x_t, t = walk.begin(), walk.times(prior.kernel.num_steps)
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        walk.log_x0(x_t, t)
        if prior.device.type == "cuda":
            torch.cuda.synchronize(prior.device)
        seconds = time.perf_counter() - start
    return seconds


def estimate_memory(prior: Prior, tiling: Tiling, batch_size: int, kept: int = 0) -> int:
    """Bytes that drawing so many samples at once takes, beside the prior itself; `kept` of each by `cache`."""
    cells, size = tiling.size[0] * tiling.size[1], prior.kernel.codebook_size
    call = tiling.at_once * cells * call_bytes(prior)
    if len(tiling) > 1:
        call += tiling.microbatch * tiling.num_cells * size * LOGIT_BYTES
    return call + batch_size * (_sample_bytes(prior, tiling) + kept)


def find_batch_size(
    prior: Prior, tiling: Tiling, num: int, free: int, *, most: int | None = None, kept: int = 0
) -> int:
    """How many samples to draw at once: as many as are useful, and as memory allows, in whole microbatches.

    Args:
        prior: what is sampled.
        tiling: of the grids.
        num: of samples that are wanted, 1 or more.
        free: bytes of memory.
        most: not more than that, or than one microbatch; None for no such bound.
        kept: bytes of each sample that `cache` keeps.
    """
    room = free * SHARE_OF_MEMORY - estimate_memory(prior, tiling, 0)
    wanted = USEFUL_CELLS // tiling.num_cells
    useful = max(tiling.microbatch, wanted if most is None else min(wanted, most))
    count = min(useful, int(max(0, room)) // (_sample_bytes(prior, tiling) + kept)) // tiling.microbatch
    return min(num, max(1, count) * tiling.microbatch)


@torch.no_grad()
def _sample_bytes(prior: Prior, tiling: Tiling) -> int:
    """Bytes of what a walk holds of a sample; the plug-in rule makes the whole law of its cells."""
    parts = [part for part in prior.encode_condition(None, 1) if part is not None]
    encoded = sum(part.numel() * part.element_size() for part in parts)
    law = prior.kernel.codebook_size * LOGIT_BYTES if prior.rule == "plug-in" else 0
    return encoded + tiling.num_cells * (_CELL_BYTES + law)
