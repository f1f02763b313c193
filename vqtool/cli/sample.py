"""`vqtool sample`: prior -> token grids."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vqtool.cli.console import echo, progress
from vqtool.cli.flags import FlagGroup
from vqtool.cli.help import INPUT_OUTPUT, METHOD, advanced
from vqtool.cli.main import command
from vqtool.cli.options import (
    Captions,
    Device,
    Engine,
    Force,
    Labels,
    Partial,
    PriorArgument,
    RareTokenizer,
    Resume,
    ResumeAuto,
    Seed,
)
from vqtool.cli.sampling import Purity, SamplingFlags, load_named_prior, sampling_arguments, text_arguments

DEFAULT_NUM = 64


Output = Annotated[Path, typer.Option("--output", "-o", help="Grid file; - is stdout: a stream if that is a pipe.")]
Num = Annotated[int | None, typer.Option("--num", "-n", help="How many. Default: one a caption or class named, or 64.")]
CaptionsFile = Annotated[
    Path | None,
    typer.Option("--captions", help="File of them, one a line; - is stdin.", rich_help_panel=advanced(INPUT_OUTPUT)),
]
Shards = Annotated[
    int | None,
    typer.Option("--shards", help="So many files; -o has {shard}.", rich_help_panel=advanced(INPUT_OUTPUT)),
]
GridSize = Annotated[
    str | None,
    typer.Option("--grid", help="Cells, e.g. 32x48. Default: as in training.", rich_help_panel=advanced(METHOD)),
]
Start = Annotated[int, typer.Option("--start", help="Number of the first sample.", rich_help_panel=advanced(METHOD))]
JudgeFlags = Annotated[dict[str, Any], FlagGroup.of_file("metrics/judges.py", "JudgeOptions", panel=METHOD)]


@command
def sample(
    *,
    prior: PriorArgument = None,
    output: Output = Path("-"),
    num: Num = None,
    labels: Labels = None,
    captions: Captions = None,
    captions_file: CaptionsFile = None,
    shards: Shards = None,
    partial: Partial = None,
    engine: Engine = "local",
    resume: Resume = False,
    resume_auto: ResumeAuto = None,
    force: Force = False,
    purity: Purity = False,
    how: SamplingFlags,
    judged: JudgeFlags,
    seed: Seed = 0,
    grid_size: GridSize = None,
    start: Start = 0,
    tokenizer: RareTokenizer = None,
    device: Device = "auto",
) -> None:
    """Draw token grids from a prior.

    Sample i is the same for every batch size, number of samples and --start (on a GPU with --exact). Without
    --label, --caption or --captions a prior that takes a condition is given the examples it was trained on, in
    turn. Grids larger than those of training are drawn in overlapping tiles. --shards draws the grids of one
    file into many, by all processes that share them: docs/scale.md.

    Examples:

        vqtool sample --caption "a red apple" --cfg-scale 3 --purity | vqtool decode -o apple.png

        vqtool sample --cfg-scale 3 --purity | vqtool decode

        vqtool sample -n 16 --label 7 --steps 50 --seed 1 -o sevens.h5

        cat prompts.txt | vqtool sample --captions - | vqtool decode -o preview.png

        vqtool sample --caption "a red apple" --cfg-scale 3 --purity --best 8 | vqtool decode -o best.png

        vqtool sample -n 50000 -o many.h5 --resume auto

        vqtool sample -n 1000000 --shards 100 --partial 3/8 -o tok-{shard:05d}.h5 --resume

        vqtool sample --grid 32x48 -n 8 --trajectory how.webp | vqtool decode -o large/
    """
    from vqtool.distributed import choose_device
    from vqtool.errors import count_text
    from vqtool.images import parse_size
    from vqtool.metrics import judges
    from vqtool.outputs import is_pattern
    from vqtool.samplers.drawing import sample_to_file
    from vqtool.samplers.shards import sample_shards

    how = sampling_arguments(how, purity)
    how |= {} if grid_size is None else {"grid_size": parse_size(grid_size, "--grid", "cells")}
    model = load_named_prior(prior).to(choose_device(device))
    choice = judges.JudgeOptions(**judged)
    texts = text_arguments(model, labels, captions, captions_file)
    if num is None:
        num = sum(len(named or ()) for named in texts.values()) or DEFAULT_NUM
    how |= texts | {
        "start": start,
        "seed": seed,
        "tokenizer": tokenizer if "trajectory" in how or choice.judge == "likelihood" else None,
        "best": choice.best,
        "judge": judges.build(model, choice, seed=seed, tokenizer=tokenizer, progress=progress),
    }
    how |= {"resume": resume_auto or resume, "force": force}
    if shards is not None or partial is not None or engine != "local" or is_pattern(output):
        how |= {"partial": partial, "engine": engine, "device": device}
        said = sample_shards(model, output, num, shards, notify=echo, progress=progress, **how).line
    else:
        done = sample_to_file(model, output, num, notify=echo, progress=progress, **how)
        said = f"wrote {count_text(num, 'grid')} to {'stdout' if str(output) == '-' else output}: {done}"
        said = f"{output} is complete: nothing is left to do" if done.was_complete else said
    if not how.get("dry_run"):
        echo(said)
