"""Flags that several commands share: the same name, the same meaning, the same help everywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli.flags import FlagGroup
from vqtool.cli.help import INPUT_OUTPUT, MACHINE, METHOD, advanced
from vqtool.options import read_names

# Which images are taken, and where their captions and labels come from; or only the first, where no words are needed.
SOURCE_OPTIONS = FlagGroup.of_file("images/sources/options.py", "SourceOptions", panel=advanced(INPUT_OUTPUT))
CHOICE_OPTIONS = FlagGroup.of_file(
    "images/sources/options.py",
    "SourceOptions",
    panel=advanced(INPUT_OUTPUT),
    without=("captions", "labels", "caption_lines"),
)
EDIT_SOURCE_OPTIONS = FlagGroup.of_file(  # edits bring pictures to no size: they work on a window of each
    "images/sources/options.py",
    "SourceOptions",
    panel=advanced(INPUT_OUTPUT),
    without=("fit",),
)


def names(file: str, constant: str) -> Callable[[], list[str]]:
    """What completes a flag: names that a file of the package lists, read without importing it."""
    return lambda: list(read_names(file, constant))


def check_seed(seed: int) -> int:
    """Callback of a flag: raise a usage error unless a seed is one."""
    if not 0 <= seed < 2**63:
        raise typer.BadParameter(f"{seed} is not in the range from 0 to 2**63 - 1.")
    return seed


Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite what is there.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Stop at the first bad input.", rich_help_panel=advanced(INPUT_OUTPUT))
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        metavar="[auto]",
        help="Go on with an interrupted run of the same flags; auto: if there is one.",
        rich_help_panel=advanced(INPUT_OUTPUT),
    ),
]
ResumeAuto = Annotated[
    str | None,
    typer.Option("--resume-auto", hidden=True, help="What --resume auto stands for."),
]
Seed = Annotated[
    int,
    typer.Option("--seed", help="Same seed, same result.", callback=check_seed, rich_help_panel=METHOD),
]
BatchSize = Annotated[
    int,
    typer.Option("--batch-size", "-b", min=1, help="How many go at once.", rich_help_panel=advanced(MACHINE)),
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="TEXT", help="Class to draw; repeat for several.", show_default=False),
]
Captions = Annotated[
    list[str] | None,
    typer.Option("--caption", metavar="TEXT", help="Caption to draw; repeat for several.", show_default=False),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        help="cpu, cuda, cuda:1; auto: a GPU if any.",
        autocompletion=lambda: ["auto", "cpu", "cuda"],
        rich_help_panel=advanced(MACHINE),
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="[auto|fp32|tf32|bf16]",
        help="Of the network on a GPU; auto: fp32 whose convolutions may be tf32.",
        autocompletion=lambda: ["auto", "fp32", "tf32", "bf16"],
        rich_help_panel=advanced(MACHINE),
    ),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Compile the network, for GPUs.", rich_help_panel=advanced(MACHINE)),
]
Partial = Annotated[
    str | None,
    typer.Option("--partial", help="This part of the shards only, as in 3/8.", rich_help_panel=advanced(MACHINE)),
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="[local|ray]",
        help="What makes shards: this process, or a Ray cluster.",
        autocompletion=names("shards.py", "ENGINES"),
        rich_help_panel=advanced(MACHINE),
    ),
]
Runtime = Annotated[
    str,
    typer.Option(
        "--runtime",
        metavar="[torch|onnx|auto]",
        help="What runs networks on a CPU; auto: ONNX Runtime, if there.",
        autocompletion=names("runtimes.py", "RUNTIMES"),
        rich_help_panel=advanced(MACHINE),
    ),
]
JsonFile = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="JSON file; - is stdout. Default: that, if no terminal."),
]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of text.")]
PRIOR_HELP = "Prior file, or 'builtin'. Default: prior.safetensors, else builtin."
PriorArgument = Annotated[Path | None, typer.Argument(help=PRIOR_HELP, show_default=False)]
TokenizerOption = Annotated[
    str | None,
    typer.Option("--tokenizer", "-t", help="File, or 'builtin'. Default: what the input names, or builtin."),
]
# The same flags among the advanced ones, for commands that have many of their own:
RareForce = Annotated[
    bool,
    typer.Option("--force", "-f", help="Overwrite what is there.", rich_help_panel=advanced(INPUT_OUTPUT)),
]
RareSeed = Annotated[
    int,
    typer.Option("--seed", help="Same seed, same result.", callback=check_seed, rich_help_panel=advanced(METHOD)),
]
RareTokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        "-t",
        help="File, or 'builtin'. Default: what the input names, or builtin.",
        rich_help_panel=advanced(INPUT_OUTPUT),
    ),
]
Images = Annotated[
    list[Path],
    typer.Argument(help="Folders, image files, tar shards or HDF5 files of images.", show_default=False),
]
