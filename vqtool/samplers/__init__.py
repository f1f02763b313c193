"""Samplers: prior -> token grids. One file each, one interface, and the list of their names.

A sampler is a file `vqtool/samplers/NAME.py` with

    NEEDS_MASK                       whether it is for kernels with a mask only
    NEEDS_ABSORBING                  and these kernels may not replace tokens either (may be missing)
    sample(walk, *, steps, ...) -> (B, H, W) int64

whose keyword-only parameters are the options it understands, and a name in NAMES: that is the registration.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vqtool.diffusion.kernels import Kernel
from vqtool.diffusion.posterior import replaces
from vqtool.errors import VqtoolError
from vqtool.priors import Prior
from vqtool.registry import find_module
from vqtool.samplers._edit import Edit
from vqtool.samplers._settings import ALWAYS, Settings
from vqtool.samplers._walk import Observer, Walk, cover

NAMES = ("ancestral", "first-hitting", "psi", "fewer", "purity", "confidence", "halton", "entropy", "moment")
DEFAULT = "ancestral"
DEFAULT_BATCH_SIZE = 64

Rows = Tensor | Callable[[range], Tensor]  # one a sample, or sample numbers -> rows

__all__ = [
    "DEFAULT",
    "NAMES",
    "Observer",
    "Rows",
    "SampleBatch",
    "Settings",
    "Walk",
    "cover",
    "sample",
    "sample_batches",
]


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
    return find_module("vqtool.samplers", "sampler", name, NAMES)


def options(name: str) -> list[str]:
    """The options that a sampler understands."""
    parameters = inspect.signature(find(name).sample).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]


def check(prior: Prior, sampler: str, chosen: dict[str, Any]) -> None:
    """Raise unless a sampler is for this prior and understands the options.

    Raises:
        VqtoolError: it does not; says which samplers do.
    """
    lacking = _find_lacking(sampler, prior.kernel)
    if lacking:
        others = ", ".join(name for name in NAMES if not _find_lacking(name, prior.kernel))
        raise VqtoolError(f"sampler {sampler} needs {lacking}, but this prior's is {prior.kernel.name}: use {others}")
    for option in chosen:
        if option not in options(sampler):
            others = ", ".join(name for name in NAMES if option in options(name)) or "no sampler"
            raise VqtoolError(f"--{option.replace('_', '-')} is not an option of sampler {sampler}; of {others} it is")


def _find_lacking(sampler: str, kernel: Kernel) -> str:
    """What a sampler needs and a kernel is not; empty if it is all that."""
    file = find(sampler)
    if getattr(file, "NEEDS_ABSORBING", False) and (replaces(kernel) or not kernel.has_mask):
        return "an absorbing kernel"
    return "a kernel with a mask" if file.NEEDS_MASK and not kernel.has_mask else ""


def sample_batches(
    prior: Prior,
    num: int,
    *,
    sampler: str = DEFAULT,
    condition: Rows | None = None,
    given: Rows | None = None,
    source: Rows | None = None,
    strength: float = 1.0,
    seed: int = 0,
    start: int = 0,
    batch_size: int = DEFAULT_BATCH_SIZE,
    grid_size: tuple[int, int] | None = None,
    overlap: int | None = None,
    grid_mode: str = "windows",
    observe: Observer | None = None,
    **chosen: Any,
) -> Iterator[SampleBatch]:
    """Draw samples batch by batch, as they are asked for; the arguments are those of `sample`, `num` may be 0."""
    names = [field.name for field in fields(Settings) if field.name in chosen]
    settings = Settings(**{name: chosen.pop(name) for name in names})
    settings.check(prior)
    check(prior, sampler, chosen)
    if num < 0 or start < 0 or batch_size < 1:
        raise VqtoolError(f"cannot draw {num} samples from number {start} on in batches of {batch_size}")
    for name, tensor in (("conditions", condition), ("given grids", given), ("sources", source)):
        if isinstance(tensor, Tensor) and len(tensor) not in (1, num):
            raise ValueError(f"{len(tensor)} {name} for {num} samples: 1 or {num} are needed")
    first = find_start(prior.kernel, strength)
    if source is None and first < prior.kernel.num_steps:
        raise ValueError(f"strength {strength} without a source to start from")
    if settings.guided and settings.guide_with is None and (condition is None or prior.conditioner.kind == "none"):
        warnings.warn(f"nothing to guide without a condition: cfg_scale {settings.cfg_scale} is left out", stacklevel=2)
        settings = replace(settings, cfg_scale=1.0, cfg_schedule="constant", cfg_interval=ALWAYS, null=None)
    size = prior.grid_spec.grid_size if grid_size is None else grid_size
    windows = cover(prior, size, overlap=overlap, mode=grid_mode)
    if settings.guide_with is not None:
        cover(settings.guide_with, size, overlap=overlap, mode=grid_mode)

    def draw(samples: range) -> SampleBatch:
        rows, known, near = (_rows(each, samples, start) for each in (condition, given, source))
        if first == 0 and near is not None:
            return SampleBatch(samples, near.cpu(), 0.0)
        edit = Edit(known, near, first)
        with torch.no_grad():
            walk = Walk(
                prior,
                samples,
                rows,
                seed=seed,
                grid_size=size,
                settings=settings,
                edit=edit,
                windows=windows,
                observe=observe,
            )
            grids = find(sampler).sample(walk, **chosen).cpu()
        if observe is not None:
            observe(walk, grids)
        return SampleBatch(samples, grids, walk.num_calls)

    return (draw(range(begin, min(begin + batch_size, start + num))) for begin in range(start, start + num, batch_size))


def check_strength(strength: float) -> None:
    """Raise VqtoolError unless a strength lies in [0, 1]."""
    if not 0 <= strength <= 1:
        raise VqtoolError(f"--strength {strength:g}: must lie in 0 (nothing changes) to 1 (all is made anew)")


def find_start(kernel: Kernel, strength: float) -> int:
    """The t in [0, T] that a strength stands for.

    Raises:
        VqtoolError: it does not lie in [0, 1].
    """
    check_strength(strength)
    return math.floor(strength * kernel.num_steps + 0.5)


def _rows(condition: Rows | None, samples: range, start: int) -> Tensor | None:
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
        cfg_schedule, cfg_interval: how the scale depends on the share of time; see `guidance.scales`.
        null: what guidance compares with, "learned" or "zero-shot"; None for learned where the prior has it.
        guide_with: a second prior to compare with instead, under the same condition or without any.
        temperature: of the tokens; 1.0 is off.
        truncation: draw from the smallest set of tokens with this mass; 1.0 is off.
        top_k: draw from as many of the likeliest tokens; None is off.
        condition: (num, ...) or (1, ...) int64 from `prior.conditioner.encode`, or a function from a range of sample
            numbers to rows; None is the null condition.
        given: (num, H, W) or (1, H, W) int64 tokens that are kept, mask_id where unknown; or a function, as above.
        source: (num, H, W) or (1, H, W) int64 tokens to start from: x_t ~ q(x_t | source); or a function, as above.
        strength: that t is this share of T: 0 gives the source itself, 1 leaves nothing of it.
        seed: of all noise.
        start: number of the first sample.
        batch_size: how many are drawn at once.
        grid_size: (H, W) cells; None for that of the training grids. On larger grids the denoiser looks through
            overlapping windows of the training grid.
        overlap: how many cells neighbouring windows share at least; None for half a window.
        grid_mode: "stretch" spreads the denoiser's positions over the grid instead: one large layout, coarser to look
            at, where windows each make a picture; not every denoiser can.
        observe: shown a batch (a `Walk`) and its x_t (B, H, W) before each call of the denoiser, and at the end.

    Returns:
        (num, H, W) int64 tokens, on the CPU.

    Raises:
        VqtoolError: an unknown sampler, or an option or prior that does not go with it.
    """
    if num < 1:
        raise VqtoolError(f"cannot draw {num} samples: at least 1")
    return torch.cat([batch.grids for batch in sample_batches(prior, num, **arguments)])
