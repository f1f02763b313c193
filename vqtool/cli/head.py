"""`vqtool head`: the first grids of a file or stream."""

from typing import Annotated

import typer

from vqtool.cli.main import command
from vqtool.cli.options import Force


@command
def head(
    file: Annotated[str, typer.Argument(help="Token grids; - is stdin.")] = "-",
    num: Annotated[int, typer.Option("--num", "-n", min=0, help="How many grids.")] = 10,
    output: Annotated[str, typer.Option("--output", "-o", help="File to write; - is stdout.")] = "-",
    force: Force = False,
) -> None:
    """Write the first token grids of a file or stream.

    Examples:

        vqtool head -n 2 tok.h5 -o first.h5

        vqtool head -n 2 tok.h5 | vqtool info
    """
    from vqtool import grids
    from vqtool.cli.console import echo
    from vqtool.errors import count_text
    from vqtool.inputs import input_name
    from vqtool.outputs import output_name

    num = grids.head(file, output, num=num, force=force)
    echo(f"wrote {count_text(num, 'grid')} of {input_name(file)} to {output_name(output)}")
