"""`refit`: a tokenizer with its codebook rebuilt on images of one's own (ReFiT)."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqtool import rng
from vqtool.artifacts import history_record
from vqtool.codebooks.fitting import BLOCK_ROWS, CodebookFit, count_distinct, fit_codebook, measure_fit
from vqtool.codebooks.links import Links, count_links
from vqtool.codebooks.rebuilt import check_refittable, with_codebook
from vqtool.codebooks.vectors import check_images, images_of, read_beginning, sample_latents
from vqtool.distributed import choose_device
from vqtool.errors import VqtoolError, warn
from vqtool.images import ImageItem, OnError, SourceOptions, choose_fit, find_images, parse_size
from vqtool.images.pixels import find_fit
from vqtool.options import Checked, distribute, option
from vqtool.outputs import refuse_existing
from vqtool.progress import Notify, Progress, ignore, silent
from vqtool.tally import Tally
from vqtool.tokenizers import BUILTIN, Tokenizer, load_tokenizer, save_tokenizer, tokenizer_of
from vqtool.tokenizers.quantizers import nearest

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """How a codebook is fitted."""

    codebook_size: int | None = option(None, "Codes.", shown="as before, if vectors suffice", minimum=2, flag="-K")
    size: str | None = option(None, "Pixels of the images: 64, or 48x80 (height first).", shown="64")
    seeding: str = option(
        "k-means++",
        "Where k-means begins; afk-mc2 for many vectors.",
        choices=("k-means++", "afk-mc2"),
    )
    vectors: int = option(20_000, "Encoder vectors to fit to.", minimum=2)
    chain_length: int | None = option(None, "Candidates a seed of afk-mc2.", shown="200", minimum=1, advanced=True)
    k_means: str | None = option(
        None,
        "How codes are fitted.",
        shown="lloyd below 200,000 vectors",
        choices=("lloyd", "mini-batch"),
        advanced=True,
    )
    memory: float = option(2.0, "GiB of vectors to hold; more lie in a temporary file.", minimum=0, advanced=True)


@dataclass(frozen=True)
class Refit:
    """A refitted tokenizer, and what the fit to the images was and is."""

    tokenizer: Tokenizer
    fingerprint: str
    parent: str  # identity of the tokenizer that it was made of
    before: CodebookFit
    after: CodebookFit
    num_vectors: int
    num_images: int
    image_size: tuple[int, int]  # (h, w) that images were brought to
    links: Links  # of the old codes with the new ones, counted in the vectors


def refit(
    images: str | Path | Sequence[str | Path],
    output: str | Path = "tokenizer.safetensors",
    *,
    tokenizer: str | Path | None = None,
    grids: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    force: bool = False,
    on_error: OnError | None = None,
    notify: Notify = ignore,
    progress: Progress = silent,
    **chosen: Any,
) -> Refit:
    """Rebuild a tokenizer's codebook: k-means on what its encoder makes of images. Its networks stay as they are.

    Args:
        images: folders, image files, tar shards or HDF5 files; the vectors come from random cells of random ones.
        output: the tokenizer file to write.
        tokenizer: file or "builtin"; None: the one that `grids` names, or else the built-in one.
        grids: a file of token grids: of the images those are taken that it names, at its size.
        seed: of the choice of vectors, and of k-means.
        device: "cpu", "cuda", or "auto" for a CUDA GPU if there is one.
        force: overwrite what is there.
        on_error: called for each image that cannot be read, which is then left out; None: raise.
        notify: is told when k-means begins, which takes most of the time.
        progress: shows how far it is with the images.
        chosen: fields of `Options` and `SourceOptions`.

    Raises:
        MismatchError: the images are not those of the grids.
        VqtoolError: parameters that do not go together, no images, too few vectors, or an output that exists.
    """
    source_options, options = distribute(chosen, SourceOptions, Options)
    if options.chain_length is not None and options.seeding != "afk-mc2":
        raise VqtoolError(f"`chain_length` is for `seeding` afk-mc2, not for {options.seeding}")
    refuse_existing(output, force=force, kind="an artifact")
    sources = [images] if isinstance(images, str | Path) else images
    tally = on_error if isinstance(on_error, Tally) else Tally(on_error)
    on_error, first = None if on_error is None else tally, len(tally.skipped)
    source = _find_source(sources, grids, tokenizer, options.size, device, source_options, on_error)
    old, items, image_size, fit = source
    found = len(tally.skipped)
    noise = rng.generator(seed, 0, stream=rng.SELECTION)
    with _room(options.vectors * old.codebook.shape[1] * 4, options) as file:
        vectors = sample_latents(
            items, old, image_size, options.vectors, noise, fit=fit, file=file, on_error=on_error, progress=progress
        )
        if not len(vectors):
            raise VqtoolError(f"none of the {len(items)} images could be read")
        size = _choose_codebook_size(options, vectors, old)
        notify(
            f"fitting {size} codes to {len(vectors)} vectors of {len(items)} images: {options.seeding}, then k-means"
        )
        k_means = options.k_means or (None if file is None else "mini-batch")
        how: dict[str, Any] = {"seeding": options.seeding, "k_means": k_means, "chain_length": options.chain_length}
        new = with_codebook(old.cpu(), fit_codebook(vectors, size, noise=noise, **how))
        before, after = measure_fit(vectors, old.codebook), measure_fit(vectors, new.codebook)
        num_vectors, num_images = len(vectors), len(items) - (len(tally.skipped) - found)
        links = _link(vectors, old, new)
    record = history_record("codebook refit", inputs={"tokenizer": old.fingerprint}, seed=seed, vectors=num_vectors)
    header = save_tokenizer(
        output,
        new,
        parent=old,
        history=[*old.history, record],
        summary={
            "before": vars(before),
            "after": vars(after),
            "num_images": num_images,
            "num_skipped": len(tally.skipped) - first,
        },
        force=force,
    )
    return Refit(new, header.fingerprint, old.identity, before, after, num_vectors, num_images, image_size, links)


def _choose_codebook_size(options: Options, vectors: Tensor, old: Tokenizer) -> int:
    """As many codes as asked for, else as before, as far as there are different vectors (N, D)."""
    if options.codebook_size is not None:
        return options.codebook_size
    size = count_distinct(vectors.numpy(), old.codebook_size)
    if 1 < size < old.codebook_size:
        warn(f"{size} distinct vectors make {size} codes, not {old.codebook_size}: more images make more")
    return size


def _link(vectors: Tensor, old: Tokenizer, new: Tokenizer) -> Links:
    """Which old and new codes are those of the same vectors (N, D)."""
    blocks = [(old.look_up(block), new.look_up(block)) for block in torch.split(vectors, BLOCK_ROWS)]
    before, after = (torch.cat(tokens).numpy() for tokens in zip(*blocks, strict=True))
    backward = nearest(new.codebook, old.codebook).numpy()
    return count_links(before, after, backward, old.codebook_size, new.codebook_size)


def _find_source(
    images: Sequence[str | Path],
    grids: str | Path | None,
    tokenizer: str | Path | None,
    size: str | None,
    device: str,
    options: SourceOptions,
    on_error: OnError | None,
) -> tuple[Tokenizer, Sequence[ImageItem], tuple[int, int], str]:
    """The tokenizer to refit, the images to do it on, their size (h, w), and how they are brought to it."""
    find = partial(find_images, images, options, words="none", on_error=on_error)
    if grids is None:
        model = load_tokenizer(tokenizer or BUILTIN).to(choose_device(device))
        check_refittable(model)
        items, sides = find(), parse_size(size) if size else model.usual_size
        return model, items, sides, choose_fit(items, sides, options.fit, factor=model.factor)
    if options.fit is not None:
        raise VqtoolError("`fit` is that of the images that `grids` was made of: give one of them")
    if size is not None:
        raise VqtoolError("`size` is that of the images that `grids` was made of: give one of them")
    header, first, ids = read_beginning(Path(grids))
    model = tokenizer_of(header, grids, given=tokenizer).to(choose_device(device))
    check_refittable(model)
    named = images_of(ids, find(), str(grids))
    fit = find_fit(header.preprocessing)
    check_images(first.tokens, named[: len(first)], model, header.image_size, str(grids), fit=fit)
    return model, named, header.image_size, fit


@contextmanager
def _room(num_bytes: int, options: Options) -> Iterator[Path | None]:
    """A place for vectors: None is memory, otherwise a file in a temporary folder."""
    if num_bytes <= options.memory * GIB:
        yield None
        return
    if options.k_means == "lloyd":
        raise VqtoolError(
            f"`k_means` lloyd needs the vectors in memory, and they take {num_bytes / GIB:.2f} GiB: "
            "raise `memory`, take fewer `vectors`, or use `k_means` mini-batch"
        )
    with tempfile.TemporaryDirectory(prefix="vqtool-") as folder:
        warn(f"up to {num_bytes / GIB:.2f} GiB of vectors go to {folder}, then k-means in mini-batches")
        yield Path(folder) / "vectors"
