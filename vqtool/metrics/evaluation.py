"""`evaluate`: what there is to measure of images or token grids; the inputs and parameters say which of five things.

| inputs | parameters | measured by |
|---|---|---|
| images | ref | features of both sides: `compare_images` |
| images | ref, paired | pixels of equal names: `compare_pairs` |
| images | tokenizer | images encoded and decoded again: `measure_reconstruction` |
| token grids | ref, or none | token histograms: `measure_grids` |
| token grids | likelihood, prior | bits per token under a prior: `measure_likelihood` |
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vqtool.distributed import choose_device
from vqtool.errors import VqtoolError
from vqtool.images import OnError, SourceOptions, Tally, find_images, parse_size
from vqtool.images.sources import holds_grids
from vqtool.images.sources.options import refuse_for_grids
from vqtool.metrics import features
from vqtool.metrics.likelihood import DEFAULT_TIMES, measure_likelihood
from vqtool.metrics.plots import check_matplotlib, plot_curve
from vqtool.metrics.reconstruction import measure_reconstruction
from vqtool.metrics.reference import compare_images, compare_pairs
from vqtool.metrics.report import Report
from vqtool.metrics.score import metric_options
from vqtool.metrics.tokens import measure_grids
from vqtool.options import Checked, distribute, option
from vqtool.outputs import refuse_existing
from vqtool.priors import Prior, find_prior, load_prior
from vqtool.progress import Notify, Progress, ignore, silent
from vqtool.tokenizers import Tokenizer, load_tokenizer
from vqtool.version import __version__

Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Checked):
    """How images are scored."""

    tokenizer: str | Path | Tokenizer | None = option(None, "Score this tokenizer on the images.", flag="-t")
    paired: bool = option(False, "PSNR of equal names, no features.")
    size: str | None = option(None, "Pixels, 64 or 48x80.", shown="their own, or 64")
    max_images: int = option(10_000, "At most so many a side.", minimum=2, advanced=True)


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions(Checked):
    """How token grids are scored under a prior."""

    likelihood: bool = option(False, "Bits per token of grids under a prior.")
    prior: Path | Prior | None = option(None, "The prior.", shown="prior.safetensors, else builtin")
    times: int | None = option(None, "Timesteps a grid; T or more is all.", shown="16", minimum=1, advanced=True)
    unconditional: bool = option(False, "Tell the prior no labels and no captions.", advanced=True)
    plot: Path | None = option(None, "PNG file: what each t adds to the bits.")


def evaluate(
    sources: Paths,
    *,
    ref: Paths = (),
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
    on_error: OnError | None = None,
    notify: Notify = ignore,
    progress: Progress = silent,
    **chosen: Any,
) -> Report:
    """Score images or token grids.

    Args:
        sources: images (folders, files, tar shards, HDF5), or files of token grids ("-" is standard input).
        ref: what to compare with, of the same kind.
        seed: of which images are taken, of subsets, and of the noise of a likelihood.
        device: "cpu", "cuda", or "auto" for a CUDA GPU if there is one.
        force: overwrite the file of `plot`.
        on_error: called for each image that cannot be read, which is then left out; None: raise.
        notify: is told if the built-in prior is used.
        progress: shows how far it is.
        chosen: fields of `ImageOptions`, `LikelihoodOptions` and `SourceOptions`, or options of metrics such as
            `nearest_k`.

    Returns:
        The scores, and all that they depend on.

    Raises:
        FormatError: token grids that are damaged.
        MismatchError: inputs that do not belong together.
        VqtoolError: parameters that do not go with the inputs or with each other, or nothing to measure.
    """
    kinds = (SourceOptions, ImageOptions, LikelihoodOptions)
    source_options, about_images, about_likelihood, *_ = distribute(chosen, *kinds, *metric_options())
    known = {*vars(source_options), *vars(about_images), *vars(about_likelihood)}
    of_metrics = {name: value for name, value in chosen.items() if name not in known}
    paths, others = _paths(sources), _paths(ref)
    kind = _check_kinds(paths, others, about_images)
    _check_likelihood(paths[0], others, kind, about_likelihood)
    if kind == "grids":
        refuse_for_grids(source_options, paths[0])
    if about_likelihood.plot is not None:
        refuse_existing(about_likelihood.plot, force=force, kind="a PNG image")
        check_matplotlib()
    tally = on_error if isinstance(on_error, Tally) else Tally(on_error)
    before = len(tally.skipped)
    common: dict[str, Any] = {"seed": seed, "progress": progress}
    if kind == "images":
        common["on_error"] = None if on_error is None else tally
        common["source_options"] = source_options
        report = _measure_images(paths, others, about_images, choose_device(device), **common, **of_metrics)
    elif about_likelihood.likelihood:
        report = _measure_likelihood(
            paths, about_likelihood, choose_device(device), force=force, notify=notify, **common
        )
    else:
        report = measure_grids(paths, others, progress=progress)
    inputs = {"inputs": list(map(str, paths)), "reference_inputs": list(map(str, others))}
    about = {"vqtool": __version__, **inputs, **report.about, "num_skipped": len(tally.skipped) - before}
    return replace(report, about=about)


def _paths(sources: Paths) -> list[str | Path]:
    return [sources] if isinstance(sources, str | Path) else list(sources)


def _check_kinds(sources: Sequence[str | Path], ref: Sequence[str | Path], options: ImageOptions) -> str:
    """What is to be scored, "images" or "grids"."""
    if not sources:
        raise VqtoolError("nothing to score: give images or token grids")
    kinds = {path: "grids" if holds_grids(path) else "images" for path in [*sources, *ref]}
    kind = kinds[sources[0]]
    for path, other in kinds.items():
        if other != kind:
            names = {"grids": "token grids", "images": "images"}
            raise VqtoolError(
                f"{sources[0]} holds {names[kind]}, {path} {names[other]}: compare like with like; "
                "`vqtool decode` makes images of token grids, `vqtool encode` token grids of images"
            )
    for name in ("tokenizer", "paired", "size") if kind == "grids" else ():
        if getattr(options, name):
            raise VqtoolError(f"`{name}` is for images, but {sources[0]} holds token grids")
    if options.tokenizer is not None and ref:
        raise VqtoolError("`ref` scores images, `tokenizer` the tokenizer: give one of them")
    if options.paired and not ref:
        raise VqtoolError("`paired` needs originals to compare with: add `ref`")
    if kind == "images" and options.tokenizer is None and not ref:
        raise VqtoolError(
            f"{sources[0]}: images alone have no score: add `ref` with images to compare with, or `tokenizer`"
        )
    return kind


def _check_likelihood(source: str | Path, ref: Sequence[str | Path], kind: str, options: LikelihoodOptions) -> None:
    for name in ("prior", "times", "unconditional", "plot"):
        if getattr(options, name) and not options.likelihood:
            raise VqtoolError(f"`{name}` is for `likelihood`, which is not given: add it, or leave `{name}` out")
    if options.likelihood and kind != "grids":
        raise VqtoolError(f"`likelihood` is for token grids, but {source} holds images: encode them first")
    if options.likelihood and ref:
        raise VqtoolError("`likelihood` compares token grids with a prior, not with others: leave `ref` out")


def _measure_images(
    sources: Sequence[str | Path], ref: Sequence[str | Path], options: ImageOptions, device: str, **common: Any
) -> Report:
    size = None if options.size is None else parse_size(str(options.size), "`size`")
    chosen: SourceOptions = common.pop("source_options")
    how: dict[str, Any] = {"options": chosen, "words": "none", "on_error": common["on_error"]}
    common["fit"] = chosen.fit
    if options.tokenizer is not None:
        tokenizer = options.tokenizer
        if not isinstance(tokenizer, Tokenizer):
            tokenizer = load_tokenizer(tokenizer)
        size = size or tokenizer.usual_size
        tokenizer = tokenizer.to(device)
        return measure_reconstruction(
            find_images(sources, **how), tokenizer, size=size, max_images=options.max_images, **common
        )
    images = find_images(sources, leave_out=[path for path in ref if Path(path).is_dir()], **how)
    reference = find_images(ref, leave_out=sources, **how)
    if options.paired:
        del common["seed"]
        return compare_pairs(images, reference, size=size, **common)
    network = features.load_features(device=device)
    return compare_images(images, reference, network, size=size, max_images=options.max_images, **common)


def _measure_likelihood(
    sources: Sequence[str | Path],
    options: LikelihoodOptions,
    device: str,
    *,
    force: bool,
    notify: Notify,
    **common: Any,
) -> Report:
    prior = options.prior
    if not isinstance(prior, Prior):
        prior = load_prior(find_prior(prior, notify=notify))
    times = DEFAULT_TIMES if options.times is None else options.times
    report = measure_likelihood(prior.to(device), sources, times=times, conditional=not options.unconditional, **common)
    if options.plot is not None:
        plot_curve(report.about["curve"], options.plot, force=force)
    return report
