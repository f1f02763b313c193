"""`vqtool eval`: score images or token grids."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vqtool.cli.flags import FlagGroup
from vqtool.cli.main import command
from vqtool.cli.options import Device, Force, Seed, Strict
from vqtool.errors import VqtoolError

if TYPE_CHECKING:
    from vqtool.cli.inputs import Skipped
    from vqtool.metrics import Report

DEFAULT_RECONSTRUCTION_SIZE = "64"


@command
def eval(
    *,
    sources: Annotated[
        list[Path], typer.Argument(help="Images (folder, files, tar, HDF5), or token grids (.h5, - for stdin).")
    ],
    ref: Annotated[
        list[Path] | None, typer.Option("--ref", help="What to compare with: images or token grids. May be repeated.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", "-t", help="Score this tokenizer ('builtin' or a file) on the images."),
    ] = None,
    paired: Annotated[
        bool, typer.Option("--paired", help="PSNR of images and references of the same name; no features.")
    ] = False,
    size: Annotated[
        str | None,
        typer.Option("--size", help="Pixels, 64 or 48x80. Default: that of the images; with --tokenizer 64."),
    ] = None,
    max_images: Annotated[int, typer.Option("--max-images", min=2, help="At most so many a side.")] = 10_000,
    likelihood: Annotated[
        bool, typer.Option("--likelihood", help="Bits per token of the grids under a prior, with a curve over t.")
    ] = False,
    prior: Annotated[
        Path | None, typer.Option("--prior", help="For --likelihood. Default: prior.safetensors.", show_default=False)
    ] = None,
    times: Annotated[
        int | None, typer.Option("--times", min=1, help="--likelihood: steps t a grid; T or more is all. Default: 16.")
    ] = None,
    unconditional: Annotated[
        bool, typer.Option("--unconditional", help="--likelihood: tell the prior no labels and no captions.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="--likelihood: PNG file for the curve.", show_default=False)
    ] = None,
    options: Annotated[dict[str, Any], FlagGroup.of_registered("metrics", what="Metric")],
    seed: Seed = 0,
    device: Device = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write; - is stdout.")] = Path("-"),
    strict: Strict = False,
    force: Force = False,
) -> None:
    """Score images or token grids: a table on stderr, JSON on stdout.

    Images with --ref: Fréchet distance, KID, precision, recall, density and coverage on EfficientNet-Lite0 features,
    with equally many images on both sides. Images with --ref and --paired: PSNR of equal names.

    Images with --tokenizer: PSNR, codebook usage and perplexity of the images encoded and decoded again.

    Token grids: usage and perplexity; with --ref also the distance of the two token histograms.

    Token grids with --likelihood: an upper bound on the bits per token that a prior needs for them, given their labels
    or captions if it takes any, and how much of it each step adds. Take grids that the prior has not seen.

    Examples:

        vqtool eval decoded/ --ref imgs/

        vqtool eval decoded/ --ref imgs/ --max-images 1000 -o scores.json

        vqtool eval tok.h5

        vqtool eval samples.h5 --ref tok.h5

        vqtool eval imgs/ --tokenizer tokenizer.safetensors --size 64

        vqtool eval --likelihood tok.h5 --prior prior.safetensors -o likelihood.json --plot curve.png
    """
    from vqtool.artifacts import refuse_existing
    from vqtool.cli.inputs import Skipped
    from vqtool.distributed import is_main_process

    for path in (output, plot):
        if path is not None and str(path) != "-":
            refuse_existing(path, force=force)
            if not path.parent.is_dir():
                raise VqtoolError(f"{path}: the folder {path.parent} does not exist")
    if not is_main_process():  # scoring is one process's work
        return
    skipped = Skipped(strict)
    references = ref or []
    only = {"--prior": prior, "--times": times, "--unconditional": unconditional, "--plot": plot}
    kind = _check_kind(sources, references, tokenizer=tokenizer, paired=paired, size=size)
    _check_likelihood(sources, references, kind, likelihood, [flag for flag, value in only.items() if value])
    if likelihood:
        report = _measure_likelihood(sources, prior, times, not unconditional, seed, device, plot=plot, force=force)
    elif kind == "grids":
        report = _measure_grids(sources, references)
    elif tokenizer is not None:
        report = _measure_tokenizer(sources, tokenizer, size, max_images, seed, device, skipped)
    else:
        report = _compare_images(sources, references, paired, size, max_images, seed, device, skipped, options)
    _show(report)
    _write(report, sources, references, output, force=force, num_skipped=skipped.count)
    skipped.finish()


def _check_kind(
    sources: Sequence[Path], ref: Sequence[Path], *, tokenizer: str | None, paired: bool, size: str | None
) -> str:
    """What is to be scored, "images" or "grids".

    Raises:
        VqtoolError: inputs and flags do not go together.
    """
    from vqtool.images.sources import holds_grids

    kinds = {path: "grids" if holds_grids(path) else "images" for path in [*sources, *ref]}
    kind = kinds[sources[0]]
    for path, other in kinds.items():
        if other != kind:
            names = {"grids": "token grids", "images": "images"}
            raise VqtoolError(
                f"{sources[0]} holds {names[kind]}, {path} {names[other]}: compare like with like; "
                "`vqtool decode` makes images of token grids, `vqtool encode` token grids of images"
            )
    if kind == "grids" and (tokenizer is not None or paired or size is not None):
        flag = "--tokenizer" if tokenizer is not None else "--paired" if paired else "--size"
        raise VqtoolError(f"{flag} is for images, but {sources[0]} holds token grids")
    if kind == "images" and tokenizer is not None and ref:
        raise VqtoolError("--ref scores images, --tokenizer the tokenizer: give one of them")
    if paired and not ref:
        raise VqtoolError("--paired needs originals to compare with: add --ref")
    if kind == "images" and tokenizer is None and not ref:
        raise VqtoolError(
            f"{sources[0]}: images alone have no score: add --ref with images to compare with, or --tokenizer"
        )
    return kind


def _check_likelihood(
    sources: Sequence[Path], ref: Sequence[Path], kind: str, likelihood: bool, flags: Sequence[str]
) -> None:
    """Raise VqtoolError unless --likelihood goes with the inputs, and is there for the flags that need it."""
    if not likelihood:
        if flags:
            raise VqtoolError(f"{flags[0]} is for --likelihood, which is not given: add it, or leave {flags[0]} out")
        return
    if kind != "grids":
        raise VqtoolError(f"--likelihood is for token grids, but {sources[0]} holds images: encode them first")
    if ref:
        raise VqtoolError("--likelihood compares token grids with a prior, not with others: leave --ref out")


def _measure_likelihood(
    sources: Sequence[Path],
    prior: Path | None,
    times: int | None,
    conditional: bool,
    seed: int,
    device: str,
    *,
    plot: Path | None,
    force: bool,
) -> "Report":
    from vqtool.cli.console import echo, progress
    from vqtool.distributed import choose_device
    from vqtool.metrics import DEFAULT_TIMES, measure_likelihood
    from vqtool.metrics.plots import check_matplotlib, plot_curve
    from vqtool.priors import load_prior

    if plot is not None:
        check_matplotlib()
    report = measure_likelihood(
        load_prior(prior or Path("prior.safetensors")).to(choose_device(device)),
        sources,
        times=DEFAULT_TIMES if times is None else times,
        conditional=conditional,
        seed=seed,
        progress=lambda text, total: progress(text, total, "grids"),
    )
    if plot is not None:
        plot_curve(report.about["curve"], plot, force=force)
        echo(f"wrote {plot}")
    return report


def _measure_grids(sources: Sequence[Path], ref: Sequence[Path]) -> "Report":
    from vqtool.cli.console import progress
    from vqtool.metrics import measure_grids

    return measure_grids(sources, ref, progress=lambda text, total: progress(text, total, "grids"))


def _measure_tokenizer(
    sources: Sequence[Path],
    tokenizer: str,
    size: str | None,
    max_images: int,
    seed: int,
    device: str,
    skipped: "Skipped",
) -> "Report":
    from vqtool.cli.console import progress
    from vqtool.distributed import choose_device
    from vqtool.images import find_images, parse_size
    from vqtool.metrics import measure_reconstruction
    from vqtool.tokenizers import load_tokenizer

    network = load_tokenizer(tokenizer).to(choose_device(device))
    return measure_reconstruction(
        find_images(sources),
        network,
        size=parse_size(size or DEFAULT_RECONSTRUCTION_SIZE),
        max_images=max_images,
        seed=seed,
        on_error=skipped.on_error,
        progress=progress,
    )


def _compare_images(
    sources: Sequence[Path],
    ref: Sequence[Path],
    paired: bool,
    size: str | None,
    max_images: int,
    seed: int,
    device: str,
    skipped: "Skipped",
    options: dict[str, Any],
) -> "Report":
    from vqtool.cli.console import progress
    from vqtool.distributed import choose_device
    from vqtool.images import find_images, parse_size
    from vqtool.metrics import EfficientNetLite0, compare_images, compare_pairs

    pixels = None if size is None else parse_size(size)
    images, reference = find_images(sources), find_images(ref)
    if paired:
        return compare_pairs(images, reference, size=pixels, on_error=skipped.on_error, progress=progress)
    return compare_images(
        images,
        reference,
        EfficientNetLite0(choose_device(device)),
        size=pixels,
        max_images=max_images,
        seed=seed,
        on_error=skipped.on_error,
        progress=progress,
        **options,
    )


def _show(report: "Report") -> None:
    """The table, and what to know about it, on stderr."""
    from rich.console import Console
    from rich.table import Table

    from vqtool.cli.console import echo, warn

    echo(report.headline)
    table = Table("score", "value", "± error", "better")
    for column in table.columns[1:3]:
        column.justify = "right"
    for score in report.scores:
        error = "" if score.standard_error is None else f"{score.standard_error:.4g}"
        table.add_row(score.name, f"{score.value:.5g} {score.unit}".strip(), error, score.better)
    Console(stderr=True, markup=False).print(table)
    for text in report.warnings:
        warn(text)


def _write(
    report: "Report", sources: Sequence[Path], ref: Sequence[Path], output: Path, *, force: bool, num_skipped: int
) -> None:
    import json

    from vqtool.artifacts import atomic_path
    from vqtool.cli.console import echo
    from vqtool.version import __version__

    inputs = {"inputs": list(map(str, sources)), "reference_inputs": list(map(str, ref))}
    record = {"vqtool": __version__, **inputs, **report.as_dict(), "num_skipped": num_skipped}
    text = json.dumps(record, indent=2)
    if str(output) == "-":
        print(text, flush=True)
        return
    with atomic_path(output, force=force) as temporary:
        temporary.write_text(text + "\n")
    echo(f"wrote {output}")
