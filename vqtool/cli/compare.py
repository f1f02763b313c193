"""`vqtool compare`: prior -> calls, seconds and scores of several samplers."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vqtool.cli.flags import FlagGroup
from vqtool.cli.help import INPUT_OUTPUT, METHOD, advanced
from vqtool.cli.main import command
from vqtool.cli.options import (
    CHOICE_OPTIONS,
    Captions,
    Device,
    Force,
    JsonFile,
    Labels,
    PriorArgument,
    RareTokenizer,
    ResumeAuto,
    Strict,
    names,
)
from vqtool.cli.sampling import GUIDANCE, load_named_prior, text_arguments

TRIALS = FlagGroup.of_file(
    "metrics/compare/comparison.py", "TrialOptions", panel=METHOD, panels={"features": advanced(METHOD)}
)
References = Annotated[
    list[Path] | None, typer.Option("--ref", help="Images to score against, or features; repeat for several.")
]
Plot = Annotated[Path | None, typer.Option("--plot", help="PNG file of the scores against the calls.")]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        metavar="[auto]",
        help="Keep the rows of the file; auto: if there is one.",
        rich_help_panel=advanced(INPUT_OUTPUT),
    ),
]
Samplers = Annotated[
    list[str] | None,
    typer.Option(
        "--sampler",
        help="May be repeated. Default: all that go with it.",
        autocompletion=names("samplers/__init__.py", "NAMES"),
        rich_help_panel=METHOD,
    ),
]
Varied = Annotated[
    list[str] | None,
    typer.Option("--option", help="What else to vary: purity-weight=0,1,2. May be repeated.", rich_help_panel=METHOD),
]
CaptionsFile = Annotated[
    Path | None,
    typer.Option("--captions", help="File of captions or labels, one a line.", rich_help_panel=advanced(METHOD)),
]


@command
def compare(
    *,
    prior: PriorArgument = None,
    ref: References = None,
    output: JsonFile = None,
    plot: Plot = None,
    resume: Resume = False,
    resume_auto: ResumeAuto = None,
    force: Force = False,
    sampler: Samplers = None,
    option: Varied = None,
    trials: Annotated[dict[str, Any], TRIALS],
    guidance: Annotated[dict[str, Any], GUIDANCE],
    metrics: Annotated[dict[str, Any], FlagGroup.of_registered("metrics", what="Metric")],
    source_options: Annotated[dict[str, Any], CHOICE_OPTIONS],
    labels: Labels = None,
    captions: Captions = None,
    captions_file: CaptionsFile = None,
    tokenizer: RareTokenizer = None,
    device: Device = "auto",
    strict: Strict = False,
) -> None:
    """Compare samplers: network calls, seconds and scores of each.

    With --ref also every metric of `eval`, on features of pictures decoded in memory; the reference may be a file of
    `eval stats --keep-features`. A line of the table is in the JSON file as soon as it is measured; --resume goes on,
    with further samplers and steps too. Guidance is the same for all lines, but for what --option varies.

    Examples:

        vqtool compare --ref imgs/ -o compare.json --plot front.png

        vqtool compare --sampler ancestral --sampler purity --steps 8,16 --option purity-weight=0,1,2 -n 64 --seeds 0

        vqtool compare --ref imgs/ --label 7 --cfg-interval 0.2,0.8 --option cfg-scale=2,3,5 -o guidance.json
    """
    from vqtool.cli.console import echo, print_table, progress, write_json
    from vqtool.cli.inputs import Skipped
    from vqtool.distributed import choose_device, is_main_process
    from vqtool.metrics.compare.comparison import compare

    if not is_main_process():  # seconds are those of one process
        return
    path = None if output is None or str(output) == "-" else output
    skipped = Skipped(strict, path)
    model = load_named_prior(prior).to(choose_device(device))
    files = {"output": path, "plot": plot, "resume": resume_auto or resume, "force": force, "tokenizer": tokenizer}
    how: dict[str, Any] = {
        **files,
        "notify": echo,
        "progress": progress,
        "on_error": skipped.on_error,
        **trials,
        **guidance,
        **metrics,
        **source_options,
    }
    how |= text_arguments(model, labels, captions, captions_file)
    found = compare(model, sampler=sampler or [], options=option or [], ref=ref or [], **how)
    print_table(*found.table())
    if path is None:
        write_json(found.as_dict(), output, force=force)
    for written in filter(None, (path, plot)):
        echo(f"wrote {written}")
    skipped.finish()
