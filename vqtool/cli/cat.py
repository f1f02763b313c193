"""`vqtool cat`: several files and streams of token grids as one."""

from typing import Annotated

import typer

from vqtool.cli.main import command
from vqtool.cli.options import Force


@command
def cat(
    files: Annotated[list[str] | None, typer.Argument(help="Token grids; - is stdin.", show_default="-")] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="File to write; - is stdout.")] = "-",
    force: Force = False,
) -> None:
    """Join token grids of one tokenizer and one grid size.

    Examples:

        vqtool cat tok.h5 tok.h5 -o twice.h5

        vqtool cat tok.h5 | vqtool info
    """
    from vqtool.artifacts import history_record
    from vqtool.cli.console import echo
    from vqtool.grids import GridWriter, check_output, concatenate

    check_output(output, force=force)
    with concatenate(files or ["-"]) as joined:
        header = joined.header.with_step(history_record("cat", inputs=joined.digests))
        with GridWriter(output, header, force=force) as writer:
            for batch in joined.batches():
                writer.write(batch)
    echo(f"wrote {writer.num_grids} grids to {writer.name}")
