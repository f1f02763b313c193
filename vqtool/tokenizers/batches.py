"""Images through a tokenizer and back, batch by batch; and `decode`, from files to files."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool import distributed
from vqtool.captions import join_captions
from vqtool.errors import VqtoolError, count_text
from vqtool.grids import GridBatch, GridHeader, open_grids
from vqtool.grids.batch import MAX_TEXT_BYTES, clean_text
from vqtool.images import (
    PREPROCESSING,
    ImageBatch,
    ImageItem,
    find_images,
    read_batches,
    to_float,
    to_uint8,
)
from vqtool.images.reader import read_original
from vqtool.images.sources import pipes_images
from vqtool.images.writer import FolderWriter, PreviewWriter, writer_type
from vqtool.locks import claims
from vqtool.outputs import is_stream
from vqtool.progress import Progress, silent
from vqtool.tokenizers import Tokenizer, tokenizer_of
from vqtool.tokenizers._machine import MachineOptions, by_parts, prepare
from vqtool.tokenizers._onnx import use_runtime

OnError = Callable[[ImageItem, VqtoolError], None]


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
    device: str = "auto",
    force: bool = False,
    on_start: Callable[[GridHeader, Tokenizer], None] | None = None,
    progress: Progress = silent,
    **machine: Any,
) -> DecodedImages:
    """Write the images of token grids: a folder of PNG files, a tar or one preview, as the output's name asks for.

    What an edit of images hands on through a pipe is images already, in a tar: they are written as they are.

    Under `accelerate launch` every process writes a part of a folder; the others have nothing to do for a tar, a
    preview or grids from a pipe.

    Args:
        source: token grids; "-" for standard input, which may also be a tar of images.
        output: a folder, x.tar, x.png, or "-" for a tar on standard output.
        tokenizer: instead of the one that the grids name.
        device: to compute on.
        force: overwrite; and decode with another tokenizer than that of the grids, if codes and grids fit.
        on_start: told the header of the grids and the tokenizer, before the first is decoded.
        progress: shows how many are done.
        **machine: of `MachineOptions`, by name: `batch_size`, `precision`, `runtime`, `compile`.

    Raises:
        VqtoolError: the grids are damaged (what arrived before is there), the tokenizer is not, or the output is there.
        MismatchError: it is another tokenizer.
    """
    output, how = Path(output), MachineOptions(**machine)
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
        model = prepare(model, how, "decoder")
        model, _ = use_runtime(model, how.runtime, ["decoder"])
        if on_start is not None:
            on_start(reader.header, model)
        with progress("decode", reader.num_grids) as advance:
            for number, batch in enumerate(reader.batches(how.batch_size)):
                if is_shared and isinstance(writer, FolderWriter) and number % num != rank:
                    writer.pass_over(batch.ids, batch.labels, batch.captions)
                else:
                    images = decode_batch(batch, model, precision=how.precision)
                    writer.write(images, batch.ids, batch.labels, batch.captions)
                advance(len(batch))
    warnings = []
    if isinstance(writer, PreviewWriter) and writer.num_dropped:
        warnings.append(f"{count_text(writer.num_dropped, 'image')} did not fit on the preview: left out")
    if isinstance(writer, FolderWriter) and writer.num_others:
        warnings.append(f"still in {output} as before: {count_text(writer.num_others, 'file')}")
    return DecodedImages(writer.num_images, tuple(warnings))


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
        tokenizer_fingerprint=tokenizer.identity,
        tokenizer_location=tokenizer.location,
        preprocessing=PREPROCESSING[fit],
        history=(record,),
    )


def encode_images(
    items: Iterable[ImageItem],
    tokenizer: Tokenizer,
    image_size: tuple[int, int],
    *,
    batch_size: int,
    fit: str = "crop",
    precision: str = "auto",
    on_error: OnError | None = None,
) -> Iterator[GridBatch]:
    """Token grids of images, in their order.

    Args:
        items: from `find_images`.
        tokenizer: on the device to use.
        image_size: (h, w) that images are brought to.
        batch_size: images in the network at once.
        fit: how they are brought to it: see `vqtool.images.read_image`.
        precision: of the encoder.
        on_error: told of a bad image, which is left out; None raises.
    """
    for batch in read_batches(items, image_size, batch_size, fit=fit, on_error=on_error):
        yield encode_batch(batch, tokenizer, precision=precision)


def encode_batch(batch: ImageBatch, tokenizer: Tokenizer, *, precision: str = "auto") -> GridBatch:
    """Token grids of images, with what is known of them."""
    images = torch.from_numpy(np.require(batch.images, requirements="W"))  # torch warns of read-only memory

    def encode(part: Tensor) -> Tensor:
        return tokenizer.encode(to_float(part), precision=precision)

    tokens = by_parts(encode, images.to(tokenizer.device), tokenizer)
    return GridBatch(tokens.cpu().numpy().astype(np.uint32), batch.ids, batch.labels, batch.captions)


def decode_batch(batch: GridBatch, tokenizer: Tokenizer, *, precision: str = "auto") -> NDArray[np.uint8]:
    """Images (B, 3, h, w) of token grids."""
    tokens = torch.from_numpy(batch.tokens.astype(np.int64)).to(tokenizer.device)
    return to_uint8(by_parts(lambda part: tokenizer.decode(part, precision=precision), tokens, tokenizer))
