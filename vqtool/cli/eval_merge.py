"""`vqtool eval merge`: statistics of parts -> statistics of the whole."""

from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli.main import command
from vqtool.cli.options import Force


@command
def eval_merge(
    files: Annotated[list[Path], typer.Argument(help="Files of `eval stats`, in order.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .npz.")] = Path("merged.npz"),
    force: Force = False,
) -> None:
    """Join saved statistics of parts into those of the whole.

    What comes out equals what all pictures together would have given: bit for bit where all files have features, else
    but for rounding (1e-9).

    Examples:

        vqtool eval merge part1.npz part2.npz -o ref.npz
    """
    from vqtool.cli.console import echo
    from vqtool.metrics.saving import merge_saved

    echo(merge_saved(files, output, force=force).headline)
    echo(f"wrote {output}")
