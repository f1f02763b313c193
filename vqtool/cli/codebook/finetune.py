"""`vqtool codebook finetune`: a decoder that learns what the codes mean."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli import tokenizer_training as shared
from vqtool.cli.console import echo
from vqtool.cli.help import METHOD
from vqtool.cli.main import command

DEFAULT_RATE = 2e-4


@dataclass(frozen=True, kw_only=True)
class RunFlags(shared.RunFlags):
    """As of all trainings, to another file."""

    output: Annotated[Path, typer.Option("--output", "-o", help="Tokenizer to write.")] = Path("finetuned.safetensors")


@command
def finetune(
    *,
    tokenizer: Annotated[str, typer.Argument(help="Tokenizer file, or 'builtin'.", show_default=False)],
    pictures: shared.PictureFlags,
    keep_codes: Annotated[
        bool,
        typer.Option("--keep-codes", help="Train the decoder alone: images keep their tokens.", rich_help_panel=METHOD),
    ] = False,
    judges: shared.LossFlags,
    run: RunFlags,
) -> None:
    """Fine-tune a tokenizer's decoder and codes on your images behind its frozen encoder (ReFiT).

    Goes after `vqtool codebook refit`: the decoder has not seen the new codes. Writes the tokenizer, and beside it a
    log (.log.jsonl), the state for --resume (.state.safetensors) and a sheet of originals over reconstructions.

    Examples:

        vqtool codebook finetune tokenizer.safetensors imgs/ --minutes 20

        vqtool codebook finetune builtin imgs/ --keep-codes --perceptual efficientnet-lite0 -o mine.safetensors
    """
    from vqtool.tokenizers import load_tokenizer
    from vqtool.training import finetuning

    judges.check()
    run.check()
    old = load_tokenizer(tokenizer)
    model = finetuning.build_model(
        load_tokenizer(tokenizer), run.seed, learn_codes=not keep_codes, discriminator=judges.discriminator()
    )
    flags = replace(run.at_rate(DEFAULT_RATE), half=run.half or old.half_precision)
    loss = judges.build(revive_until=0.0)
    shared.train("codebook finetune", model, loss, judges, pictures, flags, parent=old)
    sources = " ".join(str(path) for path in pictures.images)
    echo(f"to use it, encode again: vqtool encode {sources} --size {pictures.size} -t {run.output} -o tok.h5 --force")
    if keep_codes:
        echo(f"or, since tokens are what they were, convert: vqtool codebook remap tok.h5 -t {run.output} -o new.h5")
    else:
        echo(
            f"or, without the images, convert what was encoded: vqtool codebook remap tok.h5 -t {run.output} -o new.h5"
        )
