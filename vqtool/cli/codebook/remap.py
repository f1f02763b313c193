"""`vqtool codebook remap`: token grids in the codes of a rebuilt tokenizer."""

from typing import Annotated

import typer

from vqtool.cli.help import METHOD, advanced
from vqtool.cli.main import command
from vqtool.cli.options import Force
from vqtool.errors import VqtoolError


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
    force: Force = False,
) -> None:
    """Convert token grids to a tokenizer whose codebook was rebuilt: each token becomes the nearest new code.

    It takes no images and no network, but rounds twice: where the images are at hand, `vqtool encode` is better. The
    new tokenizer must come from the old one by refit, finetune or prune, so that both encoders are the same.

    Examples:

        vqtool codebook remap tok.h5 -t tokenizer.safetensors -o remapped.h5

        vqtool codebook remap tok.h5 -t tokenizer.safetensors | vqtool codebook usage
    """
    from vqtool.artifacts import history_record
    from vqtool.cli.console import echo
    from vqtool.codebooks.maps import convert, converted_header, nearest_codes
    from vqtool.grids import GridWriter, check_output, open_grids
    from vqtool.tokenizers import load_tokenizer, tokenizer_of

    check_output(output, force=force)
    new = load_tokenizer(tokenizer)
    with open_grids(grids) as reader:
        if reader.header.tokenizer_fingerprint == new.fingerprint:
            raise VqtoolError(f"{reader.name}: its tokens are those of {tokenizer} already")
        before = tokenizer_of(reader.header, grids, given=old, parameter="from")
        forward = nearest_codes(before, new, unrelated=unrelated)
        inputs = {"tokenizer": new.fingerprint, "from": before.fingerprint}
        header = converted_header(
            reader.header,
            codebook_size=new.codebook_size,
            fingerprint=new.fingerprint,
            location=new.location,
            record=history_record("codebook remap", inputs=inputs),
        )
        echo(f"{before.codebook_size} codes of {before.location} -> {len(set(forward.tolist()))} codes of {tokenizer}")
        with GridWriter(output, header, force=force) as writer:
            for batch in convert(reader.batches(), forward):
                writer.write(batch)
    echo(f"wrote {writer.num_grids} grids to {writer.name}")
