"""`vqtool codebook refit`: a tokenizer with its codebook rebuilt on one's images."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vqtool.cli.help import MACHINE, METHOD, advanced
from vqtool.cli.main import command
from vqtool.cli.options import Device, Force, Images, Seed, Strict, TokenizerOption, one_of
from vqtool.errors import VqtoolError

if TYPE_CHECKING:
    from vqtool.images import ImageItem
    from vqtool.tokenizers import Tokenizer

DEFAULT_SIZE = "64"
GIB = 1 << 30


@command
def refit(
    images: Images,
    grids: Annotated[
        Path | None,
        typer.Option("--grids", help="Take the images that these token grids name, at their size.", show_default=False),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Tokenizer to write.")] = Path("tokenizer.safetensors"),
    tokenizer: TokenizerOption = None,
    codebook_size: Annotated[
        int | None,
        typer.Option(
            "--codebook-size",
            "-K",
            min=2,
            help="Codes. Default: as many as before, if vectors suffice.",
            rich_help_panel=METHOD,
        ),
    ] = None,
    vectors: Annotated[
        int, typer.Option("--vectors", min=2, help="Encoder vectors to fit to.", rich_help_panel=METHOD)
    ] = 20_000,
    seeding: Annotated[
        str, typer.Option("--seeding", help="k-means++ or afk-mc2 (for many vectors).", rich_help_panel=METHOD)
    ] = "k-means++",
    chain_length: Annotated[
        int | None,
        typer.Option(
            "--chain-length",
            min=1,
            help="Candidates a seed of afk-mc2. Default: 200.",
            rich_help_panel=advanced(METHOD),
        ),
    ] = None,
    k_means: Annotated[
        str | None,
        typer.Option(
            "--k-means",
            help="lloyd or mini-batch. Default: lloyd below 200,000 vectors.",
            rich_help_panel=advanced(METHOD),
        ),
    ] = None,
    memory: Annotated[
        float,
        typer.Option(
            "--memory",
            min=0,
            help="GiB of vectors to hold; more lie in a temporary file.",
            rich_help_panel=advanced(MACHINE),
        ),
    ] = 2.0,
    size: Annotated[
        str | None, typer.Option("--size", help="Pixels of the images: 64, or 48x80 (height x width). Default: 64.")
    ] = None,
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
    """
    from vqtool import rng
    from vqtool.artifacts import history_record, refuse_existing
    from vqtool.cli.console import echo, shape, warn
    from vqtool.cli.inputs import Skipped
    from vqtool.codebooks.rebuilt import with_codebook
    from vqtool.codebooks.refit import K_MEANS, count_distinct, fit_codebook, measure_fit
    from vqtool.codebooks.seeding import SEEDINGS
    from vqtool.codebooks.vectors import sample_latents
    from vqtool.tokenizers import save_tokenizer

    one_of("--seeding", seeding, SEEDINGS)
    if k_means is not None:
        one_of("--k-means", k_means, K_MEANS)
    if chain_length is not None and seeding != "afk-mc2":
        raise VqtoolError(f"--chain-length is for --seeding afk-mc2, not for {seeding}")
    refuse_existing(output, force=force)
    source = _find_source(images, grids, tokenizer, size, device)
    old, skipped, noise = source.tokenizer, Skipped(strict), rng.generator(seed, 0, stream=rng.SELECTION)
    echo(f"taking {vectors} vectors from {len(source.items)} images with tokenizer {old.fingerprint} ({old.location})")
    with _room(vectors * old.codebook.shape[1] * 4, memory, k_means) as file:
        found = sample_latents(source.items, old, source.size, vectors, noise, file=file, on_error=skipped.on_error)
        if not len(found):
            raise VqtoolError(f"none of the {len(source.items)} images could be read")
        new_size = codebook_size or count_distinct(found.numpy(), old.codebook_size)
        if codebook_size is None and 1 < new_size < old.codebook_size:
            warn(f"{new_size} distinct vectors make {new_size} codes, not {old.codebook_size}: more images make more")
        echo(f"{len(found)} vectors -> {new_size} codes: seeding by {seeding}, then k-means")
        method = k_means or (None if file is None else "mini-batch")
        codebook = fit_codebook(
            found, new_size, seeding=seeding, noise=noise, k_means=method, chain_length=chain_length
        )
        new = with_codebook(old.cpu(), codebook)
        before, after = measure_fit(found, old.codebook), measure_fit(found, new.codebook)

    record = history_record("codebook refit", inputs={"tokenizer": old.fingerprint}, seed=seed, vectors=len(found))
    history = [*old.history, record]
    summary = {"before": vars(before), "after": vars(after)}
    header = save_tokenizer(
        output, new, parents={"tokenizer": old.fingerprint}, history=history, summary=summary, force=force
    )
    for name, fit in (("before", before), ("after", after)):
        echo(f"{name}: usage {fit.usage:.1%}, perplexity {fit.perplexity:.0f}, squared error {fit.error:.4g}")
    sources = " ".join(str(path) for path in images)
    echo(f"wrote {output}: tokenizer {header.fingerprint}")
    echo(f"to use it, encode again: vqtool encode {sources} --size {shape(source.size)} -t {output} -o tok.h5 --force")
    echo(f"or, without the images, convert what was encoded: vqtool codebook remap tok.h5 -t {output} -o new.h5")
    skipped.finish()


@dataclass(frozen=True)
class _Source:
    tokenizer: "Tokenizer"
    items: "list[ImageItem]"
    size: tuple[int, int]  # (h, w) pixels


def _find_source(
    images: list[Path], grids: Path | None, tokenizer: str | None, size: str | None, device: str
) -> _Source:
    """The tokenizer to refit, and the images to do it on.

    Raises:
        MismatchError: the images are not those of the grids.
    """
    from vqtool.codebooks.rebuilt import check_refittable
    from vqtool.codebooks.vectors import check_images, images_of, read_beginning
    from vqtool.distributed import choose_device
    from vqtool.images import find_images, parse_size
    from vqtool.tokenizers import BUILTIN, load_tokenizer, tokenizer_of

    if grids is None:
        model = load_tokenizer(tokenizer or BUILTIN).to(choose_device(device))
        check_refittable(model)
        return _Source(model, find_images(images), parse_size(size or DEFAULT_SIZE))
    if size is not None:
        raise VqtoolError("--size is that of the images that --grids was made of: give one of them")
    header, first, ids = read_beginning(grids)
    model = tokenizer_of(header, grids, given=tokenizer).to(choose_device(device))
    check_refittable(model)
    items = images_of(ids, find_images(images), str(grids))
    check_images(first.tokens, items[: len(first)], model, header.image_size, str(grids))
    return _Source(model, items, header.image_size)


@contextmanager
def _room(num_bytes: int, memory: float, k_means: str | None) -> Iterator[Path | None]:
    """A place for vectors: None is memory, otherwise a file in a temporary folder.

    Raises:
        VqtoolError: Lloyd's k-means is wanted, which needs them in memory.
    """
    import tempfile

    from vqtool.cli.console import echo

    if num_bytes <= memory * GIB:
        yield None
        return
    if k_means == "lloyd":
        raise VqtoolError(
            f"--k-means lloyd needs the vectors in memory, and they take {num_bytes / GIB:.2f} GiB: "
            "raise --memory, take fewer --vectors, or use --k-means mini-batch"
        )
    with tempfile.TemporaryDirectory(prefix="vqtool-") as folder:
        echo(f"up to {num_bytes / GIB:.2f} GiB of vectors go to {folder}, then k-means in mini-batches")
        yield Path(folder) / "vectors"
