"""`vqtool codebook`: measure and rebuild codebooks."""

from pathlib import Path
from typing import Annotated

import typer

from vqtool.cli.main import command
from vqtool.cli.options import Device, Force, Images, Seed, Strict, TokenizerOption, one_of
from vqtool.errors import VqtoolError

app = typer.Typer(help="Measure and rebuild codebooks.", no_args_is_help=True)


@app.command()
@command
def refit(
    images: Images,
    output: Annotated[Path, typer.Option("--output", "-o", help="Tokenizer to write.")] = Path("tokenizer.safetensors"),
    tokenizer: TokenizerOption = None,
    codebook_size: Annotated[
        int | None, typer.Option("--codebook-size", "-K", min=2, help="Codes. Default: as many as there were.")
    ] = None,
    vectors: Annotated[int, typer.Option("--vectors", min=2, help="Encoder vectors to fit to.")] = 20_000,
    seeding: Annotated[str, typer.Option("--seeding", help="k-means++ or afk-mc2 (for many vectors).")] = "k-means++",
    size: Annotated[str, typer.Option("--size", help="Pixels of the images: 64, or 48x80 (height x width).")] = "64",
    seed: Seed = 0,
    device: Device = "auto",
    strict: Strict = False,
    force: Force = False,
) -> None:
    """Rebuild a tokenizer's codebook on your images (ReFiT): k-means on what its encoder makes of them.

    Examples:

        vqtool codebook refit imgs/

        vqtool codebook refit imgs/ --codebook-size 512 --vectors 100000 --seeding afk-mc2 -o mine.safetensors
    """
    from vqtool import rng
    from vqtool.artifacts import history_record, refuse_existing
    from vqtool.cli.console import say
    from vqtool.cli.inputs import Skipped, choose_device
    from vqtool.codebooks.refit import fit_codebook, measure_fit, with_codebook
    from vqtool.codebooks.seeding import SEEDINGS
    from vqtool.coding import sample_latents
    from vqtool.images import find_images, parse_size
    from vqtool.tokenizers import BUILTIN, load_tokenizer, save_tokenizer

    one_of("--seeding", seeding, SEEDINGS)
    refuse_existing(output, force=force)
    old = load_tokenizer(tokenizer or BUILTIN).to(choose_device(device))
    items, skipped, noise = find_images(images), Skipped(strict), rng.generator(seed, 0, stream=rng.SELECTION)
    image_size = parse_size(size)
    say(f"taking {vectors} vectors from {len(items)} images with tokenizer {old.fingerprint} ({old.location})")
    found = sample_latents(items, old, image_size, vectors, noise, on_error=skipped.on_error)
    if not len(found):
        raise VqtoolError(f"none of the {len(items)} images could be read")
    new_size = codebook_size or old.codebook_size
    say(f"{len(found)} vectors -> {new_size} codes: seeding by {seeding}, then k-means")
    codebook = fit_codebook(found, new_size, seeding=seeding, noise=noise)
    new = with_codebook(old.cpu(), codebook)
    before, after = measure_fit(found, old.codebook), measure_fit(found, codebook)

    record = history_record("codebook refit", inputs={"tokenizer": old.fingerprint}, seed=seed, vectors=len(found))
    history = [*old.history, record]
    summary = {"before": vars(before), "after": vars(after)}
    header = save_tokenizer(
        output, new, parents={"tokenizer": old.fingerprint}, history=history, summary=summary, force=force
    )
    for name, fit in (("before", before), ("after", after)):
        say(f"{name}: usage {fit.usage:.1%}, perplexity {fit.perplexity:.0f}, squared error {fit.error:.4g}")
    sources = " ".join(str(path) for path in images)
    say(f"wrote {output}: tokenizer {header.fingerprint}")
    say(f"to use it, encode again: vqtool encode {sources} --size {size} -t {output} -o tok.h5 --force")
    skipped.finish()
