"""Pictures to edit, from files: token grids, or images by the windows of them that the prior works on."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import VqtoolError, count_text, size_text, warn
from vqtool.grids import GridHeader, open_grids
from vqtool.images import ImageBatch, ImageItem, SourceOptions, find_images, parse_size
from vqtool.images.reader import is_deep, read_original
from vqtool.images.shapes import find_shape
from vqtool.images.sources.options import refuse_for_grids
from vqtool.priors import Prior
from vqtool.progress import Notify
from vqtool.samplers._changes import Wanted, build_change, check_fits
from vqtool.samplers._framing import Framed, Framing, Given, cut_all, mask_frames
from vqtool.tally import Tally
from vqtool.tokenizers import Tokenizer, tokenizer_of
from vqtool.tokenizers._onnx import use_runtime
from vqtool.tokenizers.batches import check_lengths, encode_batch, grid_header

Images = NDArray[np.uint8]  # (B, 3, height, width)
OnError = Callable[[ImageItem, VqtoolError], None]


@dataclass(frozen=True)
class Pictures:
    """What is to be edited.

    Attributes:
        name: of the source, for messages.
        header: of the grids that are made; of images with windows of several sizes, of the first.
        sizes: of the grids that are made.
        columns: of "class" and "caption" those that some picture has.
        labels: of all images, each once; none of grids, whose labels are not known yet.
        total: how many there are; None if unknown.
        num_images: how many images were given, with those that could not be found out about; None of grids.
        digests: what stands in the history of what is made of them.
        read: read(count) yields so many at a time, or fewer.
        tokenizer: finds what the grids decode with, on the prior's device.
        framing: how what is made comes back into images; None of grids.
    """

    name: str
    header: GridHeader
    sizes: frozenset[tuple[int, int]]
    columns: frozenset[str]
    labels: tuple[str, ...]
    total: int | None
    num_images: int | None
    digests: dict[str, str]
    read: Callable[[int], Iterator[Given]]
    tokenizer: Callable[[], Tokenizer]
    framing: Framing | None = None


@contextmanager
def open_pictures(
    sources: Sequence[str | Path],
    prior: Prior,
    wanted: Wanted,
    *,
    are_grids: bool,
    size: str | None,
    options: SourceOptions,
    tokenizer: str | Path | None,
    runtime: str,
    on_error: OnError | None,
    notify: Notify,
) -> Iterator[Pictures]:
    """Open grids, or images.

    Args:
        sources: a grid file ("-" is standard input), or images as for `find_images`.
        prior: that edits them.
        wanted: what is done to them.
        are_grids: whether they are token grids.
        size: pixels that windows are brought to, such as "64" or "48x80"; None for those of the prior's training.
        options: which images are taken.
        tokenizer: a file or "builtin"; None for the one that the grids or the prior name.
        runtime: what runs it on a CPU: see `vqtool.runtimes`.
        on_error: told of a bad image, which is left out; None raises.
        notify: is told what was found.

    Raises:
        VqtoolError: several grid files, a size for grids, a mask that does not fit, or something cannot be read.
    """
    paths = [Path(source) for source in sources]
    source = paths[0]
    if not are_grids:
        model = tokenizer_of(prior.grid_spec, prior.location or None, given=tokenizer).to(prior.device)
        yield _open_images(paths, prior, wanted, size, options, use_runtime(model, runtime)[0], on_error, notify)
        return
    if len(paths) > 1:
        raise VqtoolError("one grid file at a time; `vqtool cat a.h5 b.h5` joins several in a pipe")
    refuse_for_grids(options, source)
    if size is not None:
        raise VqtoolError(f"`size` is for images, but {source} holds token grids")
    with open_grids(source, masked=not wanted.masks and wanted.strength is None) as reader:
        change = build_change(prior, reader.header, reader.name, wanted)

        def read(count: int) -> Iterator[Given]:
            number = 0
            for batch in reader.batches(count):
                yield Given(batch, change.open(batch, number))
                number += len(batch)

        def find() -> Tokenizer:
            found = tokenizer_of(reader.header, source, given=tokenizer).to(prior.device)
            return use_runtime(found, runtime, ["decoder"])[0]

        yield Pictures(
            name=reader.name,
            header=change.header,
            sizes=frozenset([change.header.grid_size]),
            columns=frozenset({"label": "class"}.get(column, column) for column in reader.columns),
            labels=(),
            total=reader.num_grids,
            num_images=None,
            digests={reader.name: reader.digest} if reader.digest else {},
            read=read,
            tokenizer=cache(find),
        )


def _open_images(
    sources: Sequence[Path],
    prior: Prior,
    wanted: Wanted,
    size: str | None,
    options: SourceOptions,
    model: Tokenizer,
    on_error: OnError | None,
    notify: Notify,
) -> Pictures:
    name = str(sources[0])
    framing = build_framing(prior, model, wanted, name, size)
    skipped = len(on_error.skipped) if isinstance(on_error, Tally) else 0
    items = find_images(sources, options=options, on_error=on_error)
    skipped = len(on_error.skipped) - skipped if isinstance(on_error, Tally) else 0
    check_lengths(items)
    sizes = _check_shapes(items, framing)
    header = replace(framing.header, grid_size=sizes[0], image_size=model.image_size(sizes[0]))
    windows = f"{size_text(header.image_size)} pixels, {size_text(sizes[0])} tokens"
    notify(f"{count_text(len(items), 'image')} in windows of {windows}")

    def read(count: int) -> Iterator[Given]:
        owners, frames, number, transparent, deep = list[ImageItem](), list[Framed](), 0, list[str](), list[str]()
        for item in items:
            try:
                image = read_original(item)
            except VqtoolError as error:
                if on_error is None:
                    raise
                on_error(item, error)
                continue
            transparent += [item.id] if len(image) % 2 == 0 and image[-1].min() < 255 else []
            deep += [item.id] if is_deep(item) else []
            framed = framing.frame(image, number)
            if frames and (len(frames) == count or frames[0].window.size != framed.window.size):
                yield _encode(owners, frames, model)
                owners, frames = [], []
            owners, frames, number = [*owners, item], [*frames, framed], number + 1
        if frames:
            yield _encode(owners, frames, model)
        _tell(transparent, number, "have transparent pixels, which the prior sees as white: what it draws is opaque")
        _tell(deep, number, "have 16 bits a colour: they come back with the upper 8 (greyscale keeps all 16)")

    known = {"class": any(item.label for item in items), "caption": any(item.caption for item in items)}
    return Pictures(
        name=name,
        header=header,
        sizes=frozenset(sizes),
        columns=frozenset(kind for kind, is_known in known.items() if is_known),
        labels=tuple(dict.fromkeys(item.label for item in items if item.label)),
        total=len(items),
        num_images=len(items) + skipped,
        digests={"tokenizer": model.fingerprint},
        read=read,
        tokenizer=lambda: model,
        framing=framing,
    )


def _tell(ids: Sequence[str], num: int, what: str) -> None:
    """Warn of pictures, if there are some, by the first one's id."""
    if ids:
        warn(f"{len(ids)} of {count_text(num, 'picture')} ({ids[0]}{', ...' if len(ids) > 1 else ''}) {what}")


def build_framing(prior: Prior, tokenizer: Tokenizer, wanted: Wanted, name: str, size: str | None = None) -> Framing:
    """How images are edited, in windows brought to a size; None for that of the prior's training.

    Raises:
        MismatchError: the tokenizer is not the prior's.
        VqtoolError: something is not possible, or the prior cannot make such grids.
    """
    pixels = prior.grid_spec.image_size if size is None else parse_size(size)
    header = replace(grid_header(tokenizer, pixels, {}), history=(), preprocessing=prior.grid_spec.preprocessing)
    wanted.check(prior, header, name)
    check_fits(prior, header, name)
    return Framing(replace(header, masked=wanted.masked), wanted)


def _encode(items: list[ImageItem], frames: list[Framed], tokenizer: Tokenizer) -> Given:
    return mask_frames(encode_batch(ImageBatch(cut_all(frames), items), tokenizer), frames, tokenizer.codebook_size)


def _check_shapes(items: Sequence[ImageItem], framing: Framing) -> list[tuple[int, int]]:
    """The sizes of the grids that pictures make, the first picture's first; raises where a mask does not fit one."""
    shapes: dict[tuple[int, int], ImageItem] = {}
    for item in items:
        shape = find_shape(item)
        if shape is not None:
            shapes.setdefault(shape, item)
    sizes = []
    for shape, item in shapes.items():
        try:
            framed = framing.frame(np.zeros((3, *shape), np.uint8), 0)
        except VqtoolError as error:
            raise VqtoolError(f"{item.location}: {error}" if len(shapes) > 1 else str(error)) from error
        sizes.append((framed.cells.shape[0], framed.cells.shape[1]))
    return list(dict.fromkeys(sizes)) or [framing.header.grid_size]
