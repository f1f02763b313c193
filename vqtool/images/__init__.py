"""Images: where they come from, how they become pixels, and how they are written and shown."""

from vqtool.images.pixels import PREPROCESSING
from vqtool.images.reader import (
    ImageBatch,
    OnError,
    common_size,
    parse_size,
    read_batches,
    read_image,
    read_images,
    to_float,
    to_uint8,
)
from vqtool.images.shapes import choose_fit
from vqtool.images.sources import ImageItem, SourceOptions, find_images
from vqtool.tally import Tally

__all__ = [
    "PREPROCESSING",
    "ImageBatch",
    "ImageItem",
    "OnError",
    "SourceOptions",
    "Tally",
    "choose_fit",
    "common_size",
    "find_images",
    "parse_size",
    "read_batches",
    "read_image",
    "read_images",
    "to_float",
    "to_uint8",
]
