"""`compare`: samplers compared on one prior, by network calls, seconds and scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vqtool.artifacts import text_digest
from vqtool.distributed import choose_device
from vqtool.errors import VqtoolError, count_text, warn
from vqtool.images import OnError, SourceOptions
from vqtool.images.sources.options import given
from vqtool.metrics.compare import scores, trials
from vqtool.metrics.compare.file import Comparison, Trial, check_output
from vqtool.metrics.features.options import FeatureOptions
from vqtool.metrics.plots import check_matplotlib, plot_front
from vqtool.metrics.score import metric_options
from vqtool.options import distribute, option, options_of
from vqtool.outputs import refuse_existing
from vqtool.priors import Prior, load_prior
from vqtool.progress import Notify, Progress, ignore, silent
from vqtool.samplers import Guidance, _machine, choose_texts, describe, leave_out_guidance, load_second, sample_batches
from vqtool.samplers._published import published, shown
from vqtool.samplers._texts import in_turn
from vqtool.tokenizers import _onnx, tokenizer_of
from vqtool.version import __version__

LONGEST_LIST = 64  # steps or seeds


@dataclass(frozen=True, kw_only=True)
class TrialOptions(FeatureOptions):
    """How much is measured."""

    steps: tuple[int, ...] = option((8, 16, 32, 64), "Calls, for samplers that can be told.")
    num: int = option(256, "Pictures for each seed.", minimum=2, flag="-n")
    seeds: tuple[int, ...] = option((0, 1, 2), "Of all noise; several give error bars.")
    max_images: int = option(2048, "Images to score against, at most.", minimum=2, advanced=True)
    batch_size: int = option(64, "Pictures drawn at once.", minimum=1, flag="-b", advanced=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("steps", 1), ("seeds", 0)):
            found = tuple(dict.fromkeys(getattr(self, name)))
            if not found or not all(least <= number < 2**63 for number in found) or len(found) > LONGEST_LIST:
                text = ",".join(map(str, found))
                raise VqtoolError(f"`{name}` {text}: at most {LONGEST_LIST} numbers from {least} on are expected")
            object.__setattr__(self, name, found)


def compare(
    prior: Prior | str | Path,
    *,
    sampler: Sequence[str] = (),
    options: Mapping[str, Sequence[Any]] | Sequence[str] = (),
    ref: Sequence[str | Path] = (),
    labels: Sequence[str] | None = None,
    captions: Sequence[str] | None = None,
    tokenizer: str | Path | None = None,
    device: str = "auto",
    output: str | Path | None = None,
    plot: str | Path | None = None,
    resume: bool | str = False,
    force: bool = False,
    on_error: OnError | None = None,
    notify: Notify = ignore,
    progress: Progress = silent,
    **chosen: Any,
) -> Comparison:
    """Compare samplers: network calls, seconds and scores of each.

    Args:
        prior: what is sampled; if it is a file, it goes to `device`.
        sampler: names of samplers; none for all that go with the prior.
        options: what else to vary, such as {"purity_weight": [0, 1]}, or as commands take it: ["purity-weight=0,1"].
        ref: images to score against, or one file of their features, .npy or as `eval stats` keeps them; none for calls
            and seconds alone.
        labels: that are drawn in turn. None with `captions` None: the prior's own examples.
        captions: that are drawn in turn.
        tokenizer: decodes the grids; None: the one that the prior names.
        device: for a prior that is a file.
        output: JSON file to write; a row is in it as soon as it is measured.
        plot: PNG file to draw the scores over the calls to.
        resume: keep the rows that `output` has already, and measure the rest; "auto": if it is there.
        force: overwrite what is there.
        on_error: called for each image that cannot be read, which is then left out; None: raise.
        notify: is told what is drawn, and what was measured before.
        progress: shows how far it is.
        chosen: fields of `TrialOptions`; of `SourceOptions`, for `ref`; of `samplers.Guidance`, the same for all
            trials; or options of metrics.

    Returns:
        The rows; a warning says what was left out and why.

    Raises:
        MismatchError: the rows to resume depend on something else.
        VqtoolError: what is asked for is not possible, or no trial could be measured.
    """
    wanted, of_images, guidance, of_metrics = _distribute(chosen)
    path, references = None if output is None else Path(output), _paths(ref)
    resume = _check_resume(resume, path)
    _check_files(path, plot, references, resume=resume, force=force)
    if given(of_images) and not references:
        raise VqtoolError(f"`{next(iter(given(of_images)))}` is for images of `ref`, which is not given")
    model = prior if isinstance(prior, Prior) else load_prior(prior).to(choose_device(device))
    varied = trials.parse_options(options) if not isinstance(options, Mapping) else options
    model, runtime = _machine.use_runtime(model, wanted.runtime)
    planned, notes = trials.plan(model, sampler, wanted.steps, varied)
    for note in notes:
        warn(note)
    texts = choose_texts(model, labels, captions, notify)
    settings = _choose_settings(model, guidance, planned, varied, has_condition=bool(texts))
    theirs = published(model, "", {**varied, **settings}, has_condition=bool(texts))  # what goes with any sampler
    if theirs:
        notify(shown(describe(theirs)))
    settings = {**theirs, **settings}
    extra = {**describe(settings), **given(of_images), **of_metrics}
    about = _describe(model, wanted, references, texts, extra, runtime)
    results = Comparison(path, about, resume=resume, force=force)
    left = [trial for trial in planned if not results.has(trial)]
    arguments: dict[str, Any] = {"num": wanted.num, "seeds": list(wanted.seeds), "batch_size": wanted.batch_size}
    arguments |= {"condition": in_turn(model, texts), "runtime": runtime, **settings}
    if references and left:
        decoder = tokenizer_of(model.grid_spec, model.location or None, given=tokenizer).to(model.device)
        decoder, _ = _onnx.use_runtime(decoder, runtime, ["decoder"])
        how: dict[str, Any] = {"source_options": of_images, "on_error": on_error, "progress": progress, **of_metrics}
        how |= {"max_images": wanted.max_images, "of_features": replace(wanted, runtime=runtime)}
        arguments["score"] = scores.build(decoder, references, model.grid_spec.image_size, **how)
    _measure(model, left, arguments, results, notify, progress)
    if plot is not None:
        plot_front(results.rows, results.scores, plot, force=force or resume)
    return results


def _distribute(chosen: dict[str, Any]) -> tuple[TrialOptions, SourceOptions, dict[str, Any], dict[str, Any]]:
    """The options of trials and of images, and those of guidance and of metrics that are given."""
    guidance = {each.name: chosen.pop(each.name) for each in options_of(Guidance) if each.name in chosen}
    wanted, of_images, *_ = distribute(chosen, TrialOptions, SourceOptions, *metric_options())
    known = {*vars(wanted), *vars(of_images)}
    return wanted, of_images, guidance, {name: value for name, value in chosen.items() if name not in known}


def _check_resume(resume: bool | str, path: Path | None) -> bool:
    if resume not in (True, False, "auto"):
        raise VqtoolError(f"`resume` {resume}: True, False or auto is expected")
    return resume is True or (resume == "auto" and path is not None and path.exists())


def _describe(
    prior: Prior,
    wanted: TrialOptions,
    references: Sequence[str | Path],
    texts: Sequence[str] | None,
    extra: Mapping[str, Any],
    runtime: str,
) -> dict[str, Any]:
    """What all rows depend on."""
    defaults = FeatureOptions()
    of_features = {name: getattr(wanted, name) for name in ("features", "weights", "resize")}
    return {
        "vqtool": __version__,
        "prior": prior.fingerprint,
        "captions": text_digest(texts) if texts else None,
        "device": str(prior.device),
        "reference": list(map(str, references)),
        "max_images": wanted.max_images if references else None,
        "num": wanted.num,
        "seeds": list(wanted.seeds),
        "batch_size": wanted.batch_size,
        "cfg_scale": 1.0,
        **extra,
        **({} if runtime == "torch" else {"runtime": runtime}),
        **{name: str(value) for name, value in of_features.items() if value != getattr(defaults, name)},
    }


def _paths(ref: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [ref] if isinstance(ref, str | Path) else list(ref)


def _check_files(
    output: Path | None, plot: str | Path | None, ref: Sequence[str | Path], *, resume: bool, force: bool
) -> None:
    check_output(output, resume=resume, force=force)
    if plot is not None:
        if not ref:
            raise VqtoolError("`plot` draws scores, and without `ref` there are none: name images to score against")
        refuse_existing(plot, force=force or resume, kind="a PNG image")
        check_matplotlib()


def _choose_settings(
    prior: Prior,
    guidance: Mapping[str, Any],
    planned: Sequence[Trial],
    varied: Mapping[str, Sequence[Any]],
    *,
    has_condition: bool,
) -> dict[str, Any]:
    """What guides all trials alike.

    Raises:
        VqtoolError: something that is varied too, or that goes with no trial.
    """
    settings = leave_out_guidance(prior, load_second(prior, guidance), has_condition=has_condition)
    for name in (name for name in varied if name in settings):
        raise VqtoolError(f"`{name}` and `option` {name.replace('_', '-')} both say it: leave one out")
    trials.check_settings(prior, planned, settings)
    return settings


def _measure(
    prior: Prior,
    left: Sequence[Trial],
    arguments: Mapping[str, Any],
    results: Comparison,
    notify: Notify,
    progress: Progress,
) -> None:
    """Measure the trials, each of which is kept at once; those that are not possible are named and left out."""
    failed: VqtoolError | None = None
    if results.rows:
        notify(
            f"{count_text(len(results.rows), 'trial')} {'was' if len(results.rows) == 1 else 'were'} measured before"
        )
    if left:
        list(sample_batches(prior, 1, steps=1))  # what is slow the first time counts for no trial
    with progress("compare", len(left), "trials") as advance:
        for trial in left:
            try:
                row = trials.measure_trial(prior, trial, **arguments)
            except KeyboardInterrupt as interruption:
                results.tell_kept(interruption)
                raise
            except VqtoolError as error:
                failed = error
                warn(f"left out: {_named(trial)}: {error}")
            else:
                results.add(row)
            advance(1)
    if failed is not None and not results.rows:
        raise VqtoolError(f"no trial could be measured; the last one: {failed}") from failed


def _named(trial: Trial) -> str:
    return trial.series if trial.steps is None else f"{trial.series}, {count_text(trial.steps, 'step')}"
