"""`vqtool codebook usage`: what token grids use of their codebook."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vqtool.cli.main import command
from vqtool.cli.options import Force, JsonOutput


@command
def usage(
    grids: Annotated[
        list[str] | None, typer.Argument(help="Token grids of one tokenizer; - is stdin.", show_default="-")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=0, help="How many of the most and least used codes to list.")] = 10,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="PNG file to draw the histogram to. Default: none.")
    ] = None,
    json: JsonOutput = False,
    force: Force = False,
) -> None:
    """Measure how much of a codebook token grids use.

    Usage is the share of codes that occur, and of those that occur at least 10 times as papers count; perplexity is
    the number of equally frequent codes that would carry as much. Memory does not grow with the number of grids.

    Examples:

        vqtool codebook usage tok.h5

        vqtool codebook usage tok.h5 more.h5 --plot usage.png --json

        vqtool sample -n 64 | vqtool codebook usage
    """
    from json import dumps

    from vqtool.cli.console import echo, progress, warn
    from vqtool.codebooks.usage import count_grids, describe, few_tokens
    from vqtool.outputs import refuse_existing

    if plot is not None:
        from vqtool.metrics.plots import check_matplotlib, plot_usage

        check_matplotlib()
        refuse_existing(plot, force=force, kind="a PNG image")
    found = count_grids(grids or ["-"], progress=progress)
    description = describe(found, top=top)
    for text in few_tokens(found.counts):
        warn(text)
    if plot is not None:
        plot_usage(found.counts, plot, force=force)
        echo(f"wrote {plot}")
    print(dumps(description, indent=2) if json else "\n".join(_lines(description)))


def _lines(about: Mapping[str, Any]) -> Iterator[str]:
    from vqtool.errors import count_text

    size = about["codebook_size"]
    grids = count_text(about["num_grids"], "grid")
    yield f"{grids}, {about['num_tokens']} tokens; tokenizer {about['tokenizer']}, {size} codes"
    yield f"  in use        {about['usage']:.1%}"
    yield f"  10 times      {about['usage-10']:.1%}"
    yield f"  perplexity    {about['perplexity']:.1f}"
    yield f"  dead          {about['num_dead']}{_listed(about['dead'])}"
    for name in ("most_used", "least_used"):
        pairs = ", ".join(f"{code} ({count})" for code, count in about[name])
        if pairs:
            yield f"  {name.replace('_', ' '):<14}{pairs}"


def _listed(codes: list[int], most: int = 10) -> str:
    if not codes:
        return ""
    return f": {', '.join(map(str, codes[:most]))}{', ...' if len(codes) > most else ''}"
