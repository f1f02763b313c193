"""Flags that several commands share: the same name, the same meaning, the same help everywhere."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from vqtool.errors import VqtoolError

Force = Annotated[bool, typer.Option("--force", "-f", help="Overwrite what is there.")]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at the first bad input instead of skipping it.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of all noise. Same seed, same result.")]
BatchSize = Annotated[int, typer.Option("--batch-size", "-b", min=1, help="How many pass the network at once.")]
Labels = Annotated[
    list[str] | None, typer.Option("--label", help="Class to draw; repeat for several.", show_default=False)
]
Captions = Annotated[
    list[str] | None, typer.Option("--caption", help="Caption to draw; repeat for several.", show_default=False)
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1; auto takes a CUDA GPU if there is one.")]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of text.")]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        "--tokenizer", "-t", help="Tokenizer file, or 'builtin'. Default: the one the input names, or builtin."
    ),
]
Images = Annotated[
    list[Path],
    typer.Argument(help="Folders, image files, tar shards or HDF5 files of images.", show_default=False),
]


def one_of(flag: str, value: str, known: Iterable[str]) -> str:
    """`value` if it is known.

    Raises:
        VqtoolError: it is not; lists what is.
    """
    names = list(known)
    if value not in names:
        raise VqtoolError(f"{flag} {value}: unknown; known are {', '.join(names)}")
    return value
