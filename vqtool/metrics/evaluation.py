"""`evaluate`: what there is to measure of images or token grids; inputs and parameters choose one job of `jobs`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vqtool import runtimes
from vqtool.distributed import choose_device
from vqtool.errors import VqtoolError
from vqtool.images import OnError, SourceOptions, Tally
from vqtool.metrics.card import Card
from vqtool.metrics.jobs import ImageOptions, LikelihoodOptions, Request, check, choose
from vqtool.metrics.page import write_page
from vqtool.metrics.report import Report
from vqtool.metrics.saved import kind_of
from vqtool.metrics.score import metric_options
from vqtool.options import distribute
from vqtool.outputs import refuse_existing
from vqtool.products import Computation
from vqtool.progress import Notify, Progress, ignore, silent
from vqtool.version import __version__

Paths = str | Path | Sequence[str | Path]


def evaluate(
    sources: Paths,
    *,
    ref: Paths = (),
    report: str | Path | None = None,
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
        sources: images (folders, files, tar shards, HDF5, arrays), files of token grids ("-" is standard input), or
            one .npz of saved features or statistics.
        ref: what to compare with; token grids are decoded where the other side is none.
        report: a page (.html) to write: scores, card, samples beside their neighbours, outliers, curves.
        seed: of which images are taken, of subsets, and of the noise of a likelihood.
        device: "cpu", "cuda", or "auto" for a CUDA GPU if there is one.
        force: overwrite the files of `report` and `plot`.
        on_error: called for each image that cannot be read, which is then left out; None: raise.
        notify: is told if the built-in prior is used.
        progress: shows how far it is.
        chosen: fields of `ImageOptions`, `LikelihoodOptions` and `SourceOptions`, or options of metrics such as
            `nearest_k`.

    Returns:
        The scores, and all that they depend on.

    Raises:
        FormatError: token grids or saved features that are damaged.
        MismatchError: inputs that do not belong together.
        VqtoolError: parameters that do not go with the inputs or with each other, or nothing to measure.
    """
    kinds = (SourceOptions, ImageOptions, LikelihoodOptions)
    source_options, about_images, about_likelihood, *_ = distribute(chosen, *kinds, *metric_options())
    known = {*vars(source_options), *vars(about_images), *vars(about_likelihood)}
    paths, others = _paths(sources), _paths(ref)
    if not paths:
        raise VqtoolError("nothing to score: give images or token grids")
    if report is not None:
        refuse_existing(report, force=force, kind="a page")
    tally = on_error if isinstance(on_error, Tally) else Tally(on_error)
    before = len(tally.skipped)
    device = choose_device(device)
    runtime = runtimes.choose(about_images.runtime, torch.device(device))
    computation = about_images.choose(torch.device(device))
    request = Request(
        sources=paths,
        ref=others,
        kinds=[kind_of(path) for path in [*paths, *others]],
        images=about_images,
        likelihood=about_likelihood,
        source_options=source_options,
        of_metrics={name: value for name, value in chosen.items() if name not in known},
        seed=seed,
        device=device,
        computation=computation,
        exhibits=report is not None,
        force=force,
        on_error=None if on_error is None else tally,
        notify=notify,
        progress=progress,
    )
    check(request)
    found = choose(request)(request)
    about = {"runtime": runtime, **found.about, "num_skipped": len(tally.skipped) - before}
    found = replace(found, about=_about(paths, others, about), card=_complete(found.card, computation))
    if report is not None:
        write_page(found, report, force=force)
    return found


def _about(paths: Sequence[str | Path], others: Sequence[str | Path], found: dict[str, Any]) -> dict[str, Any]:
    """What every report says of itself; of PyTorch, the usual runtime, nothing is said."""
    inputs = {"inputs": list(map(str, paths)), "reference_inputs": list(map(str, others))}
    about = {"vqtool": __version__, **inputs, **found}
    if about["runtime"] == "torch":
        del about["runtime"]
    return about


def _complete(card: Card | None, computation: Computation) -> Card | None:
    """A card that says how its networks computed; that of images has it from their features."""
    if card is None or card.measure == "images" or not card.precision:
        return card
    return replace(card, precision=str(computation))


def _paths(sources: Paths) -> list[str | Path]:
    return [sources] if isinstance(sources, str | Path) else list(sources)
