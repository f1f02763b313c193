"""Samplers: prior -> token grids. One file each, one interface, and the list of their names.

A sampler is a file `vqtool/samplers/NAME.py` with

    NEEDS_MASK                       whether it is for kernels with a mask only
    NEEDS_ABSORBING                  and these kernels may not replace tokens either (may be missing)
    Options                          a frozen dataclass: what it can be told (see `vqtool.options`)
    sample(walk, options) -> (B, H, W) int64

and a name in NAMES: that is the registration.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vqtool.diffusion.kernels import Kernel
from vqtool.diffusion.posterior import replaces
from vqtool.errors import VqtoolError, size_text
from vqtool.options import Option, options_of
from vqtool.priors import Prior
from vqtool.registry import find_module
from vqtool.rng import check_seed
from vqtool.samplers import _caches
from vqtool.samplers._edit import Edit, check_tokens, find_start
from vqtool.samplers._machine import Machine, MachineOptions, build_tiling, choose_threads, halve, use_runtime
from vqtool.samplers._published import published
from vqtool.samplers._settings import Guidance, Settings, leave_out_guidance, load_second
from vqtool.samplers._texts import check_kind, choose_texts, condition
from vqtool.samplers._tiles import TileOptions, Tiling
from vqtool.samplers._walk import Observer, Walk

NAMES = (
    "ancestral",
    "first-hitting",
    "psi",
    "fewer",
    "purity",
    "confidence",
    "halton",
    "entropy",
    "moment",
    "remask",
    "gibbs",
)
DEFAULT = "ancestral"
DEFAULT_BATCH_SIZE = 64
MAX_NUMBER = 2**63 - 1

_OF_BATCHES = ("known", "source", "strength", "start", "batch_size", "observe")

Rows = Tensor | Callable[[range], Tensor]  # one a sample, or sample numbers -> rows

__all__ = [
    "DEFAULT",
    "NAMES",
    "Guidance",
    "Method",
    "Observer",
    "Rows",
    "SampleBatch",
    "Settings",
    "Tiling",
    "Walk",
    "build_tiling",
    "check_kind",
    "choose_texts",
    "condition",
    "describe",
    "leave_out_guidance",
    "load_second",
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


def options(name: str) -> dict[str, Option]:
    """The options of a sampler by their names, each with its default, range and one line of help."""
    return {each.name: each for each in options_of(find(name).Options)}


def choose_options(prior: Prior, sampler: str, chosen: Mapping[str, Any]) -> Any:
    """The options of a sampler, checked.

    Args:
        prior: what is sampled.
        sampler: one of NAMES.
        chosen: values by name.

    Returns:
        The sampler's `Options`.

    Raises:
        VqtoolError: the sampler is not for this prior, or has no such option, or not with this value.
    """
    lacking = _find_lacking(sampler, prior.kernel)
    if lacking:
        others = ", ".join(name for name in NAMES if not _find_lacking(name, prior.kernel))
        raise VqtoolError(f"sampler {sampler} needs {lacking}, but this prior's is {prior.kernel.name}: use {others}")
    for option in chosen:
        if option not in options(sampler):
            others = ", ".join(name for name in NAMES if option in options(name)) or "no sampler"
            raise VqtoolError(f"`{option}` is not an option of sampler {sampler}; of {others} it is")
    return find(sampler).Options(**chosen)


def _find_lacking(sampler: str, kernel: Kernel) -> str:
    """What a sampler needs and a kernel is not; empty if it is all that."""
    file = find(sampler)
    if getattr(file, "NEEDS_ABSORBING", False) and (replaces(kernel) or not kernel.has_mask):
        return "an absorbing kernel"
    return "a kernel with a mask" if file.NEEDS_MASK and not kernel.has_mask else ""


@dataclass(frozen=True, eq=False)
class Method:
    """How a prior is sampled: built and checked once, used for every batch."""

    prior: Prior
    sampler: str
    options: Any  # the sampler's own
    settings: Settings
    tiling: Tiling
    machine: Machine
    seed: int
    chosen: Mapping[str, Any]  # what was asked for and has an effect, by the names of the arguments of `sample`

    @property
    def record(self) -> dict[str, Any]:
        """What stands in a history: what was asked for, and the settings that have a number in any case."""
        numbers = {name: getattr(self.settings, name) for name in ("cfg_scale", "temperature", "truncation")}
        return {"sampler": self.sampler, **numbers, **describe(self.chosen), **self.machine.record}

    @property
    def grid_size(self) -> tuple[int, int]:
        """(H, W) tokens of the samples."""
        return self.tiling.grid_size[0], self.tiling.grid_size[1] // self.prior.num_parts

    @property
    def measured(self) -> tuple[Prior, Tiling, Machine]:
        """What the time of a call depends on."""
        return self.prior, self.tiling, self.machine

    @classmethod
    def build(
        cls,
        prior: Prior,
        *,
        has_condition: bool,
        completes: bool = False,
        sampler: str | None = None,
        seed: int = 0,
        grid_size: tuple[int, int] | None = None,
        **chosen: Any,
    ) -> "Method":
        """A method from the arguments of `sample`.

        Args:
            prior: what is sampled.
            has_condition: whether the samples are given a condition.
            completes: whether they are given pictures whose masked cells they fill.
            sampler: and all further arguments: see `sample`.

        Raises:
            VqtoolError: a value is not possible, or not with this prior or sampler.
        """
        theirs = published(prior, sampler, chosen, has_condition=has_condition, completes=completes)
        chosen = {**theirs, **chosen}
        sampler = sampler or chosen.pop("sampler", DEFAULT)
        chosen.pop("sampler", None)
        given = {each.name: chosen.pop(each.name) for each in options_of(Settings) if each.name in chosen}
        tiles = {each.name: chosen.pop(each.name) for each in options_of(TileOptions) if each.name in chosen}
        fast = {each.name: chosen.pop(each.name) for each in options_of(MachineOptions) if each.name in chosen}
        asked = MachineOptions(**fast)
        machine = Machine.choose(asked, prior.device)
        options = choose_options(prior, sampler, chosen)
        given = load_second(prior, given)
        Settings(**given).check(prior)
        given = leave_out_guidance(prior, given, has_condition=has_condition)
        settings = Settings(**given)
        size = prior.grid_spec.grid_size if grid_size is None else (int(grid_size[0]), int(grid_size[1]))
        if prior.num_parts > 1 and size != prior.grid_spec.grid_size:
            raise VqtoolError(f"`grid_size` {size_text(size)}: a prior of parts of tokens knows its own grid alone")
        cells = size[0], size[1] * prior.num_parts
        tiling = build_tiling(prior, cells, **tiles, machine=machine)
        if settings.guide_with is not None:
            build_tiling(settings.guide_with, cells, **tiles)
        check_seed(seed)
        _caches.check(prior, settings)
        prior, runtime = use_runtime(prior, _caches.choose_runtime(settings.cache, asked, tiling))
        if settings.guide_with is not None:
            settings = replace(settings, guide_with=machine.prepare(use_runtime(settings.guide_with, runtime)[0]))
        prior = machine.prepare(prior)
        chooses = asked.threads == "auto" and runtime == "torch" and prior.device.type == "cpu"
        machine = replace(machine, runtime=runtime, threads=choose_threads(prior, tiling) if chooses else None)
        own = {} if grid_size is None else {"grid_size": size}
        return cls(prior, sampler, options, settings, tiling, machine, seed, {**chosen, **given, **own, **tiles})

    def batches(
        self,
        num: int,
        *,
        condition: Rows | None = None,
        known: Rows | None = None,
        source: Rows | None = None,
        strength: float = 1.0,
        start: int = 0,
        batch_size: int = DEFAULT_BATCH_SIZE,
        observe: Observer | None = None,
    ) -> Iterator[SampleBatch]:
        """Draw samples batch by batch, as they are asked for; the arguments are those of `sample`, `num` may be 0."""
        if num < 0 or not 0 <= start <= MAX_NUMBER - num or batch_size < 1:
            raise VqtoolError(f"cannot draw {num} samples from number {start} on in batches of {batch_size}")
        first = find_start(self.prior.kernel, strength)
        if source is None and first < self.prior.kernel.num_steps:
            raise ValueError(f"strength {strength} without a source to start from")
        given = {"condition": condition, "known": known, "source": source}
        for name, rows in given.items():
            if rows is not None and not callable(rows):
                self._check_rows(name, rows, num)
        parts = [range(begin, min(begin + batch_size, start + num)) for begin in range(start, start + num, batch_size)]
        return self._draw_all(parts, given, start, first, observe)

    def _draw_all(
        self,
        parts: Sequence[range],
        given: Mapping[str, Rows | None],
        start: int,
        first: int,
        observe: Observer | None,
    ) -> Iterator[SampleBatch]:
        """Batch by batch; where memory runs out, with half as many samples in the network from then on."""
        tiling = self.tiling
        for samples in parts:
            rows = {name: self._rows(name, each, samples, start) for name, each in given.items()}
            if first == 0 and rows["source"] is not None:
                yield SampleBatch(samples, rows["source"].cpu(), 0.0)
                continue
            batch = None
            while batch is None:
                try:
                    batch = self._draw(samples, rows, first, observe, tiling)
                except RuntimeError as error:
                    from accelerate.utils.memory import should_reduce_batch_size

                    if not should_reduce_batch_size(error):
                        raise
                if batch is None:  # what the failed call held is free only here
                    tiling = halve(tiling, len(samples), exact=self.machine.exact)
            yield batch

    @torch.no_grad()
    def _draw(
        self,
        samples: range,
        rows: Mapping[str, Tensor | None],
        first: int,
        observe: Observer | None,
        tiling: Tiling,
    ) -> SampleBatch:
        known, source = (None if each is None else self.prior.split(each) for each in (rows["known"], rows["source"]))
        for is_careful in (False, True):
            walk = Walk(
                self.prior,
                samples,
                rows["condition"],
                seed=self.seed,
                grid_size=self.tiling.grid_size,
                settings=self.settings,
                edit=Edit(known, source, first),
                tiling=tiling,
                machine=self.machine,
                observe=observe,
                is_careful=is_careful,
            )
            grids: Tensor = find(self.sampler).sample(walk, self.options)
            if walk.is_complete():
                break
        grids = grids.cpu()
        if observe is not None:
            observe(walk, grids)
        return SampleBatch(samples, self.prior.join(grids), walk.num_calls)

    def _rows(self, name: str, rows: Rows | None, samples: range, start: int) -> Tensor | None:
        """The rows of some samples; `start` is the number of the first sample of the run."""
        if callable(rows):
            rows = rows(samples)
            self._check_rows(name, rows, len(samples))
        elif rows is not None and len(rows) > 1:
            rows = rows[samples.start - start : samples.stop - start]
        return rows.expand(len(samples), *rows.shape[1:]) if rows is not None and len(rows) == 1 else rows

    def _check_rows(self, name: str, rows: Tensor, num: int) -> None:
        """Raise VqtoolError unless rows, one for each or for all of `num` samples, are of the right shape and range."""
        if not isinstance(rows, Tensor) or not rows.ndim or len(rows) not in (1, num):
            what = f"shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else f"type {type(rows).__name__}"
            raise VqtoolError(f"`{name}` has {what}: a tensor of 1 or {num} rows is expected")
        if name != "condition":
            masked = name == "known"
            check_tokens(name, rows, self.grid_size, self.prior.codebook_size + masked)
        elif not rows.is_floating_point() and rows.shape[1:] != self.prior.conditioner.null(1).shape[1:]:
            wanted = ("B", *self.prior.conditioner.null(1).shape[1:])
            raise VqtoolError(
                f"`condition` has shape {tuple(rows.shape)}, but this prior takes ({', '.join(map(str, wanted))}): "
                "make it with `vqtool.condition`"
            )


def describe(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `sample` as they stand in a history: lists for tuples, the fingerprint for a second prior."""
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}
    return {name: getattr(value, "fingerprint", value) for name, value in listed.items()}


def sample_batches(prior: Prior, num: int, *, condition: Rows | None = None, **arguments: Any) -> Iterator[SampleBatch]:
    """Draw samples batch by batch, as they are asked for; the arguments are those of `sample`, `num` may be 0."""
    if not isinstance(prior, Prior):
        raise VqtoolError(f"a prior is expected, as from `vqtool.load_prior`, not {type(prior).__name__}")
    own = {name: arguments.pop(name) for name in _OF_BATCHES if name in arguments}
    method = Method.build(prior, has_condition=condition is not None, **arguments)
    return method.batches(num, condition=condition, **own)


def sample(prior: Prior, num: int, **arguments: Any) -> Tensor:
    """Draw token grids from a prior.

    Sample i depends on (seed, i) only: not on the batch size, the number of samples, or `start`; without `exact`, as on
    a GPU, but for rounding.

    Args:
        prior: from `vqtool.load_prior`; its device does the work.
        num: how many.
        sampler: one of NAMES; `vqtool.samplers.options(sampler)` lists its options, such as `steps`, which are further
            arguments. What is not given is what the prior's makers published (`prior.sampling`), if they did.
        cfg_scale: strength of guidance by the condition; 1.0 is off. Without a condition a warning says that there is
            nothing to guide.
        cfg_schedule: how the scale depends on the share of time: "constant", "linear" or "cosine"; see
            `guidance.scales`.
        cfg_interval: the least and the largest share of time with guidance.
        cfg_refresh: compute what guidance compares with in every m-th call of a sample only.
        null: what guidance compares with, "learned" or "zero-shot"; None for learned where the prior has it.
        negative: a caption or label to guide away from instead.
        guide_with: a second prior, or its file, to compare with instead, under the same condition or without any.
        temperature: of the tokens; 1.0 is off; or a list from the first call to the last.
        truncation: draw from the smallest set of tokens with this mass (top-p); 1.0 is off.
        top_k: draw from this many of the likeliest tokens; None is off.
        cache: compute cells that are neither asked for nor changed in every m-th call of a sample only; 1 is off.
        condition: (num, ...) or (1, ...) int64 from `vqtool.condition`, or a function from a range of sample numbers
            to rows; None is the null condition.
        known: (num, H, W) or (1, H, W) int64 tokens that are kept, mask_id where unknown; or a function, as above.
        source: (num, H, W) or (1, H, W) int64 tokens to start from: x_t ~ q(x_t | source); or a function, as above.
        strength: that t is this share of T: 0 gives the source itself, 1 leaves nothing of it.
        seed: of all noise.
        start: number of the first sample.
        batch_size: how many are drawn at once.
        grid_size: (H, W) cells; None for that of the training grids. Larger grids pass the denoiser in overlapping
            tiles of the training size.
        overlap: how many cells neighbouring tiles share at least; None for half a tile.
        grid_mode: "stretch" spreads the denoiser's positions over the whole grid instead: one large composition with
            less detail, where "tiles" make several; not every denoiser can.
        exact: the same tokens for every batch size, to the bit; None: on a CPU, where it costs nothing. If it is off,
            as many samples pass the network together as the memory allows.
        precision: of the network: fp32, tf32 or bf16; "auto" is bf16 on a GPU, unless `exact` is on.
        compile: whether PyTorch compiles the network, on a GPU.
        runtime: of the network on a CPU: "torch", or "onnx", which is faster and draws the same tokens except where
            two logits tie to 1e-5; "auto" is onnx where vqtool[onnx] is installed. See `vqtool.runtimes`.
        threads: of PyTorch on a CPU: "all", or "auto" for one fewer where two calls are faster, as beside other work.
        observe: called with a batch (a `Walk`) and its x_t (B, H, W) before each call of the denoiser and at the end.

    Returns:
        (num, H, W) int64 tokens, on the CPU.

    Raises:
        VqtoolError: an unknown sampler, an option or prior that does not go with it, or tensors of a wrong shape.
    """
    if num < 1:
        raise VqtoolError(f"cannot draw {num} samples: at least 1")
    return torch.cat([batch.grids for batch in sample_batches(prior, num, **arguments)])
