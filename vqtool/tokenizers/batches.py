"""Images through a tokenizer and back, batch by batch: the work of `encode` and `decode`.

Memory is flat in the number of images: one batch is in the network while the next is read from disk.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqtool.errors import VqtoolError
from vqtool.grids import GridBatch, GridHeader
from vqtool.images import PREPROCESSING, ImageBatch, ImageItem, read_batches, to_float, to_uint8
from vqtool.tokenizers import Tokenizer


def grid_header(tokenizer: Tokenizer, image_size: tuple[int, int], record: dict[str, Any]) -> GridHeader:
    """The header of grids that this tokenizer makes from images of (h, w) pixels.

    Raises:
        VqtoolError: the size does not fit the tokenizer.
    """
    return GridHeader(
        codebook_size=tokenizer.codebook_size,
        grid_size=tokenizer.grid_size(image_size),
        image_size=image_size,
        tokenizer_fingerprint=tokenizer.fingerprint,
        tokenizer_location=tokenizer.location,
        preprocessing=PREPROCESSING,
        history=(record,),
    )


def encode_images(
    items: Sequence[ImageItem],
    tokenizer: Tokenizer,
    image_size: tuple[int, int],
    *,
    batch_size: int,
    on_error: Callable[[ImageItem, VqtoolError], None] | None = None,
) -> Iterator[GridBatch]:
    """Token grids of images, in their order.

    Args:
        items: from `find_images`.
        tokenizer: on the device to use.
        image_size: (h, w) that images are brought to.
        batch_size: images in the network at once.
        on_error: told of a bad image, which is left out; None raises.
    """
    for batch in read_batches(items, image_size, batch_size, on_error=on_error):
        yield encode_batch(batch, tokenizer)


def encode_batch(batch: ImageBatch, tokenizer: Tokenizer) -> GridBatch:
    """Token grids of images, with what is known of them."""
    tokens = tokenizer.encode(to_float(batch.images).to(tokenizer.device))
    return GridBatch(tokens.cpu().numpy().astype(np.uint32), batch.ids, batch.labels, batch.captions)


def decode_batch(batch: GridBatch, tokenizer: Tokenizer) -> NDArray[np.uint8]:
    """Images (B, 3, h, w) of token grids."""
    tokens = torch.from_numpy(batch.tokens.astype(np.int64)).to(tokenizer.device)
    return to_uint8(tokenizer.decode(tokens))
