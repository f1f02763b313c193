"""`vqtool eval compare`: results of `eval` side by side."""

from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli.main import command
from vqtool.cli.options import JsonFile


@command
def eval_compare(
    files: Annotated[list[Path], typer.Argument(help="JSON files of `eval`, two or more.")],
    output: JsonFile = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Compare what does not compare; overwrite the output.")
    ] = False,
) -> None:
    """Put results of `eval` side by side, if their metric cards agree.

    Two results whose cards differ in a line that matters (features and their weights, resize policy, size, numbers of
    images, reference, settings of a metric) are refused, and the line is named.

    Examples:

        vqtool eval compare a.json b.json
    """
    from vqtool.cli.console import check_json, print_table, write_json
    from vqtool.metrics.results import compare_results

    check_json(output, force=force)
    found = compare_results(files, force=force)
    print_table(*found.table())
    write_json(found.as_dict(), output, force=force)
