"""`vqtool cat`: several files and streams of token grids as one."""

from typing import Annotated

import typer

from vqtool.cli.main import command
from vqtool.cli.options import Force


@command
def cat(
    files: Annotated[
        list[str] | None,
        typer.Argument(help="Token grids, folders of them, globs or indexes; - is stdin.", show_default="-"),
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="File to write; - is stdout.")] = "-",
    index: Annotated[
        bool, typer.Option("--index", help="Write a small file that names the files, in place of their grids.")
    ] = False,
    force: Force = False,
) -> None:
    """Join token grids of one tokenizer and one grid size.

    An index (--index, FILE.index) stands for thousands of files, which it names, and opens at once.

    Examples:

        vqtool cat tok.h5 tok.h5 -o twice.h5

        vqtool cat tok.h5 | vqtool info

        vqtool cat --index 'shards/tok-*.h5' -o tok.index
    """
    from vqtool import grids
    from vqtool.cli.console import echo
    from vqtool.errors import count_text
    from vqtool.outputs import output_name

    num = grids.cat(files or ["-"], output, index=index, force=force)
    echo(f"wrote {'an index of ' if index else ''}{count_text(num, 'grid')} to {output_name(output)}")
