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
    from vqtool.artifacts import history_record
    from vqtool.cli.console import echo
    from vqtool.grids import GridWriter, check_output, open_grids

    check_output(output, force=force)
    with open_grids(file, masked=True) as reader:
        inputs = {file: reader.digest} if reader.digest else {}
        header = reader.header.with_step(history_record("head", inputs=inputs))
        with GridWriter(output, header, force=force) as writer:
            for batch in reader.first(num):
                writer.write(batch)
    echo(f"wrote {writer.num_grids} grids of {reader.name} to {writer.name}")
