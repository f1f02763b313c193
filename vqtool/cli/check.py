"""`vqtool check`: whether files are whole."""

from typing import Annotated

import typer

from vqtool.cli.main import EXIT_ERROR, command
from vqtool.cli.options import JsonOutput
from vqtool.errors import printable


@command
def check(
    files: Annotated[list[str], typer.Argument(help="Token grids, indexes or artifacts; - is token grids on stdin.")],
    json: JsonOutput = False,
) -> None:
    """Check files for truncation, damage and tokens out of range.

    Reads every file whole: digests of token grids, fingerprints of artifacts. Exits with 1 if any is bad.

    Examples:

        vqtool check tok.h5 tokenizer.safetensors prior.safetensors

        vqtool check --json tok.h5

        vqtool check 'shards/tok-*.h5'
    """
    from json import dumps

    results = []
    for file in (each for name in files for each in _expand(name)):
        results.append({"file": file, **_result(file)})
        if not json:
            why = results[-1].get("why")
            print(printable(f"bad {file}: {why}" if why else f"ok {file}"), flush=True)
    if json:
        print(dumps(results, indent=2))
    if not all(result["ok"] for result in results):
        raise typer.Exit(EXIT_ERROR)


def _expand(name: str) -> list[str]:
    """The grid files of a folder or glob; a name that leads nowhere itself, for its own line."""
    from vqtool.errors import VqtoolError
    from vqtool.grids.found import find_grids

    try:
        return list(map(str, find_grids(name)))
    except VqtoolError:
        return [name]


def _result(file: str) -> dict[str, object]:
    from vqtool.errors import VqtoolError
    from vqtool.inspection import verify

    try:
        return {"ok": True, **verify(file)}
    except (VqtoolError, OSError) as error:
        return {"ok": False, "why": " ".join(str(error).removeprefix(f"{file}: ").split())}
