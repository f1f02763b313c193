"""Samplers: prior -> token grids. One file each, one interface, and the list of their names.

A sampler is a file `vqtool/samplers/NAME.py` with

    NEEDS_MASK                       whether it is for kernels with a mask only
    sample(walk, *, steps, ...) -> (B, H, W) int64

whose keyword-only parameters are the options it understands, and a name in NAMES: that is the registration.
"""

import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vqtool.errors import VqtoolError
from vqtool.priors import Prior
from vqtool.samplers._walk import Settings, Walk

NAMES = ("ancestral", "fewer", "purity", "confidence", "halton", "entropy", "moment")
DEFAULT = "ancestral"
DEFAULT_BATCH_SIZE = 64

Conditions = Tensor | Callable[[range], Tensor]  # a row a sample, or sample numbers -> rows

__all__ = ["DEFAULT", "NAMES", "Conditions", "SampleBatch", "Settings", "Walk", "sample", "sample_batches"]


@dataclass(frozen=True)
class SampleBatch:
    """Some of the samples of a run."""

    samples: range  # their numbers
    grids: Tensor  # (B, H, W) int64, on the CPU
    num_calls: float  # of the denoiser, the mean of the samples


def find(name: str) -> ModuleType:
    """The file of a sampler.

    Raises:
        VqtoolError: an unknown name.
    """
    if name not in NAMES:
        raise VqtoolError(f"unknown sampler {name!r}: known are {', '.join(NAMES)}")
    return import_module(f"vqtool.samplers.{name}")


def options(name: str) -> list[str]:
    """The options that a sampler understands."""
    parameters = inspect.signature(find(name).sample).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def check(prior: Prior, sampler: str, chosen: dict[str, Any]) -> None:
    """Raise unless a sampler is for this prior and understands the options.

    Raises:
        VqtoolError: it does not; says which samplers do.
    """
    if find(sampler).NEEDS_MASK and not prior.kernel.has_mask:
        others = ", ".join(name for name in NAMES if not find(name).NEEDS_MASK)
        raise VqtoolError(
            f"sampler {sampler} needs a kernel with a mask, but this prior's is {prior.kernel.name}: use {others}"
        )
    for option in chosen:
        if option not in options(sampler):
            others = ", ".join(name for name in NAMES if option in options(name)) or "no sampler"
            raise VqtoolError(f"--{option.replace('_', '-')} is not an option of sampler {sampler}; of {others} it is")


def sample_batches(
    prior: Prior,
    num: int,
    *,
    sampler: str = DEFAULT,
    cfg_scale: float = 1.0,
    temperature: float = 1.0,
    truncation: float = 1.0,
    condition: Conditions | None = None,
    seed: int = 0,
    start: int = 0,
    batch_size: int = DEFAULT_BATCH_SIZE,
    grid_size: tuple[int, int] | None = None,
    **chosen: Any,
) -> Iterator[SampleBatch]:
    """Draw samples batch by batch, as they are asked for; the arguments are those of `sample`, `num` may be 0."""
    check(prior, sampler, chosen)
    if num < 0 or start < 0 or batch_size < 1:
        raise VqtoolError(f"cannot draw {num} samples from number {start} on in batches of {batch_size}")
    if isinstance(condition, Tensor) and len(condition) not in (1, num):
        raise ValueError(f"{len(condition)} conditions for {num} samples: 1 or {num} are needed")
    if cfg_scale != 1.0 and (condition is None or prior.conditioner.kind == "none"):
        warnings.warn(f"nothing to guide without a condition: cfg_scale {cfg_scale} is left out", stacklevel=2)
        cfg_scale = 1.0
    settings = Settings(cfg_scale, temperature, truncation)
    size = prior.origin.grid_size if grid_size is None else grid_size

    def draw(samples: range) -> SampleBatch:
        rows = _rows(condition, samples, start)
        with torch.no_grad():
            walk = Walk(prior, samples, rows, seed=seed, grid_size=size, settings=settings)
            grids = find(sampler).sample(walk, **chosen).cpu()
        return SampleBatch(samples, grids, walk.num_calls)

    return (draw(range(begin, min(begin + batch_size, start + num))) for begin in range(start, start + num, batch_size))


def _rows(condition: Conditions | None, samples: range, start: int) -> Tensor | None:
    if condition is None or callable(condition):
        return None if condition is None else condition(samples)
    if len(condition) == 1:
        return condition.expand(len(samples), *condition.shape[1:])
    return condition[samples.start - start : samples.stop - start]


def sample(prior: Prior, num: int, **arguments: Any) -> Tensor:
    """Draw token grids from a prior.

    Sample i depends on (seed, i) only: not on the batch size, the number of samples, or `start`.

    Args:
        prior: from `vqtool.load_prior`; its device does the work.
        num: how many.
        sampler: one of NAMES.
        steps: denoiser calls; None is the sampler's default. Further options are in the samplers' files.
        cfg_scale: 1.0 is off. Without a condition there is nothing to guide: a warning says so.
        temperature: of the tokens; 1.0 is off.
        truncation: draw from the smallest set of tokens with this mass; 1.0 is off.
        condition: (num, ...) or (1, ...) int64 from `prior.conditioner.encode`, or a function from a range of sample
            numbers to rows; None is the null condition.
        seed: of all noise.
        start: number of the first sample.
        batch_size: how many are drawn at once.
        grid_size: (H, W) cells; None for that of the training grids.

    Returns:
        (num, H, W) int64 tokens, on the CPU.

    Raises:
        VqtoolError: an unknown sampler, or an option or prior that does not go with it.
    """
    if num < 1:
        raise VqtoolError(f"cannot draw {num} samples: at least 1")
    return torch.cat([batch.grids for batch in sample_batches(prior, num, **arguments)])
