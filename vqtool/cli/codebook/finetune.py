"""`vqtool codebook finetune`: a decoder that learns what the codes mean."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from vqtool.cli.console import echo, progress
from vqtool.cli.help import METHOD
from vqtool.cli.inputs import Skipped
from vqtool.cli.main import command
from vqtool.cli.options import Force, Images, Resume, ResumeAuto, Strict
from vqtool.cli.training import TOKENIZER_OPTIONS, Half, Seed, Size


@command
def finetune(
    tokenizer: Annotated[str, typer.Argument(help="Tokenizer file, or 'builtin'.", show_default=False)],
    images: Images,
    output: Annotated[Path, typer.Option("--output", "-o", help="Tokenizer to write.")] = Path("finetuned.safetensors"),
    size: Size = "64",
    keep_codes: Annotated[
        bool,
        typer.Option("--keep-codes", help="Train the decoder alone: images keep their tokens.", rich_help_panel=METHOD),
    ] = False,
    *,
    options: Annotated[dict[str, Any], TOKENIZER_OPTIONS],
    seed: Seed = 0,
    half: Half = False,
    resume: Resume = False,
    resume_auto: ResumeAuto = None,
    strict: Strict = False,
    force: Force = False,
) -> None:
    """Fine-tune a tokenizer's decoder and codes on your images behind its frozen encoder (ReFiT).

    Goes after `vqtool codebook refit`: the decoder has not seen the new codes. Writes the tokenizer, and beside it a
    log (.log.jsonl), the state for --resume (.state.safetensors) and a preview of originals over reconstructions.

    Examples:

        vqtool codebook finetune tokenizer.safetensors imgs/ --minutes 20

        vqtool codebook finetune builtin imgs/ --keep-codes --perceptual efficientnet-lite0 -o mine.safetensors
    """
    from vqtool.training.finetuning import finetune_tokenizer

    skipped = Skipped(strict, output)
    made = finetune_tokenizer(
        tokenizer, images, output, keep_codes=keep_codes, size=size, half=half, seed=seed, force=force,
        resume=resume_auto or resume, on_error=skipped.on_error, notify=echo, progress=progress, **options,
    )  # fmt: skip
    for line in _next_steps(made.codes_of, output, f"{' '.join(map(str, images))} --size {size}", rounded=keep_codes):
        echo(line)
    skipped.finish()


def _next_steps(kept: str, output: Path, images: str, *, rounded: bool) -> Iterator[str]:
    """What to do with old grids: nothing where encoder and codes are those of a tokenizer, which `kept` names."""
    if kept:
        yield f"grids and priors of {kept} are of this one too, as they are: vqtool decode tok.h5 -t {output} -o new/"
        return
    why = "--half rounded encoder and codes, so tokens may be others" if rounded else "to use it"
    yield f"{why}: encode again: vqtool encode {images} -t {output} -o tok.h5 --force"
    yield f"or, without the images, convert what was encoded: vqtool codebook remap tok.h5 -t {output} -o new.h5"
