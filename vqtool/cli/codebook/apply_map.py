"""`vqtool codebook apply-map`: token grids in the codes that a map says."""

from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli.help import METHOD
from vqtool.cli.main import command
from vqtool.cli.options import Force


@command
def apply_map(
    code_map: Annotated[
        Path, typer.Option("--map", help="Map of `prune`, or one of VQ-Diffusion (.pt).", show_default=False)
    ],
    grids: Annotated[str, typer.Argument(help="Token grids; - is stdin.")] = "-",
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", "-t", help="Tokenizer of the converted grids. Default: the one the map names."),
    ] = None,
    inverse: Annotated[
        bool, typer.Option("--inverse", help="Go back, from reduced to full codes.", rich_help_panel=METHOD)
    ] = False,
    output: Annotated[str, typer.Option("--output", "-o", help="File to write; - is stdout.")] = "-",
    force: Force = False,
) -> None:
    """Convert token grids by a map between codes, from the full codebook to the reduced one or back.

    A map of VQ-Diffusion (taming_vqvae_2887.pt) does not say whose codes it maps: name the tokenizer of the result. In
    it all codes out of use become 0, and each reduced code goes back to the first that becomes it.

    Examples:

        vqtool codebook apply-map tok.h5 --map pruned.map.safetensors -o reduced.h5

        vqtool codebook apply-map full.h5 --map taming_vqvae_2887.pt -t coco-tokenizer.safetensors -o reduced.h5

        vqtool codebook apply-map reduced.h5 --map pruned.map.safetensors --inverse -o full.h5
    """
    from vqtool import codebooks
    from vqtool.cli.console import echo, progress
    from vqtool.errors import count_text
    from vqtool.interop.code_maps import load_code_map

    made = codebooks.apply_map(
        grids, output, load_code_map(code_map), tokenizer=tokenizer, inverse=inverse, force=force, progress=progress
    )
    echo(f"wrote {count_text(made.num_grids, 'grid')} of {made.target.codebook_size} codes to {made.output}")
