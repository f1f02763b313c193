"""`vqtool distill`: prior -> a student of few network calls."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vqtool.cli.console import echo, progress
from vqtool.cli.flags import FlagGroup
from vqtool.cli.help import LENGTH, METHOD
from vqtool.cli.main import command
from vqtool.cli.options import Force, PriorArgument, Resume, ResumeAuto
from vqtool.cli.training import Seed

OPTIONS = FlagGroup.of_file("training/distilling.py", "DistillOptions", panel=METHOD) | FlagGroup.of_file(
    "training/runs.py", "RunOptions", panel=LENGTH, without=("preview_every",)
)


@command
def distill(
    *,
    prior: PriorArgument = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("student.safetensors"),
    grids: Annotated[
        str | None, typer.Option("--grids", help="File of grids to learn from. Default: the prior draws them.")
    ] = None,
    options: Annotated[dict[str, Any], OPTIONS],
    seed: Seed = 0,
    resume: Resume = False,
    resume_auto: ResumeAuto = None,
    force: Force = False,
) -> None:
    """Train a student that draws in few network calls what a prior draws in many.

    It learns from grids that the prior draws; no data are needed. --grids takes those of `sample`, with whatever
    sampler, guidance and captions they were drawn. Beside the student stand a log and the state for --resume. It is a
    prior like any other, but refuses more calls than it was made for. The prior's denoiser has to be a transformer.

    Examples:

        vqtool distill prior.safetensors -o student.safetensors --calls 4

        vqtool distill prior.safetensors -o fast.safetensors --calls 2 --cfg-scale 3 -n 512 --steps 200

        vqtool distill prior.safetensors --grids drawn.h5 -o short.safetensors --calls 1
    """
    from vqtool.priors import find_prior
    from vqtool.training.distilling import distill_prior

    named = find_prior(prior, notify=echo)
    how: dict[str, Any] = {"resume": resume_auto or resume, "force": force, "notify": echo, "progress": progress}
    distill_prior(named, output, grids=grids, seed=seed, **how, **options)
