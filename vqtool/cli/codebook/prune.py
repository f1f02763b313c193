"""`vqtool codebook prune`: a tokenizer with the codes that are in use."""

from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli.codebook.transplant import CarriedPrior, echo_prior
from vqtool.cli.help import METHOD
from vqtool.cli.main import command
from vqtool.cli.options import Force, TokenizerOption


@command
def prune(
    grids: Annotated[list[Path], typer.Argument(help="Token grids that show which codes are in use; - is stdin.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Tokenizer to write.")] = Path("pruned.safetensors"),
    code_map: Annotated[
        Path | None, typer.Option("--map", help="Map to write. Default: beside the tokenizer, x.map.safetensors.")
    ] = None,
    tokenizer: TokenizerOption = None,
    min_uses: Annotated[
        int, typer.Option("--min-uses", min=1, help="Drop codes that occur less often.", rich_help_panel=METHOD)
    ] = 1,
    prior: CarriedPrior = None,
    force: Force = False,
) -> None:
    """Drop the codes of a tokenizer that token grids do not use, and write the map from old tokens to new ones.

    Images stay what they were to the last bit where all codes in use are kept; with --min-uses a dropped code becomes
    the nearest that is kept. A prior of fewer codes is smaller and quicker; it has to be trained on converted grids.

    Examples:

        vqtool codebook prune tok.h5 -o pruned.safetensors

        vqtool codebook prune tok.h5 more.h5 --min-uses 10 --map kept.safetensors

        vqtool codebook prune tok.h5 --prior prior.safetensors
    """
    from vqtool import codebooks
    from vqtool.cli.console import echo, progress
    from vqtool.training.transplanting import Carrier

    carrier = None if prior is None else Carrier.open(prior, output, force=force)
    made = codebooks.prune(
        grids,
        output,
        code_map=code_map,
        tokenizer=tokenizer,
        min_uses=min_uses,
        force=force,
        progress=progress,
    )
    echo(f"{made.num_codes_before} -> {made.num_codes} codes, which {made.share:.2%} of the tokens have")
    echo(f"wrote {output}: tokenizer {made.fingerprint}")
    echo(f"wrote {made.map_path}")
    if carrier is not None:
        echo_prior(carrier.carry(made.links, made.parent, made.fingerprint, output), carrier.output)
    echo(f"to convert grids: vqtool codebook apply-map tok.h5 --map {made.map_path} -o pruned.h5")
