"""A prior that goes on learning from where another one ended, on grids of one's own.

What the prior to begin with is made of stays: denoiser, size, parameterisation, vocabulary. What the new grids need and
it lacks is added so that nothing that it predicts changes at first: labels that it does not know begin as its null
condition, a condition that it does not have begins without effect, positions are interpolated to another grid size.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from vqtool import conditions, denoisers
from vqtool.artifacts import BUILTIN
from vqtool.conditions import Conditioner
from vqtool.denoisers import Denoiser
from vqtool.diffusion import kernels
from vqtool.diffusion.kernels import Kernel
from vqtool.errors import MismatchError, VqtoolError, size_text
from vqtool.grids import GridBatch, GridHeader
from vqtool.grids.labels import count_labels
from vqtool.priors import GridSpec, Prior, fits_builtin
from vqtool.progress import Notify, ignore
from vqtool.training.adapters import TuningOptions
from vqtool.training.building import (
    CONDITION_TABLES,
    Beginning,
    ConditionOptions,
    check_dropout,
    choose_learning_rate,
)
from vqtool.training.data import FEW, build_data, sample_texts, warn_of_texts

# By the prior to begin with.
FIXED = ("denoiser", "text_encoder", "size", "parameterisation", "rule", "diffusion_steps")
OF_A_NEW_ONE = (*FIXED, "kernel", "schedule", "num_parts", "vocabulary", "vocabulary_size")
NEW = "none"  # what stands for a new prior where a prior to begin with is named
TUNING_SHARE = 0.3  # of the rate that suits fresh weights


def begins_with_builtin(
    header: GridHeader,
    batch: GridBatch,
    *,
    given: Mapping[str, Any],
    begun: Mapping[str, Any] | None = None,
    notify: Notify = ignore,
) -> bool:
    """Whether the built-in prior is what suits grids, where nobody names a prior to begin with.

    It does if they are few and of its tokenizer and size, nobody asks for something of a new prior, and no classes
    would be lost, which it does not know.

    Args:
        header: of the grids.
        batch: the grids.
        given: the options that somebody gave.
        begun: settings of the run that goes on, which began with it or not.
        notify: is told of it.
    """
    if not fits_builtin(header):
        return False
    if begun is not None:
        return "from_" in begun
    kind = given.get("condition", "auto")
    if kind == "auto" and conditions.choose_kind(batch.labels, batch.captions) == "class":
        kind = "class"
    if kind == "class":
        notify(f"the built-in prior knows these tokens, but no classes: `from_` {BUILTIN} learns without them")
        return False
    wants_new = kind == "none" or any(given.get(name) is not None for name in OF_A_NEW_ONE)
    if len(batch) >= FEW or not fits_builtin(header, size=True) or wants_new:
        notify(f"the built-in prior knows these tokens: `from_` {BUILTIN} would be quicker")
        return False
    notify(
        f"the built-in prior goes on learning: it knows these tokens, and fewer than {FEW:,} grids teach a new one "
        f"little (`from_` {NEW} begins a new one)"
    )
    return True


def go_on(
    old: Prior,
    header: GridHeader,
    batch: GridBatch,
    condition: ConditionOptions,
    tuning: TuningOptions,
    *,
    given: Mapping[str, Any],
    seed: int,
) -> Beginning:
    """A prior, brought to grids that it is to learn from, that learns what it is told to.

    Args:
        old: the prior to begin with; left as it is.
        header: of the grids.
        batch: the grids.
        condition: of the grids.
        tuning: what is learnt.
        given: the options that somebody gave: kernel, schedule and dropout may be others than those of the prior.
        seed: of weights that are new.

    Raises:
        MismatchError: the grids are of another tokenizer, or of a size that the denoiser cannot take.
        VqtoolError: an option asks for what the prior fixes, or the grids have no such texts.
    """
    for name in FIXED:
        if given.get(name) is not None:
            raise VqtoolError(
                f"`{name}` is that of the prior to begin with, {old.location}: leave it out, or train anew without "
                "`from_`"
            )
    check_codes(old, header)
    kernel, notes = _choose_kernel(old, given.get("kernel"), given.get("schedule"))
    if tuning.train == "null":
        batch, conditioner = replace(batch, labels=None, captions=None), old.conditioner
    else:
        conditioner, more = _choose_condition(old, sample_texts(batch), condition, given)
        notes += more
    if header.grid_size != old.grid_spec.grid_size:
        notes.append(f"grids of {size_text(header.grid_size)}: it knows those of {size_text(old.grid_spec.grid_size)}")
    changes: dict[str, Any] = {"grid_size": (header.grid_size[0], header.grid_size[1] * old.num_parts)}
    if given.get("dropout") is not None:
        changes |= {"dropout": check_dropout(given["dropout"], old.denoiser_name)}
    denoiser = _grow(old, conditioner, changes, with_null=tuning.train == "null", seed=seed)
    if kernel.has_mask and not denoiser.knows_mask:
        raise VqtoolError(f"`kernel` {kernel.name}: the denoiser of {old.location} has never seen a mask: leave it out")
    before = dict(old.denoiser.named_parameters())
    grown = [name for name, p in denoiser.named_parameters() if name not in before or p.shape != before[name].shape]
    if tuning.keep_adapter is not None and (grown or kernel is not old.kernel):
        raise VqtoolError(
            "`keep_adapter`: the run changes more than adapters hold, classes, a condition, positions or the kernel: "
            "leave it out, and take the prior that is written"
        )
    notes += tuning.begin(denoiser, grown, seed=seed)
    prior = replace(
        old, kernel=kernel, denoiser=denoiser, conditioner=conditioner, grid_spec=GridSpec.of(header), fingerprint="",
        location="", parent=old.fingerprint, summary={}, sampling=old.sampling if kernel is old.kernel else {},
    )  # fmt: skip
    data, held_out = build_data(batch, conditioner, prior.grid_spec, prior.split).split(seed)
    rate = choose_tuning_rate(old.denoiser_name, denoiser, small=tuning.is_small)
    settings = {"from_": old.fingerprint, **asdict(replace(tuning, keep_adapter=None))}
    return Beginning(prior, data, held_out, rate, f"of {old.location}", old.location, notes, settings)


def choose_tuning_rate(denoiser: str, network: Denoiser, *, small: bool) -> float:
    """The learning rate that suits a trained denoiser.

    Args:
        denoiser: one of denoisers.NAMES.
        network: of that kind.
        small: whether small parts beside the weights are learnt: they take the rate of fresh weights.
    """
    field = "width" if hasattr(network.config, "width") else "dim"
    sizes: dict[str, Any] = denoisers.module(denoiser).SIZES
    size = min(sizes, key=lambda name: abs(sizes[name][field] - getattr(network.config, field)))
    return choose_learning_rate(denoiser, size) * (1.0 if small else TUNING_SHARE)


def _grow(old: Prior, conditioner: Conditioner, changes: Mapping[str, Any], *, with_null: bool, seed: int) -> Denoiser:
    """A prior's denoiser for more conditions and other grids; with a null condition of its own, where that is asked."""
    before = vars(old.denoiser.config)
    new = {name: getattr(conditioner, name) for name in CONDITION_TABLES if hasattr(conditioner, name)}
    if with_null and conditioner.kind != "none":
        new |= {"learned_null": True, "text_length": getattr(conditioner, "max_length", 0)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fitting = {name: value for name, value in new.items() if name in before}
        denoiser = denoisers.build(old.denoiser_name, before | fitting | dict(changes))
    denoiser.take_over(old.denoiser)
    if denoiser.has_learned_null and not old.denoiser.has_learned_null:
        with torch.no_grad():
            denoiser.get_parameter("null_text").copy_(old.read_texts(conditioner.null(1))[0])
    return denoiser


def check_codes(start: Prior, header: GridHeader) -> None:
    """Raise MismatchError unless grids have the tokens that a prior models."""
    mine, theirs = start.grid_spec.tokenizer_fingerprint, header.tokenizer_fingerprint
    if (mine or theirs) != theirs or start.codebook_size != header.codebook_size:
        raise MismatchError(
            f"the grids have tokens of tokenizer {theirs} ({header.codebook_size} codes), but {start.location} models "
            f"those of {mine or 'another one'} ({start.codebook_size} codes): encode the images with "
            f"{start.grid_spec.tokenizer_location or 'that one'}, or, if the two differ in their codes only, bring the "
            f"prior to the new ones: `vqtool codebook transplant {start.location} -t {header.tokenizer_location}`"
        )


def _choose_kernel(start: Prior, kernel: str | None, schedule: str | None) -> tuple[Kernel, list[str]]:
    """The kernel of the prior, or the one that is asked for."""
    old = start.kernel
    name = kernel or old.name
    if schedule is None and name == old.name:
        return old, []
    made = kernels.build(name, schedule=schedule, codebook_size=old.codebook_size, num_steps=old.num_steps)
    if (made.name, made.schedule) == (old.name, old.schedule):
        return old, []
    was, now = (f"kernel {each.name} with schedule {each.schedule}" for each in (old, made))
    return made, [f"{now} in place of {was}"]


def _choose_condition(
    start: Prior, batch: GridBatch, options: ConditionOptions, given: Mapping[str, Any]
) -> tuple[Conditioner, list[str]]:
    """The prior's conditioner with what it lacks, or a new one where it has none; and what is new."""
    old = start.conditioner
    if old.kind == "none":
        made = options.build(batch, start.denoiser_name)
        return made, [] if made.kind == "none" else [f"a condition that {start.location} lacks: {made.kind}"]
    if options.condition not in ("auto", old.kind):
        raise VqtoolError(
            f"`condition` {options.condition}: {start.location} is asked for by {old.kind}: leave it out, or train "
            "anew without `from_`"
        )
    for name in ("vocabulary", "vocabulary_size"):
        if old.kind == "caption" and given.get(name) is not None:
            raise VqtoolError(f"`{name}` is that of the prior to begin with, {start.location}: leave it out")
    made = conditions.extend(old, batch.labels, batch.captions)
    has_labels = any(count_labels(batch.labels))
    known = has_labels if old.kind == "class" else any(batch.captions or ())
    if not known and (old.kind == "class" or options.condition == "caption"):
        has = "captions, but the grids have none" if old.kind == "caption" else "classes, but the grids have no labels"
        raise VqtoolError(f"{start.location} is asked for by {has}: encode images that have them, or train anew")
    if not known:
        notes = ["the grids have no captions: the prior learns to draw such pictures where none is given"]
        if has_labels:
            notes.append(f"classes are left out, which a new prior can learn: {start.location} takes captions")
        return made, notes
    warn_of_texts(made, batch)
    notes = []
    if old.kind == "class" and len(made.examples) > len(old.examples):
        notes = [f"{len(made.examples) - len(old.examples)} new classes beside the {len(old.examples)} that it knows"]
    return made, notes
