"""`vqtool codebook remap`: token grids in the codes of a rebuilt tokenizer."""

from typing import Annotated

import typer

from vqtool.cli.codebook.transplant import echo_prior
from vqtool.cli.help import METHOD, advanced
from vqtool.cli.main import command
from vqtool.cli.options import Force


@command
def remap(
    tokenizer: Annotated[str, typer.Option("--tokenizer", "-t", help="The new tokenizer.", show_default=False)],
    grids: Annotated[str, typer.Argument(help="Token grids; - is stdin.")] = "-",
    old: Annotated[
        str | None, typer.Option("--from", help="The tokenizer of the grids. Default: the one that they name.")
    ] = None,
    output: Annotated[str, typer.Option("--output", "-o", help="File to write; - is stdout.")] = "-",
    unrelated: Annotated[
        bool,
        typer.Option(
            "--unrelated",
            help="Take a tokenizer whose encoder is another: distances may mean nothing.",
            rich_help_panel=advanced(METHOD),
        ),
    ] = False,
    prior: Annotated[
        str | None,
        typer.Option("--prior", help="Prior to carry over too, to x.prior.safetensors beside the output x.h5."),
    ] = None,
    force: Force = False,
) -> None:
    """Convert token grids to a tokenizer whose codebook was rebuilt: each token becomes the nearest new code.

    It takes no images and no network, but rounds twice: where the images are at hand, `vqtool encode` is better. The
    new tokenizer must come from the old one by refit, finetune or prune, so that both encoders are the same.

    Examples:

        vqtool codebook remap tok.h5 -t tokenizer.safetensors -o remapped.h5

        vqtool codebook remap tok.h5 -t tokenizer.safetensors | vqtool codebook usage

        vqtool codebook remap tok.h5 -t tokenizer.safetensors --prior prior.safetensors -o new.h5
    """
    from vqtool import codebooks
    from vqtool.cli.console import echo, progress
    from vqtool.errors import count_text
    from vqtool.training.transplanting import beside, transplant

    carried = None if prior is None else beside(output, force=force)
    made = codebooks.remap(
        grids, output, tokenizer=tokenizer, old=old, unrelated=unrelated, force=force, progress=progress
    )
    reached = len(set(made.target.forward.tolist()))
    echo(f"{len(made.target.forward)} codes -> {reached} of the {made.target.codebook_size} of {tokenizer}")
    echo(f"wrote {count_text(made.num_grids, 'grid')} to {made.output}")
    if prior is not None and carried is not None:
        known = [] if grids == "-" else [grids]
        echo_prior(transplant(prior, carried, tokenizer=tokenizer, grids=known, old=old, force=force).prior, carried)
