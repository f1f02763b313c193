"""Preview grids and PNG files."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from vqtool.errors import VqtoolError
from vqtool.images import preview
from vqtool.images.preview import comparison_grid, png_bytes, preview_grid, save_image


def make_images(num: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (num, 3, height, width), dtype=np.uint8)


def cells(sheet: Image.Image) -> list[tuple[int, int, int, int]]:
    """(top, left, height, width) of what is not white between white rows and columns; for previews without captions."""
    ink = (np.asarray(sheet) != 255).any(axis=2)
    spans = []
    for axis in (1, 0):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], ink.any(axis=axis).astype(int), [0]])))
        spans.append([(int(a), int(b - a)) for a, b in edges.reshape(-1, 2)])
    return [(top, left, height, width) for top, height in spans[0] for left, width in spans[1]]


def test_small_images_are_magnified_by_a_whole_number_pixel_by_pixel() -> None:
    images = make_images(6, 16, 32)
    sheet = preview_grid(images, columns=3)
    found = cells(sheet)
    assert [cell[2:] for cell in found] == [(64, 128)] * 6
    pixels = np.asarray(sheet)
    for image, (top, left, height, width) in zip(images, found, strict=True):
        expected = image.repeat(4, axis=1).repeat(4, axis=2).transpose(1, 2, 0)
        assert np.array_equal(pixels[top : top + height, left : left + width], expected)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((8, 8), (128, 128)),
        ((48, 80), (96, 160)),
        ((100, 100), (100, 100)),
        ((256, 200), (256, 200)),
        ((512, 1024), (128, 256)),
    ],
)
def test_images_are_shown_at_a_pleasant_size(size: tuple[int, int], shown: tuple[int, int]) -> None:
    assert cells(preview_grid(make_images(1, *size)))[0][2:] == shown


def test_a_scale_that_is_given_counts() -> None:
    assert cells(preview_grid(make_images(2, 300, 200), scale=1))[0][2:] == (300, 200)
    assert cells(preview_grid(make_images(2, 5, 7), scale=3))[0][2:] == (15, 21)


def test_columns_are_chosen_for_a_preview_a_little_wider_than_high() -> None:
    for num, size in [(100, (64, 64)), (64, (64, 32)), (37, (16, 48))]:
        sheet = preview_grid(make_images(num, *size))
        assert 1 <= sheet.width / sheet.height < 2
    assert len(cells(preview_grid(make_images(3, 64, 64), columns=50))) == 3


def test_a_preview_is_white_between_images_and_black_in_captions() -> None:
    images = np.full((4, 3, 64, 64), 100, dtype=np.uint8)
    plain, named = preview_grid(images, columns=2), preview_grid(images, ["one", "two", "three", ""], columns=2)
    assert {plain.getpixel((0, 0)), plain.getpixel((plain.width - 1, plain.height - 1))} == {(255, 255, 255)}
    assert set(np.unique(np.asarray(plain))) == {100, 255}
    assert named.height > plain.height
    pixels = np.asarray(named)
    below = pixels[6 + 128 : 6 + 128 + 15]
    assert (below[:, 6:134] < 60).any()
    assert np.array_equal(pixels[6:134, 6:134], np.asarray(plain)[6:134, 6:134])


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "\n\x00\t",
        "一只猫坐在垫子上看着窗外的鸟" * 9,
        "مرحبا بالعالم",
        "🙂🏽‍♀️ ok",
        "x" * 5000,
        "a " * 5000,
        "\ud800",
        "e\u0301" * 40,
    ],
)
def test_captions_of_any_script_and_length_stay_in_their_cell(caption: str) -> None:
    sheet = preview_grid(np.full((2, 3, 64, 64), 100, dtype=np.uint8), [caption, ""], columns=2)
    pixels = np.asarray(sheet)
    assert (pixels[6:134, 140:268] == 100).all()
    assert (pixels[134:, 136:] == 255).all()  # nothing runs into the neighbour's cell
    assert (pixels[:6] == 255).all()


def test_a_long_caption_is_wrapped_between_words_and_cut_with_an_ellipsis() -> None:
    assert preview._wrap("a cat", 128) == ["a cat"]
    lines = preview._wrap("a red face with a very wide smile and two eyes that are shut", 128)
    assert len(lines) == 2
    assert "a red face with a very wide smile".startswith(lines[0])
    assert lines[0].split()[-1] in ("a", "very")  # whole words
    assert lines[1].endswith("…")
    assert all(preview._measure(line) <= 128 for line in lines)
    assert "".join(preview._wrap("supercalifragilisticexpialidocious", 128)) == "supercalifragilisticexpialidocious"


def test_captions_are_drawn_without_freetype_too(monkeypatch: pytest.MonkeyPatch) -> None:
    bitmap = ImageFont.load_default_imagefont()
    monkeypatch.setattr(preview, "_font", lambda: bitmap)
    sheet = preview_grid(make_images(1, 64, 64), ["猫 a cat"])
    assert (np.asarray(sheet)[134:150] < 60).any()


def test_letters_with_accents_and_of_other_scripts_are_drawn() -> None:
    missing = bytes(preview._font().getmask("\uf8ff"))
    for letter in "éÉßñçøåčžłőşğĩ€…“ЖяαΩ":
        assert bytes(preview._font().getmask(letter)) != missing, letter


def test_originals_stand_over_their_reconstructions() -> None:
    originals, reconstructions = make_images(5, 64, 64) // 2, make_images(5, 64, 64) // 2 + 100
    sheet = comparison_grid(originals, reconstructions, columns=3, scale=1)
    found = cells(sheet)  # 4 rows of 3, the last two cells of rows 3 and 4 white in part
    pixels = np.asarray(sheet).transpose(2, 0, 1)
    order = [*originals[:3], *reconstructions[:3], *originals[3:], reconstructions[3] * 0 + 255, *reconstructions[3:]]
    assert len(found) == 12
    for image, (top, left, height, width) in zip(order, found, strict=False):
        assert np.array_equal(pixels[:, top : top + height, left : left + width], image)


def test_a_comparison_has_captions_under_each_pair() -> None:
    images = make_images(3, 32, 48)
    assert comparison_grid(images, images, ["a", "b", "c"]).height == comparison_grid(images, images).height + 15


def test_nothing_to_show_and_too_much_to_show_are_errors() -> None:
    with pytest.raises(VqtoolError, match="no images to show"):
        preview_grid(make_images(0, 8, 8))
    many = np.broadcast_to(np.zeros((1, 3, 200, 200), dtype=np.uint8), (4000, 3, 200, 200))
    with pytest.raises(VqtoolError, match="more than 100000000: show fewer images"):
        preview_grid(many)


def test_what_does_not_fit_together_is_refused() -> None:
    images = make_images(2, 8, 8)
    for call in (
        lambda: preview_grid(images, ["one"]),
        lambda: preview_grid(images[0]),
        lambda: preview_grid(images.astype(np.float32)),
        lambda: preview_grid(images, columns=0),
        lambda: preview_grid(images, scale=0),
        lambda: comparison_grid(images, images[:1]),
        lambda: png_bytes(images),
    ):
        with pytest.raises(ValueError, match=r"[0-9]"):
            call()


def test_a_png_holds_the_very_pixels(tmp_path: Path) -> None:
    image = make_images(1, 20, 30)[0]
    save_image(image, tmp_path / "a.png")
    for data in (png_bytes(image), (tmp_path / "a.png").read_bytes()):
        read = Image.open(io.BytesIO(data))
        assert read.format == "PNG"
        assert np.array_equal(np.asarray(read).transpose(2, 0, 1), image)


def test_a_png_is_written_whole_and_over_another_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_image(preview_grid(make_images(2, 8, 8)), path)
    before = path.read_bytes()
    with pytest.raises(VqtoolError, match=r"a\.png: exists; use `force`"):
        save_image(make_images(1, 8, 8)[0], path)
    assert path.read_bytes() == before
    save_image(make_images(1, 8, 8)[0], path, force=True)
    with Image.open(path) as image:
        assert image.size == (8, 8)
    assert list(tmp_path.iterdir()) == [path]
