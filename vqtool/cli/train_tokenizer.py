"""`vqtool train-tokenizer`: learn a tokenizer from images."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vqtool.cli.console import echo, progress
from vqtool.cli.flags import FlagGroup
from vqtool.cli.help import NETWORK
from vqtool.cli.inputs import Skipped
from vqtool.cli.main import command
from vqtool.cli.options import Force, Images, Resume, ResumeAuto, Strict
from vqtool.cli.training import TOKENIZER_OPTIONS, Half, Seed, Size

OPTIONS = (
    FlagGroup.of_file("training/tokenizer.py", "NetworkOptions", panel=NETWORK)
    | FlagGroup.of_registered("tokenizers/quantizers", what="Quantizer")
    | TOKENIZER_OPTIONS
)


@command
def train_tokenizer(
    images: Images,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("tokenizer.safetensors"),
    size: Size = "64",
    from_: Annotated[
        str | None,
        typer.Option("--from", help="Tokenizer to begin with: a file, or 'builtin'."),
    ] = None,
    *,
    options: Annotated[dict[str, Any], OPTIONS],
    seed: Seed = 0,
    half: Half = False,
    resume: Resume = False,
    resume_auto: ResumeAuto = None,
    strict: Strict = False,
    force: Force = False,
) -> None:
    """Train a VQ-VAE or VQGAN tokenizer on images.

    Writes the tokenizer, and beside it a log (.log.jsonl), the state for --resume (.state.safetensors) and a preview of
    originals over reconstructions (.preview.png).

    Examples:

        vqtool train-tokenizer imgs/

        vqtool train-tokenizer imgs/ --quantizer cosine -K 4096 --size 128 --minutes 60 -o mine.safetensors

        vqtool train-tokenizer imgs/ --network vqgan-f8-small --perceptual efficientnet-lite0 --adversarial 0.8

        vqtool train-tokenizer imgs/ --from builtin --minutes 30 -o mine.safetensors
    """
    from vqtool.training.tokenizer import train_tokenizer

    skipped = Skipped(strict, output)
    train_tokenizer(
        images, output, size=size, from_=from_, half=half, seed=seed, resume=resume_auto or resume, force=force,
        on_error=skipped.on_error, notify=echo, progress=progress, **options,
    )  # fmt: skip
    skipped.finish()
