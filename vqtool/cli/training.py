"""Flags that the commands that train share."""

from typing import Annotated

import typer

from vqtool.cli.flags import FlagGroup
from vqtool.cli.help import INPUT_OUTPUT, LENGTH, MACHINE, METHOD, advanced
from vqtool.cli.options import CHOICE_OPTIONS, check_seed

TOKENIZER_OPTIONS = (
    FlagGroup.of_file("training/_autoencoder.py", "TokenizerLoss", panel=METHOD)
    | FlagGroup.of_file("training/discriminator.py", "DiscriminatorConfig", panel=METHOD)
    | FlagGroup.of_file("training/augment.py", "Augmentation", panel=METHOD)
    | FlagGroup.of_file("training/fitting.py", "TokenizerRunOptions", panel=LENGTH)
    | FlagGroup.of_file("training/runs.py", "MachineOptions", panel=MACHINE)
    | FlagGroup.of_file("training/pictures.py", "CacheOptions", panel=MACHINE)
    | CHOICE_OPTIONS
)
Seed = Annotated[
    int,
    typer.Option("--seed", help="Same seed, same result.", callback=check_seed, rich_help_panel=advanced(METHOD)),
]
Size = Annotated[str, typer.Option("--size", help="Pixels: 64, or 48x80 (height x width).")]
Half = Annotated[
    bool,
    typer.Option("--half", help="Store weights as float16: half the file.", rich_help_panel=advanced(INPUT_OUTPUT)),
]
