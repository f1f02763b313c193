"""`vqtool compare`: prior -> calls, seconds and scores of several samplers."""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtool.cli.flags import FlagGroup, numbers
from vqtool.cli.main import command
from vqtool.cli.options import Captions, Device, Force, Labels, Strict, TokenizerOption
from vqtool.cli.sampling import GUIDANCE, text_arguments
from vqtool.errors import VqtoolError

if TYPE_CHECKING:
    from torch import Tensor

    from vqtool.cli.inputs import Skipped
    from vqtool.metrics.compare.file import SweepFile
    from vqtool.metrics.compare.scores import ImageScores
    from vqtool.metrics.compare.trials import Cell
    from vqtool.priors import Prior
    from vqtool.samplers import Rows

LONGEST_LIST = 64  # steps or seeds
WIDTH = 200  # characters, where there is no terminal
_COLUMNS = {"calls": "calls", "seconds": "s a picture", "network_seconds": "network s"}


@command
def compare(
    *,
    prior: Annotated[Path, typer.Argument(help="Prior file.")] = Path("prior.safetensors"),
    sampler: Annotated[
        list[str] | None,
        typer.Option("--sampler", help="Repeat for several. Default: all, those that go with the prior."),
    ] = None,
    steps: Annotated[str, typer.Option("--steps", help="Network calls, for samplers that can be told.")] = "8,16,32,64",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="NAME=VALUE,VALUE: another thing to vary, as in purity-weight=0,1,2. Repeat."),
    ] = None,
    ref: Annotated[
        list[Path] | None,
        typer.Option("--ref", help="Images to score against, or a .npy file of their features. May be repeated."),
    ] = None,
    max_images: Annotated[int, typer.Option("--max-images", min=2, help="Of --ref, at most so many.")] = 2048,
    num: Annotated[int, typer.Option("--num", "-n", min=2, help="Pictures for each seed.")] = 256,
    seeds: Annotated[str, typer.Option("--seeds", help="Of all noise; several give error bars.")] = "0,1,2",
    labels: Labels = None,
    captions: Captions = None,
    captions_file: Annotated[
        Path | None, typer.Option("--captions", help="File of captions or labels. Default: the prior's own examples.")
    ] = None,
    guidance: Annotated[dict[str, Any], GUIDANCE],
    metric_options: Annotated[dict[str, Any], FlagGroup.of_registered("metrics", what="Metric")],
    tokenizer: TokenizerOption = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, help="Pictures drawn at once.")] = 64,
    device: Device = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write; - is stdout.")] = Path("-"),
    plot: Annotated[
        Path | None, typer.Option("--plot", help="PNG file of the scores against the calls.", show_default=False)
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what is in the JSON file already, and measure the rest.")
    ] = False,
    strict: Strict = False,
    force: Force = False,
) -> None:
    """Compare samplers: network calls, seconds and scores of each.

    With --ref also every metric of `eval`, on EfficientNet-Lite0 features of pictures decoded in memory. A line of
    the table is in the JSON file as soon as it is measured; --resume goes on, with further samplers and steps too.
    Guidance is the same for all lines, but for what --option varies.

    Examples:

        vqtool compare --ref imgs/ -o compare.json --plot front.png

        vqtool compare --sampler ancestral --sampler purity --steps 8,16 --option purity-weight=0,1,2 -n 64 --seeds 0

        vqtool compare --ref imgs/ --label 7 --cfg-interval 0.2,0.8 --option cfg-scale=2,3,5 -o guidance.json
    """
    from vqtool.cli.console import echo
    from vqtool.cli.inputs import Skipped
    from vqtool.distributed import choose_device, is_main_process
    from vqtool.metrics.compare import trials
    from vqtool.metrics.compare.file import SweepFile
    from vqtool.priors import load_prior
    from vqtool.samplers import choose_texts, describe

    path = None if str(output) == "-" else output
    told, each = parse_numbers("--steps", steps, least=1), parse_numbers("--seeds", seeds, least=0)
    options = parse_options(option or [])
    _check_files(path, plot, ref, resume=resume, force=force)
    if not is_main_process():  # seconds are those of one process
        return
    skipped, where = Skipped(strict), choose_device(device)
    model = load_prior(prior).to(where)
    cells, notes = trials.plan(model, sampler or [trials.ALL], told, options)
    for note in notes:
        echo(note)
    arguments: dict[str, Any] = {"num": num, "seeds": each, "batch_size": batch_size}
    texts = choose_texts(model, **text_arguments(model, labels, captions, captions_file), notify=echo)
    settings = _choose_settings(model, guidance, cells, options, has_condition=bool(texts))
    about = _describe(model, texts, ref, max_images) | arguments | {"cfg_scale": 1.0, **describe(settings)}
    about |= metric_options
    arguments |= {"condition": _condition(model, texts), **settings}
    results = SweepFile(path, about, resume=resume, force=force)
    left = [cell for cell in cells if not any(cell.is_row(row) for row in results.rows)]
    if ref and left:
        arguments["score"] = _build_scores(model, prior, tokenizer, ref, max_images, skipped, metric_options)
    _measure(model, left, arguments, results)
    _report(results, path, plot, force=force or resume)
    skipped.finish()


def parse_numbers(flag: str, text: str, *, least: int) -> list[int]:
    """Whole numbers from a list with commas, each once.

    Raises:
        VqtoolError: it is none, or a number is too small.
    """
    found = list(dict.fromkeys(numbers(flag, text, int)))
    if not all(least <= number < 2**63 for number in found) or len(found) > LONGEST_LIST:
        raise VqtoolError(f"{flag} {text}: at most {LONGEST_LIST} numbers from {least} on are expected")
    return found


def parse_options(texts: Sequence[str]) -> dict[str, list[Any]]:
    """Options from lines such as purity-weight=0,1,2: name -> values, numbers where they are numbers.

    Raises:
        VqtoolError: not of this form, or an option twice.
    """
    options: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().lstrip("-").replace("-", "_")
        if not (equals and name and all(value.strip() for value in values.split(","))) or name in options:
            raise VqtoolError(f"--option {text}: NAME=VALUE,VALUE is expected, each NAME once")
        options[name] = list(dict.fromkeys(_parse(value.strip()) for value in values.split(",")))
    return options


def _parse(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float) else text


def _check_files(
    output: Path | None, plot: Path | None, ref: Sequence[Path] | None, *, resume: bool, force: bool
) -> None:
    from vqtool.artifacts import refuse_existing
    from vqtool.metrics.compare.file import check_sweep_file
    from vqtool.metrics.plots import check_matplotlib

    check_sweep_file(output, resume=resume, force=force)
    if plot is not None:
        if not ref:
            raise VqtoolError("--plot draws scores, and without --ref there are none: name images to score against")
        refuse_existing(plot, force=force or resume)
        check_matplotlib()


def _choose_settings(
    model: "Prior",
    guidance: Mapping[str, Any],
    cells: "Sequence[Cell]",
    options: Mapping[str, Sequence[Any]],
    *,
    has_condition: bool,
) -> dict[str, Any]:
    """What guides all cells alike.

    Raises:
        VqtoolError: a flag that --option varies too, or that goes with no cell.
    """
    from vqtool.metrics.compare.trials import check_settings
    from vqtool.samplers import leave_out_guidance, load_second

    settings = leave_out_guidance(model, load_second(model, guidance), has_condition=has_condition)
    if settings.get("cfg_scale") == 1.0:
        del settings["cfg_scale"]  # the default, which --option may vary
    for flag in (name.replace("_", "-") for name in options if name in settings):
        raise VqtoolError(f"--{flag} and --option {flag} both say it: leave one out")
    check_settings(model, cells, settings)
    return settings


def _condition(model: "Prior", texts: Sequence[str]) -> "Rows | None":
    """What is drawn: labels or captions in turn."""

    def encode(samples: range) -> "Tensor":
        return model.conditioner.encode([texts[number % len(texts)] for number in samples])

    return encode if texts else None


def _describe(model: "Prior", texts: Sequence[str], ref: Sequence[Path] | None, max_images: int) -> dict[str, Any]:
    """All that the rows depend on, beside what the library is told."""
    from vqtool.artifacts import text_digest
    from vqtool.version import __version__

    return {
        "vqtool": __version__,
        "prior": model.fingerprint,
        "captions": text_digest(texts) if texts else None,
        "device": str(model.device),
        "reference": [str(path) for path in ref or []],
        "max_images": max_images if ref else None,
    }


def _build_scores(
    model: "Prior",
    prior: Path,
    tokenizer: str | None,
    ref: Sequence[Path],
    max_images: int,
    skipped: "Skipped",
    options: Mapping[str, Any],
) -> "ImageScores":
    from vqtool import metrics
    from vqtool.cli.console import progress
    from vqtool.images import find_images
    from vqtool.metrics.compare import scores
    from vqtool.tokenizers import tokenizer_of

    grid_spec = model.grid_spec
    decoder = tokenizer_of(grid_spec, prior, given=tokenizer)
    network = metrics.EfficientNetLite0(model.device)
    if [path.suffix for path in ref] == [".npy"]:
        features = scores.read_features(ref[0], network)
    else:
        features = scores.reference_features(
            find_images(ref, words="none", on_error=skipped.on_error),
            network,
            grid_spec.image_size,
            max_images=max_images,
            on_error=skipped.on_error,
            progress=progress,
        )
    return scores.ImageScores(decoder.to(model.device), network, features, **options)


def _measure(model: "Prior", cells: "Sequence[Cell]", arguments: Mapping[str, Any], results: "SweepFile") -> None:
    """Measure the cells, each of which is kept at once; those that are not possible are named and left out."""
    from vqtool.cli.console import echo, progress
    from vqtool.metrics.compare import trials
    from vqtool.samplers import sample_batches

    failed: VqtoolError | None = None
    if results.rows:
        echo(f"{len(results.rows)} cells were measured before")
    if cells:
        list(sample_batches(model, 1, steps=1))  # what is slow the first time is nobody's seconds
    with progress("compare", len(cells), "cells") as advance:
        for cell in cells:
            try:
                results.add(trials.measure_cell(model, cell, **arguments))
            except VqtoolError as error:
                failed = error
                echo(f"left out: {cell.series}, {cell.steps} steps: {error}")
            advance(1)
    if failed is not None and not results.rows:
        raise VqtoolError(f"no cell could be measured; the last one: {failed}") from failed


def _report(results: "SweepFile", output: Path | None, plot: Path | None, *, force: bool) -> None:
    """The table on stderr, JSON on stdout if it is in no file, and the picture."""
    from rich.console import Console
    from rich.table import Table

    from vqtool.cli.console import echo
    from vqtool.metrics.compare.trials import Cell, names_of_scores
    from vqtool.metrics.plots import plot_front

    scores = names_of_scores(results.rows)
    columns = [*_COLUMNS, *scores, "usage", "perplexity"]
    table = Table("sampler", "steps", *(_COLUMNS.get(name, name.partition("-")[0]) for name in columns))
    for column in table.columns:
        column.justify = "right" if column is not table.columns[0] else "left"
    for row in results.rows:
        name = Cell(row["sampler"], None, row["options"]).series
        values = [f"{row['values'][column]:.4g}{_error(row, column, scores)}" for column in columns]
        table.add_row(name, "" if row["steps"] is None else str(row["steps"]), *values)
    Console(stderr=True, markup=False, width=None if sys.stderr.isatty() else WIDTH).print(table)
    if output is None:
        print(results.text(), flush=True)
    else:
        echo(f"wrote {output}")
    if plot is not None:
        plot_front(results.rows, scores, plot, force=force)
        echo(f"wrote {plot}")


def _error(row: Mapping[str, Any], column: str, scores: Collection[str]) -> str:
    return f" ± {row['standard_errors'][column]:.2g}" if column in scores and column in row["standard_errors"] else ""
