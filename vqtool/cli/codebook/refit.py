"""`vqtool codebook refit`: a tokenizer with its codebook rebuilt on one's images."""

from pathlib import Path
from typing import Annotated, Any

import typer

from vqtool.cli.codebook.transplant import CarriedPrior, echo_prior
from vqtool.cli.flags import FlagGroup
from vqtool.cli.help import METHOD
from vqtool.cli.main import command
from vqtool.cli.options import CHOICE_OPTIONS, Device, Force, Images, Seed, Strict, TokenizerOption


@command
def refit(
    *,
    images: Images,
    grids: Annotated[
        Path | None, typer.Option("--grids", help="Take the images that these token grids name, at their size.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Tokenizer to write.")] = Path("tokenizer.safetensors"),
    tokenizer: TokenizerOption = None,
    prior: CarriedPrior = None,
    options: Annotated[dict[str, Any], FlagGroup.of_file("codebooks/refitting.py", panel=METHOD) | CHOICE_OPTIONS],
    seed: Seed = 0,
    device: Device = "auto",
    strict: Strict = False,
    force: Force = False,
) -> None:
    """Rebuild a tokenizer's codebook on your images (ReFiT): k-means on what its encoder makes of them.

    The vectors come from random cells of random images, equally many of each. With --grids the images are those that
    the token grids were made of: images that they do not name are left out. Vectors that do not fit into --memory lie
    in a file below $TMPDIR and are fitted in mini-batches; seed those with afk-mc2, which reads them once.

    Examples:

        vqtool codebook refit imgs/

        vqtool codebook refit imgs/ --codebook-size 512 --vectors 100000 --seeding afk-mc2 -o mine.safetensors

        vqtool codebook refit imgs/ --grids tok.h5 -o mine.safetensors

        vqtool codebook refit imgs/ --prior prior.safetensors -o mine.safetensors
    """
    from vqtool import codebooks
    from vqtool.cli.console import echo, progress
    from vqtool.cli.inputs import Skipped
    from vqtool.errors import count_text, size_text
    from vqtool.training.transplanting import Carrier

    carrier = None if prior is None else Carrier.open(prior, output, force=force)
    skipped = Skipped(strict, output)
    common: dict[str, Any] = {"seed": seed, "device": device, "force": force, "notify": echo, "progress": progress}
    made = codebooks.refit(
        images, output, tokenizer=tokenizer, grids=grids, on_error=skipped.on_error, **common, **options
    )
    echo(f"{made.num_vectors} vectors from {count_text(made.num_images, 'image')} with tokenizer {made.parent}")
    for name, fit in (("before", made.before), ("after", made.after)):
        echo(f"{name}: usage {fit.usage:.1%}, perplexity {fit.perplexity:.0f}, squared error {fit.error:.4g}")
    echo(f"wrote {output}: tokenizer {made.fingerprint}")
    how = f"{' '.join(map(str, images))} --size {size_text(made.image_size)} -t {output} -o tok.h5 --force"
    if carrier is not None:
        echo_prior(carrier.carry(made.links, made.parent, made.fingerprint, output), carrier.output)
    echo(f"to use it, encode again: vqtool encode {how}")
    echo(f"or, without the images, convert what was encoded: vqtool codebook remap tok.h5 -t {output} -o new.h5")
    skipped.finish()
