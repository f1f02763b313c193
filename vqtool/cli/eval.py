"""`vqtool eval`: score images or token grids."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vqtool.cli.flags import FlagGroup
from vqtool.cli.help import METHOD
from vqtool.cli.main import command
from vqtool.cli.options import CHOICE_OPTIONS, Device, Force, JsonFile, Seed, Strict


@command
def eval(
    *,
    sources: Annotated[list[Path], typer.Argument(help="Images, or token grids (- is stdin).")],
    ref: Annotated[list[Path] | None, typer.Option("--ref", help="What to compare with. May be repeated.")] = None,
    source_options: Annotated[dict[str, Any], CHOICE_OPTIONS],
    report: Annotated[Path | None, typer.Option("--report", help="Page to write, .html, with pictures.")] = None,
    images: Annotated[dict[str, Any], FlagGroup.of_file("metrics/jobs/__init__.py", "ImageOptions", panel=METHOD)],
    likelihood: Annotated[
        dict[str, Any], FlagGroup.of_file("metrics/jobs/__init__.py", "LikelihoodOptions", panel=METHOD)
    ],
    options: Annotated[dict[str, Any], FlagGroup.of_registered("metrics", what="Metric")],
    seed: Seed = 0,
    device: Device = "auto",
    output: JsonFile = None,
    strict: Strict = False,
    force: Force = False,
) -> None:
    """Score images or token grids: a table on stderr, JSON on stdout.

    Images with --ref: Fréchet distance, KID, precision, recall, density and coverage on EfficientNet-Lite0 features,
    with equally many images on both sides. Images with --ref and --paired: PSNR, SSIM of equal names.

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
    from vqtool.cli.console import check_json, echo, print_table, progress, warn, write_json
    from vqtool.cli.inputs import Skipped
    from vqtool.distributed import is_main_process
    from vqtool.metrics import evaluate

    check_json(output, force=force)
    if not is_main_process():  # scoring is one process's work
        return
    skipped = Skipped(strict, output)
    common: dict[str, Any] = {"seed": seed, "device": device, "on_error": skipped.on_error}
    common |= {"notify": echo, "progress": progress}
    common |= source_options
    found = evaluate(sources, ref=ref or [], report=report, force=force, **common, **images, **likelihood, **options)
    echo(found.headline)
    print_table(("score", "value", "± error", "better"), found.rows())
    if found.per_class:
        print_table(*found.class_table())
    for text in found.warnings:
        warn(text)
    for path in filter(None, (likelihood.get("plot"), report)):
        echo(f"wrote {path}")
    write_json(found.as_dict(), output, force=force)
    skipped.finish()
