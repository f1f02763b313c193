"""Training of a prior on token grids: `objectives` says what is minimised, `building` what a fresh prior is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from vqtool import distributed
from vqtool.artifacts import history_record
from vqtool.denoisers import Denoiser
from vqtool.errors import VqtoolError, count_text, size_text, warn
from vqtool.grids import GridHeader
from vqtool.grids.found import find_grids, find_index
from vqtool.locks import claims
from vqtool.options import distribute, option
from vqtool.outputs import is_stream, refuse_existing
from vqtool.priors import Prior, load_prior
from vqtool.progress import Notify, Progress, ignore, silent
from vqtool.rng import check_seed
from vqtool.tokenizers import tokenizer_of
from vqtool.training import loop
from vqtool.training._preview import write_preview
from vqtool.training._validation import Validation, tell_kept
from vqtool.training.adapters import TuningOptions, adapter_of, merged
from vqtool.training.building import Beginning, ConditionOptions, DenoiserOptions, DiffusionOptions, begin
from vqtool.training.clock import Length, LoopConfig
from vqtool.training.data import FEW, MIN_GRIDS_TO_HOLD_OUT, GridData, read_data
from vqtool.training.objectives import VALIDATION_TIMES, PriorLoss, PriorObjective, check_loss, curve_of, validate
from vqtool.training.presets import settle
from vqtool.training.rehearsal import rehearse
from vqtool.training.runs import FittedRunOptions, MachineOptions, RunFiles, choose_length
from vqtool.training.texts import keep_texts
from vqtool.training.tuning import NEW, begins_with_builtin, go_on

MAX_PASSES = 300
VALIDATION_STEPS = 200  # between two measurements on the grids held out, at most
MIN_VALIDATIONS = 8  # measurements in a run
BOUND = "validation_bound"  # of grids held out
VALIDATION_SHARE = 0.02  # of the grids that a run learns from, at most, are measured in all of them together
# What a network's config has of the grids and not of its size.
OF_THE_GRIDS = ("codebook_size", "grid_size", "num_steps", "num_classes", "vocabulary_size", "max_length")


@dataclass(frozen=True, kw_only=True)
class PriorRunOptions(FittedRunOptions):
    """How long a run is, and which weights it leaves."""

    batch_size: int = option(64, "Grids a step.", minimum=1, flag="-b", advanced=True)
    keep: str | None = option(
        None, "Averaged weights to write: the last, or the best for grids held out.", choices=("last", "best"),
        shown="best where grids are held out", advanced=True,
    )  # fmt: skip
    early_stop: bool = option(
        True, "End where the best is long past and the bound on grids held out rises.", advanced=True
    )
    dry_run: bool = option(False, "Say what it would take (memory, steps an hour), and write nothing.", advanced=True)


@claims()
def train_prior(
    grids: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    from_: str | Path | None = None,
    tokenizer: str | None = None,
    seed: int = 0,
    resume: bool | str = False,
    force: bool = False,
    notify: Notify = ignore,
    progress: Progress = silent,
    report: Callable[[int, Mapping[str, float]], None] | None = None,
    **options: Any,
) -> Prior:
    """Train a discrete diffusion prior on token grids and write it, with log, state and preview beside it.

    Without steps and minutes a run passes 300 times through the grids, but takes no longer than 10 minutes on a CPU or
    30 on a GPU. The prior is on disk from the first look at the averaged weights on, of which there are eight or more:
    an interrupted run can be sampled.

    Args:
        grids: grid files, folders of them, globs or indexes, or "-" for stdin. More than 128 MB of tokens stay on disk.
        output: file to write.
        from_: prior to begin with, a file or "builtin"; "none" for fresh weights; None: the built-in one for fewer than
            2,000 grids of its tokenizer and size, unless classes or something of a new prior are asked for.
        tokenizer: draws the previews: a file or "builtin"; None for the one that the grids name.
        seed: of all noise.
        resume: go on with an interrupted run, exactly; "auto": if there is one, else begin.
        force: overwrite an earlier result or run.
        notify: is told, line by line, what is done.
        progress: shows the steps.
        report: is told (step, metrics) after each step.
        **options: of `DiffusionOptions`, `PriorLoss`, `DenoiserOptions`, `ConditionOptions`, `TuningOptions`,
            `PriorRunOptions`, `MachineOptions` and `PresetOptions`, by name.

    Returns:
        The prior as it was written (in the main process); with `dry_run` one without weights.

    Raises:
        VqtoolError: files are missing or in the way, or options do not go together.
        KeyboardInterrupt: after Ctrl-C, with the state saved; its text says so.
    """
    old = None if from_ in (None, NEW) else load_prior(from_)
    options, preset = settle(options, denoiser=None if old is None else old.denoiser_name, notify=notify)
    diffusion, loss, network, condition, tuning, run, machine = distribute(
        options, DiffusionOptions, PriorLoss, DenoiserOptions, ConditionOptions, TuningOptions, PriorRunOptions,
        MachineOptions,
    )  # fmt: skip
    check_seed(seed)
    files = RunFiles.open(output, resume=resume, force=force or run.dry_run)
    if tuning.keep_adapter is not None:
        refuse_existing(tuning.keep_adapter, force=force or files.resume, kind="an artifact")
    header, batch = read_data(grids)
    first = find_index(grids) or find_grids(grids)[0]
    if from_ is None and begins_with_builtin(header, batch, given=options, begun=files.begun, notify=notify):
        old = load_prior()
    if old is None:
        tuning.check_fresh()
        network = network.as_begun(files.begun)
        device = "meta" if run.dry_run else "cpu"
        start = begin(header, batch, diffusion, network, condition, seed=seed, preset=preset, device=device)
    else:
        start = go_on(old, header, batch, condition, tuning, given=options, seed=seed)
    data, held_out, place = start.data, start.held_out, output if is_stream(first) else first
    check_loss(loss, start.prior)
    _announce(start, notify)
    length = choose_length(run, files, default=choose_default(len(data), run.batch_size), notify=notify)
    config = choose_run(
        length, run=run, learning_rate=run.learning_rate or start.learning_rate, seed=seed, machine=machine,
        fresh=old is None, optimiser=preset.optimiser,
    )  # fmt: skip
    keep_best = choose_keep(run, files, held_out) == "best"
    if run.dry_run:
        rehearse(start.prior, loss, config, keep_best=keep_best, notify=notify)
        return start.prior
    prior = keep_texts(start.prior, [data, held_out], place, notify=notify, progress=progress)
    preview = _find_preview(prior, first, tokenizer, files)
    if not files.resume:
        notify(f"{files.output} is written on the way, eight times or more: it can be sampled meanwhile")
    save = partial(_save, start=start, header=header, output=files.output, adapter_file=tuning.keep_adapter, seed=seed)
    trained = fit(
        prior, data, loss=loss, run=config, state_path=files.state, log_path=files.log, resume=files.resume,
        held_out=held_out, keep_best=keep_best, early_stop=run.early_stop,
        keep=save, preview=preview, report=report, progress=progress, settings=start.settings,
    )  # fmt: skip
    trained = replace(trained, text_encoder=start.prior.text_encoder)
    return _finish(trained, save, preview, files, notify) if distributed.is_main_process() else trained


def _save(
    trained: Prior, *, start: Beginning, header: GridHeader, output: Path, adapter_file: str | None, seed: int
) -> Prior:
    """Write a trained prior, with its adapters merged, and these in a file of their own where that is named."""
    inputs = {"grids": start.data.digest(), "tokenizer": header.tokenizer_fingerprint}
    if trained.parent:
        inputs["prior"] = trained.parent
    before = [each for each in header.history if each not in trained.history]
    history = (*trained.history, *before, history_record("train-prior", inputs=inputs, seed=seed))
    if adapter_file is not None:
        adapter, tensors = adapter_of(trained.denoiser, trained.parent, start.location)
        adapter.save(adapter_file, tensors, history=history, force=True)
    denoiser = merged(trained.denoiser, trained.denoiser_name)
    return replace(trained, denoiser=denoiser, history=history).save(output, force=True)


def _finish(
    trained: Prior,
    save: Callable[[Prior], Prior],
    preview: Callable[[Prior, int], None],
    files: RunFiles,
    notify: Notify,
) -> Prior:
    """Write what a run has come to, then draw samples of it, which takes a while, and say so."""
    tell_kept(trained.summary, notify, is_new=not trained.parent)
    saved = save(trained)
    notify(f"wrote {files.output}: prior {saved.fingerprint}; log {files.log}")
    preview(saved, trained.summary["steps"])
    if files.preview.exists():
        notify(f"preview of its samples: {files.preview}")
    return saved


def _announce(start: Beginning, notify: Notify) -> None:
    prior, held_out = start.prior, start.held_out
    kernel, conditioner = prior.kernel, prior.conditioner
    texts = {"none": "no condition", "class": f"{len(conditioner.examples)} classes", "caption": "captions"}
    more = f" ({len(held_out)} more held out)" if held_out else ""
    parameters = sum(tensor.numel() for tensor in prior.denoiser.state_dict().values())
    of = size_text(prior.grid_spec.grid_size)
    notify(f"{count_text(len(start.data), 'grid')} of {of}{more}; {texts[conditioner.kind]}")
    notify(f"kernel {kernel.name}, schedule {kernel.schedule}, T = {kernel.num_steps}")
    notify(f"denoiser {prior.denoiser_name} {start.name}: {parameters / 1e6:.2f} M parameters")
    for note in start.notes:
        notify(note)
    if len(start.data) < FEW:
        _warn_of_copies(start.data)


def _warn_of_copies(data: GridData) -> None:
    """Warn where there is one grid to learn, or most grids are copies of others."""
    num, different = len(data), len({grid.tobytes() for grid in data.tokens_to_count()})
    if different == 1:
        which = "one grid" if num == 1 else f"{num} grids that are all the same"
        warn(f"{which} to learn from: the prior can learn to draw that one and no other")
    elif different < num / 2:
        warn(f"{count_text(num, 'grid')} to learn from, of which only {different} are different")


def _find_preview(prior: Prior, grids: str | Path, given: str | None, files: RunFiles) -> Callable[[Prior, int], None]:
    """What draws samples now and then; where the tokenizer is not found, a warning and nothing."""
    try:
        tokenizer = tokenizer_of(prior.grid_spec, grids, given=given)
    except VqtoolError as error:
        if given is not None:
            raise
        warn(f"no previews of samples: {error}")
        return lambda now, step: None
    return lambda now, step: files.draw(lambda path: write_preview(now, tokenizer, path))


def choose_run(
    length: Length,
    *,
    run: PriorRunOptions,
    learning_rate: float,
    seed: int,
    machine: MachineOptions,
    fresh: bool = True,
    optimiser: Mapping[str, Any] = MappingProxyType({}),
) -> LoopConfig:
    """How a run of that length goes: a tenth of it warms up, at most 100 steps, and a tenth of it is averaged.

    Args:
        length: of the run.
        run: what is asked for.
        learning_rate: at the end of the warm-up.
        seed: of the run.
        machine: what is asked of the GPU.
        fresh: whether the weights are: the average forgets the first of them soon.
        optimiser: what a preset says of it.

    Raises:
        VqtoolError: something for GPUs without one.
    """
    config = LoopConfig(
        length.steps, run.batch_size, learning_rate, warmup_share=0.1, ema_decay=0.9995, ema_share=0.1,
        ema_rises=fresh, seed=seed, preview_steps=run.preview_every, minutes=length.minutes,
        accumulate=run.accumulate, checkpoint=run.checkpoint, **machine.settings(),
    )  # fmt: skip
    return replace(config, **optimiser)


def choose_keep(run: PriorRunOptions, files: RunFiles, held_out: GridData | None) -> str:
    """Which weights a run leaves: those asked for, else those that it began with, else the best that can be told."""
    if run.keep is not None:
        return run.keep
    if files.begun is not None:
        return str(files.begun.get("keep", "last"))
    return "last" if held_out is None else "best"


def choose_default(num_grids: int, batch_size: int) -> Length:
    """The length of a run when nobody says: 300 passes through the grids, but no more than 10 minutes (GPU: 30)."""
    passes = max(1, MAX_PASSES * num_grids // batch_size)
    return Length(passes, 30.0 if torch.cuda.is_available() else 10.0)


def plan_validation(num_steps: int, batch_size: int) -> tuple[int, int]:
    """Steps between two looks at the averaged weights, and how many grids held out are measured, but eight at least."""
    every = max(1, min(VALIDATION_STEPS, num_steps // MIN_VALIDATIONS))
    calls = VALIDATION_SHARE * every * batch_size / VALIDATION_TIMES
    return every, max(8, int(calls))


def fit(
    prior: Prior,
    data: GridData,
    *,
    loss: PriorLoss,
    run: LoopConfig,
    state_path: Path,
    log_path: Path,
    resume: bool = False,
    held_out: GridData | None = None,
    keep_best: bool = False,
    early_stop: bool = False,
    keep: Callable[[Prior], object] | None = None,
    preview: Callable[[Prior, int], None] | None = None,
    report: Callable[[int, Mapping[str, float]], None] | None = None,
    progress: Progress = silent,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Prior:
    """Train a prior that is there.

    Args:
        prior: from `build_prior`; its denoiser is trained.
        data: what it learns from.
        loss: what is minimised.
        run: how the run goes.
        state_path: what `resume` reads.
        log_path: JSON-lines log.
        resume: go on from `state_path`.
        held_out: grids whose bound under the averaged weights is logged now and then.
        keep_best: keep the averaged weights with the lowest such bound, and not the last ones.
        early_stop: end where the best is long past and that bound rises; goes with `keep_best`.
        keep: is given the prior, as it would be if the run ended, eight times a run or more.
        preview: draws samples of the prior as it is, every `run.preview_steps` steps.
        report: is told (step, metrics).
        progress: shows the steps.
        settings: what else the run is made from, by the names that users know; a resume needs the same.

    Returns:
        The prior with the averaged weights, and a summary of the run.

    Raises:
        VqtoolError: the best is to be kept, and no grids are held out to tell.
    """
    if keep_best and held_out is None:
        raise VqtoolError(
            f"`keep` best goes with {MIN_GRIDS_TO_HOLD_OUT} grids or more, of which some are held out to tell; "
            f"these are {len(data)}"
        )
    objective = PriorObjective(prior, data, loss, run)
    measure = None if held_out is None else lambda model, count: validate(model, prior, held_out.thin(count), run.seed)
    plan = partial(plan_validation, batch_size=run.batch_size)
    validation = Validation(BOUND, plan, measure, keep_best, early_stop and keep_best)

    def finish(model: nn.Module, summary: Mapping[str, Any]) -> Prior:
        return replace(_with_denoiser(prior, model), summary={**summary, "num_grids": len(data)})

    result = loop.run(
        prior.denoiser,
        objective,
        num_items=len(data),
        order=data.order,
        config=run,
        state_path=state_path,
        log_path=log_path,
        data={"grids": f"{data.digest()}, {prior.kernel.codebook_size} codes"},
        settings={**settings, "keep": "best" if keep_best else "last", **_made_from(prior, loss)},
        resume=resume,
        memory=objective.history,
        validation=validation,
        keep=None if keep is None else lambda model, summary: keep(finish(model, summary)),
        preview=None if preview is None else lambda model, step: preview(_with_denoiser(prior, model), step),
        report=report,
        progress=progress,
        told=("loss", "bound", BOUND),
    )
    trained = finish(result.model.requires_grad_(False), result.summary)
    return trained if held_out is None else _measure(trained, held_out, run.seed, progress)


def _made_from(prior: Prior, loss: PriorLoss) -> dict[str, Any]:
    """What a run is made from, by the names that users know."""
    kernel, network = prior.kernel, asdict(prior.denoiser.config)
    return {
        "kernel": kernel.name,
        "schedule": kernel.schedule,
        "diffusion_steps": kernel.num_steps,
        "denoiser": prior.denoiser_name,
        "size": {name: value for name, value in network.items() if name not in OF_THE_GRIDS},
        "rule": prior.rule,
        "parameterisation": prior.parameterisation,
        "condition": prior.conditioner.kind,
        "vocabulary": prior.conditioner.config().get("vocabulary"),
        **asdict(loss),
    }


def _measure(trained: Prior, held_out: GridData, seed: int, progress: Progress) -> Prior:
    """A prior whose summary has the bound of all grids held out, and how much of it each t adds."""
    on_device = trained.denoiser.to(distributed.choose_device("auto"))
    by_time = torch.zeros(2, trained.kernel.num_steps + 1).double()
    with progress("measure", len(held_out) * VALIDATION_TIMES, "grids") as advance:
        bound = float(validate(on_device, trained, held_out, seed, advance, by_time))
    trained.denoiser.cpu()
    measured = {BOUND: bound, "num_held_out": len(held_out), "curve": curve_of(trained, by_time)}
    return replace(trained, summary={**trained.summary, **measured})


def _with_denoiser(prior: Prior, model: nn.Module) -> Prior:
    if not isinstance(model, Denoiser):
        raise ValueError(f"a {type(model).__name__} is no denoiser")
    return replace(prior, denoiser=model)
