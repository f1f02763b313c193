"""`encode`: images through a tokenizer, from files to a file.

Memory is flat in the number of images: one batch is in the network while the next is read from disk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from vqtool import distributed
from vqtool.artifacts import history_record, text_digest
from vqtool.captions import join_captions
from vqtool.errors import FormatError, MismatchError, VqtoolError, count_text, warn
from vqtool.grids import GridHeader
from vqtool.grids.batch import SHARD_CONTENT, clean_text
from vqtool.grids.resume import Journal, check_resumable, count_finished, resumable_writer
from vqtool.images import ImageItem, SourceOptions, choose_fit, find_images, read_batches, read_image
from vqtool.images.shapes import LOST, border, find_shape, shared
from vqtool.images.sources.options import DEFAULTS
from vqtool.locks import claims
from vqtool.outputs import delivered
from vqtool.progress import Progress, silent
from vqtool.tally import Tally
from vqtool.tokenizers import BUILTIN, Tokenizer, load_tokenizer
from vqtool.tokenizers._content import Content, unwatched
from vqtool.tokenizers._machine import MachineOptions, prepare, record
from vqtool.tokenizers._onnx import use_runtime
from vqtool.tokenizers.batches import (
    OnError,
    check_lengths,
    decode_batch,
    encode_batch,
    encode_images,
    grid_header,
)
from vqtool.urls import url_of

_PROBED = 16  # images whose borders are looked at
_WHITE = 8  # levels of 255: borders that come back darker are told


@claims()
def encode(
    sources: Sequence[str | Path],
    output: str | Path = "tok.h5",
    tokenizer: Tokenizer | str | Path = BUILTIN,
    *,
    options: SourceOptions = DEFAULTS,
    image_size: tuple[int, int] | None = None,
    device: str = "auto",
    resume: bool | str = False,
    force: bool = False,
    on_error: OnError | None = None,
    on_start: Callable[[GridHeader, int], None] | None = None,
    progress: Progress = silent,
    **machine: Any,
) -> int:
    """Write the token grids of images to a file or stream.

    What is done is kept beside the file until all is done: see `grids.resume`. Under `accelerate launch` every process
    does a part.

    Args:
        sources: folders, image files, tar shards, HDF5 files.
        output: a path or URL, or "-" for standard output.
        tokenizer: one on the device to use, or the name of one.
        options: which images are taken, how they are brought to the size, where their captions and labels come from.
        image_size: (height, width) pixels that images are brought to; None for the tokenizer's only size, else 64.
        device: of a tokenizer that is named.
        resume: go on with what an earlier run of the same settings has left; "auto": if there is something.
        force: overwrite an existing file, and what an earlier run has left.
        on_error: told of an image that cannot be read, which is left out; None raises.
        on_start: told the header of the grids and the number of images, before the first is read; not told where
            nothing is left to do.
        progress: shows how many images of this process are done.
        **machine: of `MachineOptions`, by name: `batch_size`, `precision`, `runtime`, `compile`.

    Returns:
        How many grids the output has; in a process that is not the main one, how many it made.

    Raises:
        VqtoolError: the output is there or cannot be written; an image, or all of them, cannot be read.
        MismatchError: what an earlier run has left is of other settings or images; names the first difference.
    """
    if resume and url_of(output):
        raise VqtoolError("`resume` goes on with a file: behind a URL nothing is kept of a run that was interrupted")
    with delivered(output, force=force) as path:
        go_on = check_resumable(path, resume=resume, force=force)
        encoder = prepare_encoder(tokenizer, image_size, device, MachineOptions(**machine))
        tally = on_error if isinstance(on_error, Tally) else Tally(on_error)
        before = len(tally.skipped)
        items = find_images(sources, options, on_error=None if on_error is None else tally)
        num = len(items) + len(tally.skipped) - before
        check_lengths(items)
        fit = encoder.choose_fit(items, options.fit)
        header = encoder.header(items, num, fit)
        if (there := count_finished(path, header, resume=resume, force=force)) is not None:
            warn(f"{output} is complete: nothing is left to do")
            return there
        if on_start is not None:
            on_start(header, len(items))
        return encode_items(
            items, path, encoder, header, fit=fit, resume=go_on, force=force, on_error=on_error, progress=progress
        )


@dataclass(frozen=True)
class Encoder:
    """A tokenizer, and how it is to encode; made by `prepare_encoder`."""

    tokenizer: Tokenizer
    image_size: tuple[int, int]
    machine: MachineOptions  # its runtime is never "auto"

    def choose_fit(self, items: Sequence[ImageItem], given: str | None) -> str:
        """How images are brought to the size: as is given, or as most of these ask for.

        Warns:
            VqtoolWarning: white borders do not come back white.
        """
        fit = choose_fit(items, self.image_size, given, factor=self.tokenizer.factor)
        if fit == "pad":
            _check_borders(items, self.tokenizer, self.image_size)
        return fit

    def header(self, items: Sequence[ImageItem], num: int, fit: str, **more: Any) -> GridHeader:
        """The header of their grids.

        Args:
            items: the images that are taken.
            num: how many there were.
            fit: how they are brought to the size.
            more: what else the history says.
        """
        words = (text or "" for item in items for text in (item.id, item.label, join_captions(item.captions)))
        machine = self.machine
        how: dict[str, Any] = {**record(machine.precision, self.tokenizer.device, compile=machine.compile)}
        how |= {} if machine.runtime == "torch" else {"runtime": machine.runtime}
        inputs = {"tokenizer": self.tokenizer.identity}
        step = history_record("encode", inputs=inputs, num=num, images=text_digest(words), **how, **more)
        return grid_header(self.tokenizer, self.image_size, step, fit=fit)


def prepare_encoder(
    tokenizer: Tokenizer | str | Path,
    image_size: tuple[int, int] | None,
    device: str,
    machine: MachineOptions,
) -> Encoder:
    """Load a tokenizer, if it is named, and check all that `encode` is told of it.

    Raises:
        VqtoolError: it cannot be loaded, or the size, precision, device or runtime do not fit it.
    """
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = load_tokenizer(tokenizer).to(distributed.choose_device(device))
    tokenizer = prepare(tokenizer, machine, "encoder")
    tokenizer, runtime = use_runtime(tokenizer, machine.runtime, ["encoder"])
    image_size = image_size or tokenizer.usual_size
    grid_header(tokenizer, image_size, {})  # a size that does not fit is refused before images are looked for
    return Encoder(tokenizer, image_size, replace(machine, runtime=runtime))


def encode_items(
    items: Sequence[ImageItem],
    output: str | Path,
    encoder: Encoder,
    header: GridHeader,
    *,
    fit: str,
    resume: bool,
    force: bool,
    on_error: OnError | None,
    progress: Progress,
    content: Content | None = None,
) -> int:
    """Write the grids of images that have been found; arguments and errors are those of `encode`.

    Of a shard `content` takes in the bytes of all images, and the history says their digest.
    """
    bad = list[tuple[ImageItem, str]]()

    def skip(item: ImageItem, error: VqtoolError) -> None:
        if on_error is None:
            raise error
        item = unwatched(item)
        bad.append((item, str(error)))
        on_error(item, error)

    with resumable_writer(output, header, resume=resume, force=force) as writer:
        left = distributed.own_share(items)
        if isinstance(writer, Journal) and writer.kept_ids:
            left, passed = _not_done(left, writer)
            _skip_again(passed, skip)
        if content is not None:
            content.read(items[: len(items) - len(left)])
        with progress("encode", len(left)) as advance:
            for batch in encode_images(
                left if content is None else content.watch(left),
                encoder.tokenizer,
                encoder.image_size,
                batch_size=encoder.machine.batch_size,
                fit=fit,
                precision=encoder.machine.precision,
                on_error=skip,
            ):
                writer.write(batch)
                advance(len(batch))
        if _tell_main(items, bad, on_error) == len(items):
            raise FormatError(f"none of the {count_text(len(items), 'image')} could be read")
        if content is not None:
            if isinstance(writer, Journal):
                writer.flush()  # whose header stays that of the start
            *before, record = writer.header.history
            record = {**record, SHARD_CONTENT: content.digest()}
            writer.header = replace(writer.header, history=(*before, record))
    return writer.num_grids


def _tell_main(items: Sequence[ImageItem], bad: Sequence[tuple[ImageItem, str]], on_error: OnError | None) -> int:
    """Tell the main process of images that others have left out; returns how many all of them did."""
    numbers = {item.id: number for number, item in enumerate(items)} if bad else {}
    of_all = distributed.gather_objects([(numbers[item.id], text) for item, text in bad])
    if distributed.is_main_process() and on_error is not None:
        for number, text in chain.from_iterable(of_all[1:]):
            on_error(items[number], VqtoolError(text))
    return sum(map(len, of_all))


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
