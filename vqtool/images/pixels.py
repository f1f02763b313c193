"""One encoded image -> uint8 pixels: upright, over white, resized to cover the wanted size, cropped in the centre.

Files are told apart by their content, never by their name. A limit on the number of pixels stands before decoding.
"""

from __future__ import annotations

import re
import struct
import warnings
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from vqtool.errors import FormatError

PREPROCESSING = "upright; over white; cover and centre crop, Pillow bicubic antialiased"

# Oddities in EXIF and TIFF tags that have nothing to do with the pixels. Decoding runs in threads, where a filter for
# the time of one call would not be safe.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.(Tiff|Png)ImagePlugin")

_KINDS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (rb"\xff\xd8\xff", JpegImageFile),
    (rb"\x89PNG\r\n\x1a\n", PngImageFile),
    (rb"(?s)RIFF....WEBP", WebPImageFile),
    (rb"GIF8[79]a", GifImageFile),
    (rb"BM", BmpImageFile),
    (rb"II[*+]\x00|MM\x00[*+]", TiffImageFile),
    (rb"P[1-6]\s", PpmImageFile),
)
_EXPECTED = "JPEG, PNG, WebP, GIF, BMP or TIFF"
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_REDUCING_GAP = 3.0  # Pillow may shrink by an integer first, to no less than 3 times the wanted size
_DRAFT_GAP = 2  # a JPEG may be decoded at a half, a quarter or an eighth, to no less than 2 times the wanted size


def read_pixels(file: BinaryIO, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Decode an image.

    Args:
        file: an open binary file, at its start.
        size: (height, width) to cover and crop to; None: as it is.

    Returns:
        (3, height, width) uint8, RGB.

    Raises:
        FormatError: whatever is wrong with the image; the message does not name the file.
    """
    try:
        image = _open(file)
        _check_pixels(image)
        image.draft(None, _draft_size(image, size))
        image.load()
        return _fit(_over_white(_turn_upright(image)), size)
    except FormatError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FormatError(f"damaged or cut short ({reason})") from error


def fit_pixels(pixels: NDArray[np.uint8], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Bring decoded pixels (h, w, 3) to (3, height, width); see `read_pixels`."""
    if size is None or pixels.shape[:2] == size:
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return _fit(Image.fromarray(np.ascontiguousarray(pixels)), size)


def _fit(image: Image.Image, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Resize an RGB image until it covers (height, width), crop in the centre; -> (3, height, width) uint8."""
    if size is not None and size != (image.height, image.width):
        image = _cover(image, *size)
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def _cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """Only what remains after the crop is resized: a box of the image that falls on whole pixels of the result."""
    scale = max(height / image.height, width / image.width)
    across, down = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = (across - width) // 2, (down - height) // 2
    if (across, down) == image.size:
        return image.crop((left, top, left + width, top + height))
    box = (
        left * image.width / across,
        top * image.height / down,
        (left + width) * image.width / across,
        (top + height) * image.height / down,
    )
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=_REDUCING_GAP)


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    """`Image.open` without its warnings, which cannot be silenced in threads, and with the formats named here alone."""
    head = file.read(16)
    file.seek(0)
    if not head:
        raise FormatError("the file is empty")
    for pattern, plugin in _KINDS:
        if re.match(pattern, head):
            return plugin(file)
    raise FormatError(f"not an image that can be read here; expected {_EXPECTED}")


def _check_pixels(image: Image.Image) -> None:
    """Hold to Pillow's limit against decompression bombs; twice as much for JPEG, as Pillow has it for all."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None:
        return
    limit *= 2 if image.format == "JPEG" else 1
    if image.width * image.height > limit:
        raise FormatError(f"{image.height}x{image.width} pixels are more than the limit of {limit}; shrink it first")


def _draft_size(image: Image.Image, size: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) that a JPEG must have at least when it is decoded at a fraction of its size."""
    if size is None:
        return image.size
    height, width = size
    if _find_orientation(image) >= 5:
        height, width = width, height
    scale = _DRAFT_GAP * max(height / image.height, width / image.width)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _turn_upright(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(_find_orientation(image))
    return image if turn is None else image.transpose(turn)


def _find_orientation(image: Image.Image) -> int:
    """1..8 as in EXIF. Pillow has turned a TIFF by the time it is loaded, and warns of damaged EXIF; this does not."""
    exif = image.info.get("exif")
    if image.format == "TIFF" or not isinstance(exif, bytes):
        return 1
    tiff = exif.removeprefix(b"Exif\x00\x00")
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(tiff[:4], "")
    if not order:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for i in range(count):
            tag, _kind, _num, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * i)
            if tag == _ORIENTATION_TAG:
                return int(value)
    except struct.error:  # cut short: the picture itself may be whole
        return 1
    return 1


def _over_white(image: Image.Image) -> Image.Image:
    """Any mode -> RGB."""
    if image.mode.startswith(("I", "F")):
        return _scale_sixteen_bits(image)
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    with_alpha = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(with_alpha, mask=with_alpha)
    return white


def _scale_sixteen_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits -> RGB of 8, 65535 -> 255."""
    if not image.mode.startswith("I;16") and not (image.mode == "I" and image.format in ("PNG", "PPM")):
        raise FormatError("its pixels have 32 bits and no known range; save it with 8 or 16 bits a channel")
    wide = np.asarray(image).astype(np.uint32)
    grey = ((np.minimum(wide, 65535) + 128) // 257).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[wide == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
