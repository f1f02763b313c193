"""Images as one array for training: decoded once, in memory, or in a temporary file where they are too many."""

import hashlib
import tempfile
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import VqtoolError
from vqtool.images import ImageItem, read_batches

MEMORY_BYTES = 2 << 30  # beyond this the array lives in a temporary file, paged in as needed


def load_images(
    items: Sequence[ImageItem],
    size: tuple[int, int],
    *,
    on_error: Callable[[ImageItem, VqtoolError], None] | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> NDArray[np.uint8]:
    """Read images of one size.

    Args:
        items: what `find_images` found.
        size: (h, w) to resize and crop to.
        on_error: told of a bad image, which is left out; None raises.
        advance: told how many more are read.

    Returns:
        (N, 3, h, w) uint8; N counts the good ones.
    """
    shape = (len(items), 3, *size)
    images: NDArray[np.uint8]
    if np.prod(shape, dtype=np.int64) > MEMORY_BYTES:
        with tempfile.TemporaryFile() as file:  # the mapping keeps it alive
            images = np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
    else:
        images = np.empty(shape, dtype=np.uint8)
    count = 0
    for batch in read_batches(items, size, 64, on_error=on_error):
        images[count : count + len(batch.images)] = batch.images
        count += len(batch.images)
        advance(len(batch.images))
    return images[:count]


def digest(array: NDArray[np.uint8]) -> str:
    """16 hexadecimal digits over the shape and content of an array."""
    result = hashlib.sha256(str(array.shape).encode())
    for start in range(0, len(array), 4096):
        result.update(np.ascontiguousarray(array[start : start + 4096]).data)
    return result.hexdigest()[:16]
