"""`vqtool train-prior`: learn a prior from token grids."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vqtool.cli.console import echo, progress
from vqtool.cli.flags import FlagGroup
from vqtool.cli.help import INPUT_OUTPUT, LENGTH, MACHINE, METHOD, NETWORK, advanced
from vqtool.cli.main import command
from vqtool.cli.options import Force, Resume, ResumeAuto
from vqtool.cli.training import Seed

OPTIONS = (
    FlagGroup.of_file("training/building.py", "ConditionOptions", panel=INPUT_OUTPUT)
    | FlagGroup.of_file("training/building.py", "DiffusionOptions", panel=METHOD)
    | FlagGroup.of_file("training/presets.py", "PresetOptions", panel=METHOD)
    | FlagGroup.of_file("training/objectives.py", "PriorLoss", panel=METHOD)
    | FlagGroup.of_file("training/building.py", "DenoiserOptions", panel=NETWORK)
    | FlagGroup.of_file("training/adapters.py", "TuningOptions", panel=METHOD)
    | FlagGroup.of_file("training/prior.py", "PriorRunOptions", panel=LENGTH)
    | FlagGroup.of_file("training/runs.py", "MachineOptions", panel=MACHINE)
)


@command
def train_prior(
    grids: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, globs or an index; - is stdin. Default: tok.h5.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("prior.safetensors"),
    from_: Annotated[
        str | None,
        typer.Option("--from", help="Prior to begin with: a file, builtin or none."),
    ] = None,
    *,
    options: Annotated[dict[str, Any], OPTIONS],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            "-t",
            help="Draws previews: a file, or 'builtin'. Default: what the grids name.",
            rich_help_panel=advanced(INPUT_OUTPUT),
        ),
    ] = None,
    seed: Seed = 0,
    resume: Resume = False,
    resume_auto: ResumeAuto = None,
    force: Force = False,
) -> None:
    """Train a discrete diffusion prior on token grids.

    Writes the prior, and beside it a log (.log.jsonl), the state for --resume (.state.safetensors) and a preview of
    samples (.preview.png). Without --steps and --minutes a run passes 300 times through the grids, but takes no longer
    than 10 minutes on a CPU or 30 on a GPU. The prior is written eight times a run or more: what is stopped can be
    sampled, and --resume goes on, with other --steps or --minutes too. With --from a prior goes on learning: its
    network, vocabulary and kernel stay, classes and conditions that it lacks are added, and the learning rate is lower.
    The built-in one does so by itself with fewer than 2,000 grids of its own, unless options ask for a new one.

    Examples:

        vqtool train-prior --kernel mask-replace

        vqtool train-prior tok.h5 --condition class --size small --minutes 30 -o digits.safetensors

        vqtool train-prior 'tok-*.h5' --size large --steps 20000 -o large.safetensors

        vqtool train-prior tok.h5 --preset vq-diffusion --size tiny --steps 600 -o published.safetensors

        vqtool train-prior --from prior.safetensors more.h5 -o tuned.safetensors

        vqtool train-prior --from prior.safetensors --lora 16 more.h5 -o tuned.safetensors

        vqtool train-prior --from prior.safetensors --train null --steps 200 -o guided.safetensors
    """
    grids = grids or ["tok.h5"]
    echo(f"reading {', '.join(grids[:3])}{', ...' if len(grids) > 3 else ''}, and PyTorch, which takes some seconds")
    from vqtool.training.prior import train_prior

    train_prior(
        grids,
        output,
        from_=from_,
        tokenizer=tokenizer,
        seed=seed,
        resume=resume_auto or resume,
        force=force,
        notify=echo,
        progress=progress,
        **options,
    )
