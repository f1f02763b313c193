"""`vqtool codebook transplant`: a prior in the codes of another tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqtool.cli.help import INPUT_OUTPUT, METHOD, advanced
from vqtool.cli.main import command
from vqtool.cli.options import Force

if TYPE_CHECKING:
    from vqtool.priors import Prior

CarriedPrior = Annotated[
    str | None,
    typer.Option(
        "--prior",
        help="Prior to carry over to the new codes, to x.prior.safetensors beside the tokenizer.",
        rich_help_panel=advanced(INPUT_OUTPUT),
    ),
]


@command
def transplant(
    prior: Annotated[str, typer.Argument(help="Prior file, or 'builtin'.", show_default=False)],
    tokenizer: Annotated[str, typer.Option("--tokenizer", "-t", help="The new tokenizer.", show_default=False)],
    grids: Annotated[
        list[Path] | None,
        typer.Option(
            "--grids", help="Token grids that say how often codes occur; repeat for the same images in both codes."
        ),
    ] = None,
    old: Annotated[
        str | None,
        typer.Option(
            "--from", help="The tokenizer of the prior. Default: the one it names.", rich_help_panel=advanced(METHOD)
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("transplanted.safetensors"),
    force: Force = False,
) -> None:
    """Carry a prior over to the codes of another tokenizer.

    Rows of its embedding and of its head become means of the old ones, by how many of the old codes' vectors fall to
    the new code. Without grids that is told by the nearest codes, for tokenizers with one encoder, as refit, finetune
    and prune leave them. With grids of the same images in both codes it is counted, also between encoders.

    Examples:

        vqtool codebook transplant prior.safetensors -t tokenizer.safetensors --grids tok.h5 -o new-prior.safetensors

        vqtool codebook transplant prior.safetensors -t new.safetensors --grids old.h5 --grids new.h5

        vqtool train-prior --from new-prior.safetensors new.h5 --steps 300 -o tuned.safetensors
    """
    from vqtool.cli.console import echo
    from vqtool.training.transplanting import transplant

    made = transplant(prior, output, tokenizer=tokenizer, grids=grids or (), old=old, force=force)
    echo(f"{made.links.num_old} codes -> {made.links.num_new}, {made.how}")
    echo_prior(made.prior, output)


def echo_prior(prior: "Prior", output: Path) -> None:
    """Say what was written, and what to do with it."""
    from vqtool.cli.console import echo

    echo(f"wrote {output}: prior {prior.fingerprint}; it predicts what it did, and profits from a short training:")
    echo(f"vqtool train-prior --from {output} GRIDS -o tuned.safetensors, with grids in the new codes")
