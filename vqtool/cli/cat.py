"""`vqtool cat`: several files and streams of token grids as one."""

from typing import Annotated

import typer

from vqtool.cli.main import command
from vqtool.cli.options import Force


@command
def cat(
    files: Annotated[
        list[str] | None, typer.Argument(help="Token grids, folders of them or globs; - is stdin.", show_default="-")
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="File to write; - is stdout.")] = "-",
    force: Force = False,
) -> None:
    """Join token grids of one tokenizer and one grid size.

    Examples:

        vqtool cat tok.h5 tok.h5 -o twice.h5

        vqtool cat tok.h5 | vqtool info
    """
    from vqtool import grids
    from vqtool.cli.console import echo
    from vqtool.outputs import output_name

    num = grids.cat(files or ["-"], output, force=force)
    echo(f"wrote {num} grids to {output_name(output)}")
