"""From encoded bytes to pixels: known values in, known values out."""

import io
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image
from support.png import chunk, make_png

from vqtool.errors import FormatError
from vqtool.images.pixels import FORMATS as READ_FORMATS
from vqtool.images.pixels import fit_pixels, put_on_white, read_mask, read_own_pixels, read_pixels, to_grey
from vqtool.images.preview import png_bytes

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def read(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    pixels = read_pixels(io.BytesIO(data), size)
    if size is None:  # of any file that is read here, channels of its own make the same picture on white
        assert np.array_equal(put_on_white(read_own_pixels(io.BytesIO(data))), pixels)
    return pixels


def read_or_none(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray | None:
    try:
        return read(data, size)
    except FormatError:
        return None


def pixel(array: np.ndarray, row: int, column: int) -> tuple[int, ...]:
    return tuple(int(value) for value in array[:, row, column])


def make_exif(orientation: int, order: str = "<") -> bytes:
    mark = b"II*\x00" if order == "<" else b"MM\x00*"
    return mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


@pytest.fixture
def photo() -> np.ndarray:
    """(32, 48, 3): a smooth picture with one corner of each colour."""
    y, x = np.mgrid[0:32, 0:48]
    return np.stack([x * 5, y * 7, 255 - x * 2 - y * 3], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P"])
def test_every_lossless_format_and_mode_keeps_its_pixels(format: str, mode: str) -> None:
    if format == "PPM" and mode == "P":
        pytest.skip("netpbm has no palettes")
    image = Image.new("RGB", (6, 4), WHITE)
    image.paste((0, 0, 0), (0, 0, 3, 2))
    array = read(encode(image.convert(mode), format))
    assert array.shape == (3, 4, 6)
    assert array.dtype == np.uint8
    assert np.array_equal(array, np.asarray(image).transpose(2, 0, 1))


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_lossy_formats_keep_a_smooth_picture_within_a_few_levels(format: str, photo: np.ndarray) -> None:
    array = read(encode(Image.fromarray(photo), format, quality=95))
    assert np.abs(array.astype(int) - photo.transpose(2, 0, 1)).mean() < 3


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan, all magenta and yellow: red
    assert np.abs(np.array(pixel(read(encode(image, "JPEG", quality=95)), 8, 8)) - RED).max() <= 3


def test_a_grey_jpeg_becomes_rgb() -> None:
    array = read(encode(Image.new("L", (16, 16), 90), "JPEG"), (8, 8))
    assert np.abs(array.astype(int) - 90).max() <= 1


@pytest.mark.parametrize(("alpha", "expected"), [(0, WHITE), (255, RED), (128, (255, 127, 127)), (51, (255, 204, 204))])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_alpha_lies_over_white(format: str, alpha: int, expected: tuple[int, int, int]) -> None:
    options = {"lossless": True, "exact": True} if format == "WEBP" else {}
    array = read(encode(Image.new("RGBA", (4, 4), (*RED, alpha)), format, **options))
    assert pixel(array, 1, 1) == expected


def test_grey_with_alpha_lies_over_white() -> None:
    assert pixel(read(encode(Image.new("LA", (4, 4), (0, 51)), "PNG")), 1, 1) == (204, 204, 204)


def test_a_palette_may_have_transparent_and_half_transparent_colours() -> None:
    palette = chunk(b"PLTE", bytes([*RED, *GREEN, *BLUE]))
    array = read(make_png(3, 1, 8, 3, b"\x00\x00\x01\x02", palette, chunk(b"tRNS", bytes([255, 0, 51]))))
    assert [pixel(array, 0, i) for i in range(3)] == [RED, WHITE, (204, 204, 255)]


def test_a_gif_shows_its_first_frame_over_white() -> None:
    frames = [Image.new("P", (4, 4), 0), Image.new("P", (4, 4), 1)]
    for frame in frames:
        frame.putpalette([*RED, *BLUE])
    frames[0].putpixel((2, 1), 1)
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:], transparency=1)
    array = read(data)
    assert pixel(array, 0, 0) == RED
    assert pixel(array, 1, 2) == WHITE


def test_a_colour_key_is_transparent_in_grey_and_rgb() -> None:
    grey = read(make_png(2, 1, 8, 0, b"\x00\x07\x09", chunk(b"tRNS", b"\x00\x07")))
    assert [pixel(grey, 0, i) for i in range(2)] == [WHITE, (9, 9, 9)]
    rgb = read(make_png(2, 1, 8, 2, bytes([0, *RED, *BLUE]), chunk(b"tRNS", b"\x00\xff\x00\x00\x00\x00")))
    assert [pixel(rgb, 0, i) for i in range(2)] == [WHITE, BLUE]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("LA", 2), ("RGB", 3), ("P", 3), ("RGBA", 4)])
def test_an_image_can_be_read_in_channels_of_its_own_and_comes_back_so(mode: str, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    if mode == "LA":
        image = Image.fromarray(values[..., :2])
    else:
        image = Image.fromarray(values if mode == "RGBA" else values[..., :3]).convert(mode)
    own = read_own_pixels(io.BytesIO(encode(image, "PNG")))
    assert own.shape == (channels, 5, 7)
    expected = np.asarray(image.convert({"1": "L", "P": "RGB"}.get(mode, mode))).reshape(5, 7, channels)
    assert np.array_equal(own.transpose(1, 2, 0), expected)
    assert np.array_equal(read_own_pixels(io.BytesIO(png_bytes(own))), own)
    read(encode(image, "PNG"))


def test_a_palette_or_colour_key_of_transparent_pixels_has_opacity() -> None:
    key = make_png(2, 1, 8, 0, b"\x00\x07\x09", chunk(b"tRNS", b"\x00\x07"))
    assert read_own_pixels(io.BytesIO(key)).tolist() == [[[7, 9]], [[0, 255]]]
    palette = chunk(b"PLTE", bytes([*RED, *GREEN, *BLUE]))
    image = make_png(3, 1, 8, 3, b"\x00\x00\x01\x02", palette, chunk(b"tRNS", bytes([255, 0, 51])))
    assert read_own_pixels(io.BytesIO(image))[3].tolist() == [[255, 0, 51]]


def test_lightness_of_grey_is_the_grey() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    assert np.array_equal(to_grey(put_on_white(grey)), grey)
    assert to_grey(np.array([[[255]], [[0]], [[0]]], np.uint8)).tolist() == [[[76]]]  # .299


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = [0, 128, 129, 257, 32768, 65406, 65407, 65535]
    expected = [0, 0, 1, 1, 128, 254, 255, 255]  # round(v / 257)
    png = make_png(8, 1, 16, 0, b"\x00" + struct.pack(">8H", *values))
    assert read(png)[0, 0].tolist() == expected
    tiff = encode(Image.fromarray(np.array([values], dtype=np.uint16)), "TIFF")
    assert read(tiff)[1, 0].tolist() == expected
    pgm = b"P5 8 1 65535\n" + struct.pack(">8H", *values)
    assert read(pgm)[2, 0].tolist() == expected
    for data in (png, tiff, pgm):
        own = read_own_pixels(io.BytesIO(data))
        assert (own.dtype, own.tolist()) == (np.uint16, [[values]])
        assert np.array_equal(put_on_white(own), read(data))
        assert np.array_equal(read_own_pixels(io.BytesIO(png_bytes(own))), own)


def test_sixteen_bit_colour_and_alpha_are_scaled_to_within_one_level() -> None:
    rgb = read(make_png(1, 1, 16, 2, b"\x00" + struct.pack(">3H", 65535, 32896, 0)))
    assert np.abs(np.array(pixel(rgb, 0, 0)) - (255, 128, 0)).max() <= 1
    rgba = read(make_png(1, 1, 16, 6, b"\x00" + struct.pack(">4H", 65535, 0, 0, 13107)))
    assert np.abs(np.array(pixel(rgba, 0, 0)) - (255, 204, 204)).max() <= 1


def test_a_sixteen_bit_colour_key_is_transparent() -> None:
    png = make_png(2, 1, 16, 0, b"\x00" + struct.pack(">2H", 1000, 1001), chunk(b"tRNS", struct.pack(">H", 1000)))
    assert read(png)[0, 0].tolist() == [255, 4]
    assert read_own_pixels(io.BytesIO(png)).tolist() == [[[65535, 1001]]]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused(dtype: type) -> None:
    with pytest.raises(FormatError, match="8 or 16 bits"):
        read(encode(Image.fromarray(np.ones((4, 4), dtype=dtype)), "TIFF"))


@pytest.mark.parametrize(
    "format", [format for format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") if format in READ_FORMATS]
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_upright(format: str, orientation: int, photo: np.ndarray) -> None:
    # What a camera held in each way stores: the transformation that undoes the tag, from the EXIF specification.
    stored = {
        1: photo,
        2: photo[:, ::-1],
        3: photo[::-1, ::-1],
        4: photo[::-1],
        5: photo.transpose(1, 0, 2),
        6: photo.transpose(1, 0, 2)[::-1],
        7: photo.transpose(1, 0, 2)[::-1, ::-1],
        8: photo.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(stored)), format, exif=exif, quality=95)
    array = read(data)
    assert array.shape == (3, 32, 48)
    assert np.abs(array.astype(int) - photo.transpose(2, 0, 1)).mean() < 3


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_orientation_is_read_in_both_byte_orders(order: str, photo: np.ndarray) -> None:
    data = encode(Image.fromarray(photo), "PNG", exif=make_exif(3, order))
    assert np.array_equal(read(data), photo[::-1, ::-1].transpose(2, 0, 1))


def test_a_turned_jpeg_is_decoded_at_a_fraction_on_the_right_axes() -> None:
    # Shown 160x1600 with lines 4 pixels high, of which 100x10 keeps the lines. Decoded at the fraction that suits
    # the stored 1600x160 they would be grey.
    shown = np.zeros((160, 1600, 3), dtype=np.uint8)
    shown[np.arange(160) // 4 % 2 == 1] = 255
    stored = np.ascontiguousarray(shown.transpose(1, 0, 2)[::-1])
    exif = Image.Exif()
    exif[0x0112] = 6
    array = read(encode(Image.fromarray(stored), "JPEG", exif=exif, quality=95), (100, 10))
    assert array.shape == (3, 100, 10)
    assert array.std() > 80


@pytest.mark.parametrize("cut", [0, 3, 8, 11, 17])
def test_damaged_exif_leaves_the_picture_as_it_is(cut: int, photo: np.ndarray) -> None:
    data = encode(Image.fromarray(photo), "PNG", exif=make_exif(3)[:cut] or b"nonsense")
    assert np.array_equal(read(data), photo.transpose(2, 0, 1))


def test_damaged_exif_in_a_jpeg_prints_no_warning() -> None:
    code = """
import io
from PIL import Image
from vqtool.images.pixels import read_pixels
file = io.BytesIO()
Image.new("RGB", (8, 8)).save(file, "JPEG", exif=b"Exif\\0\\0II*\\0\\x08\\0\\0\\0\\x05\\0\\x12")
file.seek(0)
print(read_pixels(file, None).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == ("(3, 8, 8)\n", "")


@pytest.mark.parametrize("size", [(16, 16), (5, 9), (64, 64), (48, 80), (200, 3)])
def test_a_constant_picture_stays_constant_at_any_size(size: tuple[int, int]) -> None:
    array = read(encode(Image.new("RGB", (37, 53), (10, 200, 77)), "PNG"), size)
    assert array.shape == (3, *size)
    assert np.array_equal(np.unique(array.reshape(3, -1), axis=1), [[10], [200], [77]])


@pytest.mark.parametrize(("width", "height", "left", "top"), [(10, 4, 3, 0), (4, 10, 0, 3), (9, 4, 2, 0), (4, 4, 0, 0)])
def test_a_crop_alone_takes_the_pixels_of_the_centre(width: int, height: int, left: int, top: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    array = read(encode(Image.fromarray(pixels), "PNG"), (4, 4))
    assert np.array_equal(array, pixels[top : top + 4, left : left + 4].transpose(2, 0, 1))


def test_a_wide_picture_is_shrunk_then_cropped_in_the_centre() -> None:
    pixels = np.zeros((64, 192, 3), dtype=np.uint8)
    pixels[:, 64:128] = 255  # the middle third is what remains
    array = read(encode(Image.fromarray(pixels), "PNG"), (16, 16))
    assert array[:, :, 2:-2].min() >= 250
    assert np.array_equal(array, array[:, :, ::-1])


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("factor", [4, 6, 16])
def test_shrinking_averages_what_a_pixel_covers(format: str, factor: int) -> None:
    # Fine black and white lines become grey; without antialiasing they would come out black, white or as moire.
    side = 32 * factor
    y, x = np.mgrid[0:side, 0:side]
    lines = (((x // 1 + y // 2) % 2) * 255).astype(np.uint8)
    array = read(encode(Image.fromarray(lines).convert("RGB"), format, quality=95), (32, 32))
    assert np.abs(array.astype(int) - 127.5).max() < 12


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_shrinking_is_near_the_average_over_boxes(format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(noise).resize((256, 256), Image.Resampling.BICUBIC))
    boxes = smooth.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3)).transpose(2, 0, 1)
    array = read(encode(Image.fromarray(smooth), format, quality=95), (64, 64))
    assert np.abs(array - boxes).mean() < 4
    assert np.abs(array - boxes).max() < 32


def test_an_extreme_strip_needs_no_more_memory_than_its_crop() -> None:
    array = read(encode(Image.new("L", (1_000_000, 1), 50), "PNG"), (64, 64))
    assert np.array_equal(np.unique(array), [50])


def test_decoded_pixels_are_fitted_like_encoded_ones(photo: np.ndarray) -> None:
    assert np.array_equal(fit_pixels(photo, (20, 20)), read(encode(Image.fromarray(photo), "PNG"), (20, 20)))
    assert np.array_equal(fit_pixels(photo, None), photo.transpose(2, 0, 1))


FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"]
FORMATS += ["AVIF"] if "AVIF" in READ_FORMATS else []  # as Pillow was built


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_cut_anywhere_is_a_format_error_or_the_picture(format: str, photo: np.ndarray) -> None:
    noisy = photo ^ np.random.default_rng(0).integers(0, 64, photo.shape, dtype=np.uint8)
    data = encode(Image.fromarray(noisy), format)
    whole = read(data)
    for end in [0, 1, 2, 5, 10, 15, 20, 40, *range(60, len(data) - 60, max(1, len(data) // 40))]:
        with pytest.raises(FormatError):
            read(data[:end])
    for end in range(len(data) - 60, len(data)):  # the last bytes may hold no pixels
        array = read_or_none(data[:end])
        assert array is None or np.array_equal(array, whole)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group4"])
def test_a_cut_compressed_tiff_is_a_format_error_and_prints_nothing(
    compression: str, photo: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    image = Image.fromarray(photo).convert("1" if compression == "group4" else "RGB")
    data = encode(image, "TIFF", compression=compression)
    assert read(data).shape == (3, 32, 48)
    for end in range(0, len(data) - 1, max(1, len(data) // 60)):
        with pytest.raises(FormatError):
            read(data[:end])
    out, err = capfd.readouterr()
    assert out == ""
    if int(PIL.__version__.split(".")[0]) >= 13 or compression not in ("jpeg", "group4"):
        assert err == ""  # libtiff inside of older Pillows prints warnings of its own


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as pixels.py has it outside of tests
def test_a_file_with_random_damage_gives_pixels_or_a_format_error(format: str, photo: np.ndarray) -> None:
    data = encode(Image.fromarray(photo), format)
    generator = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        for place in generator.integers(0, min(len(data), 400), 4):
            damaged[place] = generator.integers(0, 256)
        array = read_or_none(bytes(damaged), (8, 8))
        assert array is None or array.shape == (3, 8, 8)


@pytest.mark.parametrize(
    "data", [b"", b"hello, this is text", b"\x00" * 64, b"%!PS-Adobe-3.0 EPSF-3.0\n", b"BMW is a car"]
)
def test_what_is_no_image_is_a_format_error(data: bytes) -> None:
    with pytest.raises(FormatError):
        read(data)


@pytest.mark.parametrize("colour", [RED, WHITE, (0, 0, 0)])
def test_a_mask_with_alpha_is_its_opacity_and_another_its_lightness(colour: tuple[int, int, int]) -> None:
    image = Image.new("RGBA", (6, 4), (*colour, 0))
    image.paste((*colour, 255), (0, 0, 2, 4))
    mask = read_mask(io.BytesIO(encode(image, "PNG")))
    assert np.array_equal(mask, np.repeat([[255, 255, 0, 0, 0, 0]], 4, axis=0))
    opaque = read_mask(io.BytesIO(encode(Image.new("RGBA", (6, 4), (*colour, 255)), "PNG")))
    assert np.allclose(opaque, sum(colour) / 3)
    with pytest.raises(FormatError, match="not an image"):
        read_mask(io.BytesIO(b"no image"))


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (20_000, 20_000, r"\(400000000 pixels\) exceeds limit"),
        (9_000, 10_000, "10000x9000 pixels are more than the limit"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # as pixels.py has it outside of tests
def test_a_decompression_bomb_is_refused_before_it_is_decoded(width: int, height: int, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read(make_png(width, height, 8, 2, b""), (8, 8))


def test_a_bomb_in_the_text_of_a_png_is_refused() -> None:
    text = chunk(b"zTXt", b"key\x00\x00" + zlib.compress(bytes(80_000_000), 9))
    with pytest.raises(FormatError):
        read(make_png(1, 1, 8, 0, b"\x00\x00", text))
