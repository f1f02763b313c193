"""Images through a tokenizer and back, batch by batch: `encode` and `decode`, from files to files.

Memory is flat in the number of images: one batch is in the network while the next is read from disk.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqtool import distributed
from vqtool.artifacts import history_record, text_digest
from vqtool.captions import join_captions
from vqtool.errors import MismatchError, VqtoolError, warn
from vqtool.grids import GridBatch, GridHeader, open_grids
from vqtool.grids.batch import MAX_TEXT_BYTES, clean_text
from vqtool.grids.resume import Journal, check_resumable, resumable_writer
from vqtool.images import (
    PREPROCESSING,
    ImageBatch,
    ImageItem,
    SourceOptions,
    choose_fit,
    find_images,
    read_batches,
    read_image,
    to_float,
    to_uint8,
)
from vqtool.images.reader import read_original
from vqtool.images.shapes import LOST, border, find_shape, shared
from vqtool.images.sources import pipes_images
from vqtool.images.sources.options import DEFAULTS
from vqtool.images.writer import FolderWriter, PreviewWriter, writer_type
from vqtool.locks import claims
from vqtool.outputs import is_stream
from vqtool.progress import Progress, silent
from vqtool.registry import check_known
from vqtool.tally import Tally
from vqtool.tokenizers import BUILTIN, Tokenizer, load_tokenizer, tokenizer_of
from vqtool.tokenizers._onnx import use_runtime

PRECISIONS = ("fp32", "bf16")

_PROBED = 16  # images whose borders are looked at
_WHITE = 8  # levels of 255: borders that come back darker are told

OnError = Callable[[ImageItem, VqtoolError], None]


@claims()
def encode(
    sources: Sequence[str | Path],
    output: str | Path = "tok.h5",
    tokenizer: Tokenizer | str | Path = BUILTIN,
    *,
    options: SourceOptions = DEFAULTS,
    image_size: tuple[int, int] | None = None,
    batch_size: int = 32,
    device: str = "auto",
    precision: str = "fp32",
    runtime: str = "torch",
    resume: bool | str = False,
    force: bool = False,
    on_error: OnError | None = None,
    on_start: Callable[[GridHeader, int], None] | None = None,
    progress: Progress = silent,
) -> int:
    """Write the token grids of images to a file or stream.

    What is done is kept beside the file until all is done: see `grids.resume`. Under `accelerate launch` every process
    does a part.

    Args:
        sources: folders, image files, tar shards, HDF5 files.
        output: a path, or "-" for standard output.
        tokenizer: one on the device to use, or the name of one.
        options: which images are taken, how they are brought to the size, where their captions and labels come from.
        image_size: (height, width) pixels that images are brought to; None for the tokenizer's only size, else 64.
        batch_size: images in the network at once.
        device: of a tokenizer that is named.
        precision: of the encoder: "fp32", or on a GPU "bf16", which the history says: some tokens are others.
        runtime: of the encoder on a CPU: "torch", "onnx" or "auto", see `vqtool.runtimes`; the history says it.
        resume: go on with what an earlier run of the same settings has left; "auto": if there is something.
        force: overwrite an existing file, and what an earlier run has left.
        on_error: told of an image that cannot be read, which is left out; None raises.
        on_start: told the header of the grids and the number of images, before the first is read.
        progress: shows how many images of this process are done.

    Returns:
        How many grids the output has; in a process that is not the main one, how many it made.

    Raises:
        VqtoolError: the output is there or cannot be written; an image, or all of them, cannot be read.
        MismatchError: what an earlier run has left is of other settings or images; names the first difference.
    """
    resume = check_resumable(output, resume=resume, force=force)
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = load_tokenizer(tokenizer).to(distributed.choose_device(device))
    bf16 = is_bf16(precision, tokenizer)
    tokenizer, runtime = use_runtime(tokenizer, runtime, ["encoder"])
    image_size = image_size or tokenizer.usual_size
    grid_header(tokenizer, image_size, {})  # a size that does not fit is refused before images are looked for
    tally = on_error if isinstance(on_error, Tally) else Tally(on_error)
    before = len(tally.skipped)
    items = find_images(sources, options, on_error=None if on_error is None else tally)
    num = len(items) + len(tally.skipped) - before
    check_lengths(items)
    fit = choose_fit(items, image_size, options.fit, factor=tokenizer.factor)
    how = {"precision": precision} if bf16 else {}
    how |= {} if runtime == "torch" else {"runtime": runtime}
    header = grid_header(tokenizer, image_size, _record(items, tokenizer, num, **how), fit=fit)
    if fit == "pad":
        _check_borders(items, tokenizer, image_size)
    if on_start is not None:
        on_start(header, len(items))
    bad = list[tuple[ImageItem, str]]()

    def skip(item: ImageItem, error: VqtoolError) -> None:
        if on_error is None:
            raise error
        bad.append((item, str(error)))
        on_error(item, error)

    with resumable_writer(output, header, resume=resume, force=force) as writer:
        left = distributed.own_share(items)
        if isinstance(writer, Journal) and writer.kept_ids:
            left, passed = _not_done(left, writer)
            _skip_again(passed, skip)
        with progress("encode", len(left)) as advance:
            for batch in encode_images(
                left, tokenizer, image_size, batch_size=batch_size, fit=fit, bf16=bf16, on_error=skip
            ):
                writer.write(batch)
                advance(len(batch))
        if _tell_main(items, bad, on_error) == len(items):
            raise VqtoolError(f"none of the {len(items)} images could be read")
    return writer.num_grids


def _record(items: Sequence[ImageItem], tokenizer: Tokenizer, num: int, **how: Any) -> dict[str, Any]:
    """What stands in the history of grids: how many images there were, which are taken and their words, and how."""
    words = [text or "" for item in items for text in (item.id, item.label, join_captions(item.captions))]
    inputs = {"tokenizer": tokenizer.fingerprint}
    return history_record("encode", inputs=inputs, num=num, images=text_digest(words), **how)


def _tell_main(items: Sequence[ImageItem], bad: Sequence[tuple[ImageItem, str]], on_error: OnError | None) -> int:
    """Tell the main process of images that others have left out; returns how many all of them did."""
    numbers = {id(item): number for number, item in enumerate(items)} if bad else {}
    of_all = distributed.gather_objects([(numbers[id(item)], text) for item, text in bad])
    if distributed.is_main_process() and on_error is not None:
        for number, text in chain.from_iterable(of_all[1:]):
            on_error(items[number], VqtoolError(text))
    return sum(map(len, of_all))


def check_lengths(items: Sequence[ImageItem]) -> None:
    """Refuse what grid files cannot hold before the first image is read.

    Raises:
        VqtoolError: an id, label or caption is too long; names the image.
    """
    for item in items:
        for name, text in (("id", item.id), ("label", item.label), ("captions", join_captions(item.captions))):
            if text and len(text) * 4 > MAX_TEXT_BYTES and len(clean_text(text).encode()) > MAX_TEXT_BYTES:
                raise VqtoolError(
                    f"{item.location}: the {name} {text[:40]!r}... have {len(text):,} characters, more than the "
                    f"{MAX_TEXT_BYTES:,} bytes that token grids hold: shorten it, or see `caption_lines`"
                )


def _not_done(items: Sequence[ImageItem], journal: Journal) -> tuple[Sequence[ImageItem], list[ImageItem]]:
    """The images after those that a journal has grids of, and those before them that it has none of.

    Raises:
        MismatchError: its grids are of other images.
    """
    passed, position = [], 0
    for number, id in enumerate(journal.kept_ids):
        while position < len(items) and clean_text(items[position].id) != id:
            passed.append(items[position])
            position += 1
        if position == len(items):
            raise MismatchError(
                f"{journal.path}: grid {number} is of an image {id!r}, which is not among the inputs in that place: "
                "resume with what the run was started with, or start anew with `force`"
            )
        position += 1
    return items[position:], passed


def _skip_again(items: Sequence[ImageItem], skip: OnError) -> None:
    """Name the images that an earlier run could not read.

    Raises:
        MismatchError: one of them can be read now, so that the run would not end as it would have.
    """
    for item in items:
        try:
            read_image(item, None)
        except VqtoolError as error:
            skip(item, error)
        else:
            raise MismatchError(f"{item.location}: was left out before and can be read now: start anew with `force`")


@dataclass(frozen=True)
class DecodedImages:
    """What `decode` wrote."""

    num_images: int
    warnings: tuple[str, ...]  # what the user should know


@claims()
def decode(
    source: str | Path,
    output: str | Path = "decoded",
    tokenizer: str | Path | None = None,
    *,
    batch_size: int = 32,
    device: str = "auto",
    precision: str = "fp32",
    runtime: str = "torch",
    force: bool = False,
    on_start: Callable[[GridHeader, Tokenizer], None] | None = None,
    progress: Progress = silent,
) -> DecodedImages:
    """Write the images of token grids: a folder of PNG files, a tar or one preview, as the output's name asks for.

    What an edit of images hands on through a pipe is images already, in a tar: they are written as they are.

    Under `accelerate launch` every process writes a part of a folder; the others have nothing to do for a tar, a
    preview or grids from a pipe.

    Args:
        source: token grids; "-" for standard input, which may also be a tar of images.
        output: a folder, x.tar, x.png, or "-" for a tar on standard output.
        tokenizer: instead of the one that the grids name.
        batch_size: grids in the network at once.
        device: to compute on.
        precision: of the decoder: "fp32", or on a GPU "bf16".
        runtime: of the decoder on a CPU: "torch", "onnx" or "auto", see `vqtool.runtimes`.
        force: overwrite; and decode with another tokenizer than that of the grids, if codes and grids fit.
        on_start: told the header of the grids and the tokenizer, before the first is decoded.
        progress: shows how many are done.

    Raises:
        VqtoolError: the grids are damaged (what arrived before is there), the tokenizer is not, or the output is there.
        MismatchError: it is another tokenizer.
    """
    output = Path(output)
    kind, rank, num = writer_type(output), distributed.rank(), distributed.world_size()
    is_shared = kind is FolderWriter and not is_stream(source)
    if not is_shared and not distributed.is_main_process():
        return DecodedImages(0, ())
    if pipes_images(source):
        if tokenizer is not None:
            raise VqtoolError("`tokenizer` is for token grids, but standard input holds images: nothing is decoded")
        with kind(output, force=force) as writer:
            for item in find_images([source]):
                texts = [item.label or ""], [join_captions(item.captions)]
                writer.write(read_original(item)[None], [item.id], *texts)
        return DecodedImages(writer.num_images, ())
    with kind(output, force=force) as writer, open_grids(source) as reader:
        if is_shared:
            distributed.wait_for_all()  # until every process has seen that the folder is free
        model = tokenizer_of(reader.header, source, given=tokenizer, force=force).to(distributed.choose_device(device))
        bf16 = is_bf16(precision, model)
        model, _ = use_runtime(model, runtime, ["decoder"])
        if on_start is not None:
            on_start(reader.header, model)
        with progress("decode", reader.num_grids) as advance:
            for number, batch in enumerate(reader.batches(batch_size)):
                if is_shared and isinstance(writer, FolderWriter) and number % num != rank:
                    writer.pass_over(batch.ids, batch.labels, batch.captions)
                else:
                    writer.write(decode_batch(batch, model, bf16=bf16), batch.ids, batch.labels, batch.captions)
                advance(len(batch))
    warnings = []
    if isinstance(writer, PreviewWriter) and writer.num_dropped:
        warnings.append(f"{writer.num_dropped} images did not fit on the preview and were left out")
    if isinstance(writer, FolderWriter) and writer.num_others:
        warnings.append(f"{writer.num_others} files that were in {output} before are still there")
    return DecodedImages(writer.num_images, tuple(warnings))


def _check_borders(items: Sequence[ImageItem], tokenizer: Tokenizer, image_size: tuple[int, int]) -> None:
    """Tell where white borders do not come back white: the tokenizer has seen none.

    Warns:
        VqtoolWarning: says how far they are from white, in the first few pictures that have borders.
    """
    shapes = ((item, find_shape(item)) for item in items[:_PROBED])
    bordered = [item for item, shape in shapes if shape and shared([shape], image_size)[0] < 1 - LOST]
    for batch in read_batches(bordered, image_size, _PROBED, fit="pad", on_error=lambda item, error: None):
        white = np.stack([border(find_shape(item) or image_size, image_size) for item in batch.items])  # (B, h, w)
        made = decode_batch(encode_batch(batch, tokenizer), tokenizer).transpose(0, 2, 3, 1)[white]  # (N, 3)
        off = 255 - made.mean() if len(made) else 0
        if off > _WHITE:
            warn(
                f"the white borders come back {off:.0f} levels of 255 darker: tokenizer {tokenizer.location} seems "
                "never to have seen any; go on with it by `vqtool train-tokenizer --fit pad --from`, or take `fit` crop"
            )


def grid_header(
    tokenizer: Tokenizer, image_size: tuple[int, int], record: dict[str, Any], *, fit: str = "crop"
) -> GridHeader:
    """The header of grids that this tokenizer makes from images that were fitted to (h, w) pixels.

    Raises:
        VqtoolError: the size does not fit the tokenizer.
    """
    return GridHeader(
        codebook_size=tokenizer.codebook_size,
        grid_size=tokenizer.grid_size(image_size),
        image_size=image_size,
        tokenizer_fingerprint=tokenizer.fingerprint,
        tokenizer_location=tokenizer.location,
        preprocessing=PREPROCESSING[fit],
        history=(record,),
    )


def encode_images(
    items: Sequence[ImageItem],
    tokenizer: Tokenizer,
    image_size: tuple[int, int],
    *,
    batch_size: int,
    fit: str = "crop",
    bf16: bool = False,
    on_error: OnError | None = None,
) -> Iterator[GridBatch]:
    """Token grids of images, in their order.

    Args:
        items: from `find_images`.
        tokenizer: on the device to use.
        image_size: (h, w) that images are brought to.
        batch_size: images in the network at once.
        fit: how they are brought to it: see `vqtool.images.read_image`.
        bf16: whether the encoder computes in bfloat16.
        on_error: told of a bad image, which is left out; None raises.
    """
    for batch in read_batches(items, image_size, batch_size, fit=fit, on_error=on_error):
        yield encode_batch(batch, tokenizer, bf16=bf16)


def encode_batch(batch: ImageBatch, tokenizer: Tokenizer, *, bf16: bool = False) -> GridBatch:
    """Token grids of images, with what is known of them."""
    images = torch.from_numpy(np.require(batch.images, requirements="W"))  # torch warns of read-only memory
    tokens = tokenizer.encode(to_float(images.to(tokenizer.device)), bf16=bf16)
    return GridBatch(tokens.cpu().numpy().astype(np.uint32), batch.ids, batch.labels, batch.captions)


def decode_batch(batch: GridBatch, tokenizer: Tokenizer, *, bf16: bool = False) -> NDArray[np.uint8]:
    """Images (B, 3, h, w) of token grids."""
    tokens = torch.from_numpy(batch.tokens.astype(np.int64)).to(tokenizer.device)
    return to_uint8(tokenizer.decode(tokens, bf16=bf16))


def is_bf16(precision: str, tokenizer: Tokenizer) -> bool:
    """Whether a precision means bfloat16.

    Raises:
        VqtoolError: an unknown one, or bfloat16 on a CPU.
    """
    check_known("precision", precision, PRECISIONS)
    if precision == "bf16" and tokenizer.device.type == "cpu":
        raise VqtoolError("`precision` bf16 is for GPUs: on a CPU it gains next to nothing; leave it out")
    return precision == "bf16"
