"""Images: find them, read them as uint8 (3, height, width); uint8 outside, float [-1, 1] inside.

How one picture becomes pixels stands in pixels.py, where pictures come from in sources/. Here many of them are read in
threads, ahead of whoever consumes them, in order and in bounded memory.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from vqtool.captions import join_captions
from vqtool.errors import FormatError, VqtoolError, count_text
from vqtool.images.pixels import Own, fit_pixels, has_deep_colour, read_own_pixels, read_pixels
from vqtool.images.shapes import choose_fit
from vqtool.images.sources import ImageItem, SourceOptions, WordsNeeded, find_images
from vqtool.images.sources.ids import Items
from vqtool.images.sources.options import DEFAULTS
from vqtool.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor

OnError = Callable[[ImageItem, VqtoolError], None]
_Found = TypeVar("_Found")
_Pending = Future[NDArray[np.uint8]]
_LARGEST_SIDE = 16384  # pixels
_PROBED_IMAGES = 8  # whose size `common_size` looks at
_LARGEST_SHORT_SIDE = 256  # pixels
_READ_BATCH = 64  # images
_MEMORY_BYTES = 2 << 30  # beyond this many bytes the images of `read_images` lie in a temporary file
_AHEAD = 4  # images a worker that are read beyond the next batch


@dataclass(frozen=True)
class ImageBatch:
    """Images with what is known of them."""

    images: NDArray[np.uint8]  # (B, 3, height, width)
    items: list[ImageItem]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def ids(self) -> list[str]:
        """Their names, unique among the images found together."""
        return [item.id for item in self.items]

    @property
    def labels(self) -> list[str] | None:
        """Their classes, "" for one that has none; None if none of them has."""
        return _known([item.label for item in self.items])

    @property
    def captions(self) -> list[str] | None:
        """Their captions, several as by `captions.join_captions`, "" for one that has none; None if none has any."""
        return _known([join_captions(item.captions) or None for item in self.items])


def parse_size(text: str, name: str = "size", unit: str = "pixels") -> tuple[int, int]:
    """Parse "64" or "48x80" as (height, width).

    Args:
        text: one number for both sides, or HEIGHTxWIDTH.
        name: of the parameter or flag, for the message.
        unit: "pixels" of images or "cells" of grids, for the message.

    Raises:
        VqtoolError: anything else.
    """
    match = re.fullmatch(r"\s*([0-9]{1,6})(?:[xX×]([0-9]{1,6}))?\s*", text)
    sides = [int(side) for side in match.groups() if side is not None] if match else []
    if not sides or not all(0 < side <= _LARGEST_SIDE for side in sides):
        raise VqtoolError(
            f"{name} {text!r}: expected one number or HEIGHTxWIDTH in {unit}, each 1 to {_LARGEST_SIDE}, "
            "for example 64 or 48x80"
        )
    return sides[0], sides[-1]


def read_images(
    sources: str | Path | Sequence[str | Path] | Sequence[ImageItem],
    size: int | str | tuple[int, int] | None = None,
    *,
    options: SourceOptions = DEFAULTS,
    words: WordsNeeded = "all",
    on_error: OnError | None = None,
    progress: Progress = silent,
) -> ImageBatch:
    """Read all images of some sources at once; `read_batches` reads them one batch at a time.

    Args:
        sources: a folder, image file, tar shard or HDF5 file of images, several of them, or what `find_images` found.
        size: pixels to bring them to: 64, (48, 80), or "48x80" as commands take it (height first); None: the
            images' own, which must then be the same for all.
        options: which images are taken, how they are brought to the size, where their captions and labels come from.
        words: whether captions and labels are needed; see `find_images`.
        on_error: called for each image that cannot be read, which is then left out; None: raise.
        progress: shows how far it is; see `vqtool.progress`.

    Returns:
        The images (N, 3, height, width), uint8, with their ids, labels and captions. Beyond 2 GB they lie in a
        temporary file that is paged in as needed.

    Raises:
        FormatError: an image cannot be read, and there is no on_error.
        VqtoolError: no images, none that can be read, or sizes that differ where none was given.
    """
    items = _find(sources, options, words, on_error)
    sides = parse_size(str(size)) if isinstance(size, int | str) else size
    fit = choose_fit(items, sides, options.fit)
    images: NDArray[np.uint8] | None = None
    kept: list[ImageItem] = []
    with progress("read", len(items)) as advance:
        for batch in read_batches(items, sides, _READ_BATCH, fit=fit, on_error=on_error):
            if images is None:
                images = _allocate((len(items), *batch.images.shape[1:]))
            images[len(kept) : len(kept) + len(batch)] = batch.images
            kept += batch.items
            advance(len(batch))
    if images is None:
        raise VqtoolError(f"none of the {count_text(len(items), 'image')} could be read")
    return ImageBatch(images[: len(kept)], kept)


def read_image(item: ImageItem, size: tuple[int, int] | None, fit: str = "crop") -> NDArray[np.uint8]:
    """Read one image.

    Args:
        item: from find_images.
        size: (height, width) to bring it to; None: the image's own.
        fit: how: "crop" cuts off what is beyond the size, "pad" puts the picture on white, "stretch" stretches it.

    Returns:
        (3, height, width) uint8, RGB.

    Raises:
        FormatError: the image cannot be read; names it and says why.
    """
    return _read(item, partial(fit_pixels, size=size, fit=fit), partial(read_pixels, size=size, fit=fit))


def read_original(item: ImageItem) -> Own:
    """Read one image in channels of its own, (C, height, width): see `pixels.read_own_pixels`.

    Raises:
        FormatError: as `read_image`.
    """
    return _read(item, partial(fit_pixels, size=None), read_own_pixels)


def read_bytes(item: ImageItem, num: int = -1) -> bytes:
    """The first bytes of an encoded image, or of its pixels; -1 for all. Nothing of one that cannot be read."""
    try:
        raw = item.origin.open()
        if isinstance(raw, np.ndarray):
            return raw.tobytes()[: None if num < 0 else num]
        with raw:
            return raw.read(num)
    except (VqtoolError, OSError):  # told when the image is wanted
        return b""


def is_deep(item: ImageItem) -> bool:
    """Whether `read_original` gives fewer bits than the file has: see `pixels.has_deep_colour`.

    Raises:
        FormatError: as `read_image`.
    """
    return _read(item, lambda pixels: False, has_deep_colour)


def _read(
    item: ImageItem, from_array: Callable[[NDArray[np.uint8]], _Found], from_file: Callable[[BinaryIO], _Found]
) -> _Found:
    try:
        raw = item.origin.open()
        if isinstance(raw, np.ndarray):
            return from_array(raw)
        with raw:
            return from_file(raw)
    except FormatError as error:
        text = str(error)
        raise FormatError(text if text.startswith(item.location) else f"{item.location}: {text}") from error
    except OSError as error:
        raise FormatError(f"{item.location}: cannot be read: {error.strerror or error}") from error


def read_batches(
    items: Iterable[ImageItem],
    size: tuple[int, int] | None,
    batch_size: int,
    *,
    fit: str = "crop",
    workers: int | None = None,
    on_error: OnError | None = None,
) -> Iterator[ImageBatch]:
    """Read images in threads, one batch and a little more ahead of the consumer; order is kept.

    Args:
        items: what to read, in this order.
        size: (height, width); None: the images' own, which must then be the same for all.
        batch_size: images a batch; the last may have fewer.
        fit: how they are brought to the size: see `read_image`.
        workers: threads; None: one for each core at hand, at most 16.
        on_error: called in the consumer's thread for each image that cannot be read, which is then left out;
            None: raise.

    Returns:
        An iterator over batches. Closing it early stops the threads.

    Raises:
        FormatError: an image cannot be read, and there is no on_error.
        VqtoolError: sizes differ and none was given.
    """
    workers = count_workers() if workers is None else workers
    if batch_size < 1 or workers < 1:
        raise ValueError(f"batch_size and workers must be at least 1: {batch_size}, {workers}")
    return _assemble(_read_ahead(items, size, fit, workers, batch_size + _AHEAD * workers), batch_size, on_error)


def common_size(items: Sequence[ImageItem]) -> tuple[int, int] | None:
    """(height, width) that the first few images share, reduced to a short side of 256 px; None if they differ."""
    sizes = set()
    for item in items[:_PROBED_IMAGES]:
        try:
            sizes.add(read_image(item, None).shape[1:])
        except VqtoolError:
            continue  # named when it is read for good
    if len(sizes) != 1:
        return None
    height, width = sizes.pop()
    scale = min(1.0, _LARGEST_SHORT_SIDE / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def to_float(images: NDArray[np.uint8] | Tensor) -> Tensor:
    """Map uint8 0..255 to float32 [-1, 1]; `to_uint8` takes every value back exactly."""
    import torch

    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.require(images, requirements="W"))  # torch warns of read-only memory
    return images.to(torch.float32) / 127.5 - 1.0


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    """Map [-1, 1] to 0..255, rounded to nearest; what lies outside is clamped."""
    import torch

    scaled = (images.detach().to(torch.float32) + 1.0) * 127.5
    return scaled.round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def _find(
    sources: str | Path | Sequence[str | Path] | Sequence[ImageItem],
    options: SourceOptions,
    words: WordsNeeded,
    on_error: OnError | None,
) -> Sequence[ImageItem]:
    if isinstance(sources, Items):
        return sources
    if isinstance(sources, str | Path):
        return find_images([sources], options, words=words, on_error=on_error)
    items = [source for source in sources if isinstance(source, ImageItem)]
    if items and len(items) == len(sources):
        return items
    return find_images(cast("Sequence[str | Path]", sources), options, words=words, on_error=on_error)


def _allocate(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if np.prod(shape, dtype=np.int64) <= _MEMORY_BYTES:
        return np.empty(shape, dtype=np.uint8)
    with tempfile.TemporaryFile() as file:  # the mapping keeps it alive
        return np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)


def _known(texts: Sequence[str | None]) -> list[str] | None:
    return [text or "" for text in texts] if any(text is not None for text in texts) else None


def _read_ahead(
    items: Iterable[ImageItem], size: tuple[int, int] | None, fit: str, workers: int, ahead: int
) -> Generator[tuple[ImageItem, _Pending], None, None]:
    """Items with their images to come, `ahead` of them under way at any time."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="vqtool-images")
    try:
        pending: deque[tuple[ImageItem, _Pending]] = deque()
        source = iter(items)
        pending.extend((item, pool.submit(read_image, item, size, fit)) for item in islice(source, ahead))
        while pending:
            yield pending.popleft()
            pending.extend((item, pool.submit(read_image, item, size, fit)) for item in islice(source, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _assemble(
    reading: Generator[tuple[ImageItem, _Pending], None, None], batch_size: int, on_error: OnError | None
) -> Iterator[ImageBatch]:
    images: list[NDArray[np.uint8]] = []
    items: list[ImageItem] = []
    first: tuple[ImageItem, tuple[int, ...]] | None = None
    try:
        for item, future in reading:
            try:
                image = future.result()
            except VqtoolError as error:
                if on_error is None:
                    raise
                on_error(item, error)
                continue
            first = first or (item, image.shape)
            if image.shape != first[1]:
                raise VqtoolError(_describe_sizes(*first, item, image.shape))
            images.append(image)
            items.append(item)
            if len(images) == batch_size:
                yield ImageBatch(np.stack(images), items)
                images, items = [], []
        if images:
            yield ImageBatch(np.stack(images), items)
    finally:
        reading.close()


def _describe_sizes(first: ImageItem, shape: tuple[int, ...], item: ImageItem, other: tuple[int, ...]) -> str:
    return (
        f"{first.location} has {shape[1]}x{shape[2]} pixels, {item.location} has {other[1]}x{other[2]}: "
        "give a size that all are brought to (--size)"
    )


def count_workers() -> int:
    """How many threads decode images: one for each core at hand, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, cores)
