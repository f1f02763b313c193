"""One encoded image -> uint8 pixels: upright, over white, fitted to the wanted size.

`crop` covers the size and cuts off what is beyond it, evenly on both sides; `pad` keeps the picture whole, in the
middle of white; `stretch` fills the size with the whole picture, whatever its shape.

Files are told apart by their content, never by their name. A limit on the number of pixels stands before decoding.
"""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from vqtool.errors import FormatError, VqtoolError

FITS = ("crop", "pad", "stretch")
PREPROCESSING = {  # of each fit, as headers of token grids say it
    "crop": "upright; over white; cover and centre crop, Pillow bicubic antialiased",
    "pad": "upright; over white; whole in the middle of white, Pillow bicubic antialiased",
    "stretch": "upright; over white; stretched, Pillow bicubic antialiased",
}

# Oddities of EXIF and TIFF tags have nothing to do with the pixels, whose number is limited below. Pictures are decoded
# in threads, where a filter for the time of one call would not be safe.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.(Tiff|Png|Jpeg)ImagePlugin")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_AVIF = ("AVIF",) if importlib.util.find_spec("PIL._avif") else ()  # Pillow 11.3 or later
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "WEBP", "TIFF", *_AVIF)
_EXPECTED = f"JPEG, PNG, WebP, GIF, BMP{', AVIF' if _AVIF else ''} or TIFF"
Own = NDArray[np.uint8 | np.uint16]  # pixels in channels of their file's own; 16 bits of greyscale alone
_SIDEWAYS = range(5, 9)  # EXIF orientations that swap height and width
_REDUCING_GAP = 3.0  # Pillow may shrink by an integer first, to no less than 3 times the wanted size
_DRAFT_GAP = 2  # a JPEG may be decoded at a half, a quarter or an eighth, to no less than 2 times the wanted size


def read_mask(file: BinaryIO) -> NDArray[np.float64]:
    """Decode an image as (height, width) in 0..255: its opacity if some of it is transparent, else its lightness.

    Raises:
        FormatError: as `read_pixels`.
    """
    with _explained():
        opened = _open(file)
        check_num_pixels(opened.height, opened.width)
        opened.load()
        image = _turn_upright(opened)
        if image.has_transparency_data:
            alpha: NDArray[np.float64] = np.asarray(image.convert("RGBA").getchannel("A"), dtype=np.float64)
            if alpha.min() < 255:
                return alpha
        light: NDArray[np.float64] = np.asarray(_over_white(image), dtype=np.float64).mean(axis=2)
        return light


def find_fit(preprocessing: str) -> str:
    """The fit that a header names; crop for what other programs wrote there."""
    return next((fit for fit, text in PREPROCESSING.items() if text == preprocessing), "crop")


def read_size(file: BinaryIO) -> tuple[int, int]:
    """(height, width) of an encoded image, upright, without decoding it.

    Raises:
        FormatError: as `read_pixels`, as far as the beginning of the file tells.
    """
    with _explained():
        image = _open(file)
        height, width = image.height, image.width
        is_turned = image.format == "TIFF" or _find_orientation(image) not in _SIDEWAYS  # Pillow has turned a TIFF
        return (height, width) if is_turned else (width, height)


def read_pixels(file: BinaryIO, size: tuple[int, int] | None, fit: str = "crop") -> NDArray[np.uint8]:
    """Decode an image.

    Args:
        file: an open binary file, at its start.
        size: (height, width) to bring it to; None: as it is.
        fit: how: one of FITS.

    Returns:
        (3, height, width) uint8, RGB.

    Raises:
        FormatError: whatever is wrong with the image; the message does not name the file.
    """
    with _explained():
        return _fit(_over_white(_decode(file, size)), size, fit)


def read_own_pixels(file: BinaryIO) -> Own:
    """Decode an image in channels of its own: grey or colour, with opacity if it has some.

    Returns:
        (C, height, width) uint8, C = 1 (grey), 2 (grey, opacity), 3 (RGB) or 4 (RGB, opacity); uint16 of greyscale that
        has 16 bits, white where its colour key makes it transparent.

    Raises:
        FormatError: as `read_pixels`.
    """
    with _explained():
        image = _decode(file, None)
        if image.mode.startswith(("I", "F")):
            return _sixteen_bits(image)[None]
        is_grey = image.mode in ("1", "L", "LA", "La")
        if image.has_transparency_data:
            own = image.convert("LA" if is_grey else "RGBA")
        else:
            own = _over_white(image).convert("L" if is_grey else "RGB")
        return _channels_first(np.asarray(own, dtype=np.uint8))


def has_deep_colour(file: BinaryIO) -> bool:
    """Whether an image has 16 bits a channel of which `read_own_pixels` gives the upper 8, without decoding it.

    Raises:
        FormatError: as `read_pixels`, as far as the beginning of the file tells.
    """
    with _explained():
        image = _open(file)
        return not image.mode.startswith("I") and any(";16" in str(tile[3]) for tile in image.tile)


def put_on_white(pixels: Own) -> NDArray[np.uint8]:
    """(3, height, width) RGB of what `read_own_pixels` gives: what `read_pixels` makes of the same file."""
    if pixels.dtype == np.uint16:
        return np.repeat(_to_eight_bits(pixels), 3, axis=0)
    if len(pixels) == 3:
        return pixels.astype(np.uint8, copy=False)
    return _channels_first(np.asarray(_over_white(to_pillow(pixels)), dtype=np.uint8))


def to_pillow(pixels: Own) -> Image.Image:
    """Pixels (C, height, width) of 1 to 4 channels as `read_own_pixels` gives them.

    Raises:
        ValueError: another shape or type.
    """
    is_deep = pixels.dtype == np.uint16 and len(pixels) == 1
    if pixels.ndim != 3 or not 1 <= len(pixels) <= 4 or not (pixels.dtype == np.uint8 or is_deep):
        raise ValueError(
            f"expected (C, h, w) uint8 of 1 to 4 channels, or uint16 of 1, not {pixels.shape} {pixels.dtype}"
        )
    last = pixels.transpose(1, 2, 0)
    return Image.fromarray(np.ascontiguousarray(last[..., 0] if len(pixels) == 1 else last))


def to_grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(1, height, width): the lightness of RGB (3, height, width); of grey the same number."""
    return _channels_first(np.asarray(to_pillow(pixels).convert("L")))


def _channels_first(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(height, width) or (height, width, C) -> (C, height, width)."""
    return np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1))


def _decode(file: BinaryIO, size: tuple[int, int] | None) -> Image.Image:
    """An upright image; a JPEG no smaller than the size asks for."""
    image = _open(file)
    is_jpeg = image.format in ("JPEG", "MPO")
    check_num_pixels(image.height, image.width, 2 if is_jpeg else 1)  # as Pillow itself has it for all
    if is_jpeg:
        image.draft(None, _draft_size(image, size))
    image.load()
    return _turn_upright(image)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn nearly anything, which is what Pillow's plugins raise on damaged files, into FormatError."""
    try:
        yield
    except FormatError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FormatError(f"damaged or cut short ({reason})") from error


def check_images(images: Any) -> NDArray[np.uint8]:
    """A batch of images as an array (B, 3, height, width), from an array or a tensor.

    Raises:
        VqtoolError: another shape or type; says what was given.
    """
    array = np.asarray(images.detach().cpu() if hasattr(images, "detach") else images)
    if array.dtype != np.uint8:
        raise VqtoolError(
            f"images are {array.dtype}; expected uint8 in 0..255: `vqtool.images.to_uint8` maps floats in [-1, 1] to it"
        )
    if array.ndim != 4 or array.shape[1] != 3:
        hint = ": one image is a batch of one, image[None]" if array.ndim == 3 and array.shape[0] == 3 else ""
        raise VqtoolError(f"images have shape {array.shape}; expected (B, 3, height, width){hint}")
    return array


def check_num_pixels(height: int, width: int, factor: int = 1) -> None:
    """Hold images of any source to Pillow's limit on pixels, or a multiple of it.

    Raises:
        FormatError: there are more.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > limit * factor:
        raise FormatError(f"{height}x{width} pixels are more than the limit of {limit * factor}; shrink it first")


def fit_pixels(pixels: NDArray[np.uint8], size: tuple[int, int] | None, fit: str = "crop") -> NDArray[np.uint8]:
    """Bring decoded pixels (h, w, 3) to (3, height, width); see `read_pixels`."""
    if size is None or pixels.shape[:2] == size:
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return _fit(Image.fromarray(np.ascontiguousarray(pixels)), size, fit)


def _fit(image: Image.Image, size: tuple[int, int] | None, fit: str) -> NDArray[np.uint8]:
    """Bring an RGB image to (height, width); -> (3, height, width) uint8."""
    if size is not None and size != (image.height, image.width):
        image = {"crop": _cover, "pad": _surround, "stretch": _resize}[fit](image, *size)
    return _channels_first(np.asarray(image, dtype=np.uint8))


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


def _surround(image: Image.Image, height: int, width: int) -> Image.Image:
    """The whole image in the middle of white."""
    scale = min(height / image.height, width / image.width)
    down, across = max(1, round(image.height * scale)), max(1, round(image.width * scale))
    white = Image.new("RGB", (width, height), "white")
    white.paste(_resize(image, down, across), ((width - across) // 2, (height - down) // 2))
    return white


def _resize(image: Image.Image, height: int, width: int) -> Image.Image:
    if (height, width) == (image.height, image.width):
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=_REDUCING_GAP)


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    if not file.read(1):
        raise FormatError("the file is empty")
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise FormatError(f"not an image that can be read here; expected {_EXPECTED}") from error
    except Image.DecompressionBombError as error:
        raise FormatError(f"{str(error).rstrip('.')}; shrink it first") from error


def _draft_size(image: Image.Image, size: tuple[int, int] | None) -> tuple[int, int]:
    """(width, height) that a JPEG must have at least when it is decoded at a fraction of its size."""
    if size is None:
        return image.size
    height, width = size
    if _find_orientation(image) in _SIDEWAYS:
        height, width = width, height
    scale = _DRAFT_GAP * max(height / image.height, width / image.width)
    return max(1, round(image.width * scale)), max(1, round(image.height * scale))


def _turn_upright(image: Image.Image) -> Image.Image:
    """By its EXIF orientation; Pillow has turned a TIFF by the time it is loaded."""
    if image.format != "TIFF":
        with contextlib.suppress(Exception):  # damaged EXIF: the pixels are turned before its other tags are looked at
            ImageOps.exif_transpose(image, in_place=True)
    return image


def _find_orientation(image: Image.Image) -> int:
    """1..8 as in EXIF."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF: the picture itself may be whole
        return 1


def _over_white(image: Image.Image) -> Image.Image:
    """Any mode -> RGB."""
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_eight_bits(_sixteen_bits(image))).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    with_alpha = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(with_alpha, mask=with_alpha)
    return white


def _sixteen_bits(image: Image.Image) -> NDArray[np.uint16]:
    """Grey of 16 bits as an array (height, width), white where it is transparent."""
    if not image.mode.startswith("I;16") and not (image.mode == "I" and image.format in ("PNG", "PPM")):
        raise FormatError("its pixels have 32 bits and no known range; save it with 8 or 16 bits a channel")
    wide = np.minimum(np.asarray(image).astype(np.uint32), 65535).astype(np.uint16)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        wide[wide == transparent] = 65535
    return wide


def _to_eight_bits(wide: Own) -> NDArray[np.uint8]:
    """16 bits -> 8, 65535 -> 255, rounded to nearest."""
    return ((wide.astype(np.uint32) + 128) // 257).astype(np.uint8)
