"""What a tokenizer's encoder makes of images: vectors to fit a codebook to, in memory or in a file."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool.errors import MismatchError, VqtoolError
from vqtool.grids import GridBatch, GridHeader, open_grids
from vqtool.images import ImageItem, OnError, read_batches, to_float
from vqtool.progress import Progress, silent
from vqtool.tokenizers import Tokenizer

READ_BATCH = 64  # images
PROBED_GRIDS = 8  # whose tokens are compared with their images


def sample_latents(
    items: Sequence[ImageItem],
    tokenizer: Tokenizer,
    image_size: tuple[int, int],
    num: int,
    noise: np.random.Generator,
    *,
    fit: str = "crop",
    file: Path | None = None,
    on_error: OnError | None = None,
    progress: Progress = silent,
) -> Tensor:
    """Encoder outputs from random cells of random images.

    Args:
        items: images to take from.
        tokenizer: on the device to use.
        image_size: (h, w) that images are brought to.
        num: how many vectors; fewer if the images have fewer cells.
        noise: chooses images and cells.
        fit: how they are brought to it: see `vqtool.images.read_image`.
        file: where to keep the vectors instead of in memory; has to outlive what is returned.
        on_error: told of a bad image, which is left out; None raises.
        progress: shows how far it is.

    Returns:
        (N, D) float32 on the CPU, N <= num; a view of the file where there is one.

    Raises:
        VqtoolError: the file cannot be written.
    """
    parts = _latents(items, tokenizer, image_size, fit, num, noise, on_error, progress)
    dim = tokenizer.codebook.shape[1]
    if file is None:
        return torch.cat([torch.empty(0, dim), *parts])
    try:
        with file.open("wb") as stream:
            for part in parts:
                stream.write(part.contiguous().numpy().data)
            rows = stream.tell() // (4 * dim)
    except OSError as error:
        raise VqtoolError(f"{file}: cannot be written: {error.strerror}") from error
    if not rows:
        return torch.empty(0, dim)
    return torch.from_numpy(np.memmap(file, np.float32, "c", shape=(rows, dim)))  # "c": torch wants writable memory


def _latents(
    items: Sequence[ImageItem],
    tokenizer: Tokenizer,
    image_size: tuple[int, int],
    fit: str,
    num: int,
    noise: np.random.Generator,
    on_error: OnError | None,
    progress: Progress,
) -> Iterator[Tensor]:
    """The same, image by image: (n, D) each."""
    height, width = tokenizer.grid_size(image_size)
    chosen = [items[i] for i in noise.permutation(len(items))[:num]]
    per_image = min(height * width, -(-num // len(chosen)))
    left = num
    with progress("take vectors", len(chosen)) as advance:
        for batch in read_batches(chosen, image_size, READ_BATCH, fit=fit, on_error=on_error):
            with torch.inference_mode():
                latents = tokenizer.latents(to_float(batch.images).to(tokenizer.device)).flatten(1, 2)  # (B, HW, D)
            for image in latents.cpu():
                yield image[noise.permutation(height * width)[:per_image]][:left]
                left -= min(left, per_image)
            advance(len(batch.images))


def read_beginning(grids: Path) -> tuple[GridHeader, GridBatch, list[str]]:
    """The header of token grids, the first few of them, and the ids of all."""
    with open_grids(grids) as reader:
        first, ids = None, []
        for batch in reader.batches():
            first = batch[:PROBED_GRIDS] if first is None else first
            ids += batch.ids
        if first is None or not ids:
            raise VqtoolError(f"{grids}: no token grids in it")
        return reader.header, first, ids


def images_of(ids: Sequence[str], items: Sequence[ImageItem], name: str) -> list[ImageItem]:
    """The images that grids were made of, by their ids.

    Args:
        ids: of the grids.
        items: images to choose from.
        name: of the grids, for messages.

    Raises:
        MismatchError: some are not there.
    """
    known = {item.id: item for item in items}
    missing = [one for one in ids if one not in known]
    if missing:
        raise MismatchError(
            f"{len(missing)} of the {len(ids)} images that {name} names are not among the {len(items)} given, "
            f"{missing[0]!r} for one: give the folder that was encoded"
        )
    return [known[one] for one in ids]


def check_images(
    tokens: NDArray[np.unsignedinteger[Any]],
    items: Sequence[ImageItem],
    tokenizer: Tokenizer,
    size: tuple[int, int],
    name: str,
    *,
    fit: str = "crop",
) -> None:
    """Raise unless images become the tokens that grids have for them; half of them suffices, devices differ a little.

    Args:
        tokens: (B, H, W) of the first grids.
        items: as many images.
        tokenizer: of the grids.
        size: (h, w) that images are brought to.
        name: of the grids, for messages.
        fit: how images were brought to it.

    Raises:
        MismatchError: they are other pictures under the same names.
    """
    batches = list(read_batches(items, size, len(items), fit=fit, on_error=lambda item, error: None))
    if not batches or len(batches[0].images) != len(items):
        return  # a bad image: named when it is read for good
    found = tokenizer.encode(to_float(batches[0].images).to(tokenizer.device)).cpu().numpy()
    agree = float((found == tokens).mean())
    if agree < 0.5:
        raise MismatchError(
            f"the images given have the names that {name} has, but {agree:.0%} of the first tokens agree: "
            "they are other pictures"
        )
