"""Pictures of many shapes: what each fit loses, which is taken, and what is told."""

import numpy as np
import pytest
from PIL import Image

import vqtool
from vqtool.errors import VqtoolWarning
from vqtool.images import SourceOptions, choose_fit, find_images, read_image
from vqtool.images.shapes import border, find_shape, median_size, shared


def save(folder, *sizes, colour=(200, 30, 30)):
    """Pictures of one colour and of the given (height, width)."""
    folder.mkdir(exist_ok=True)
    for number, (height, width) in enumerate(sizes):
        Image.new("RGB", (width, height), colour).save(folder / f"{number:03}.png")
    return find_images([folder])


@pytest.mark.parametrize("shape", [(30, 30), (20, 60), (60, 20), (50, 40), (7, 9)])
@pytest.mark.parametrize("size", [(64, 64), (32, 48)])
def test_one_share_is_kept_by_the_crop_and_filled_by_padding(tmp_path, shape, size):
    (item,) = save(tmp_path / "imgs", shape)
    (share,) = shared([shape], size)
    padded = read_image(item, size, "pad")
    assert padded.shape == (3, *size)
    filled = (padded != 255).any(0).mean()
    assert filled == pytest.approx(share, abs=1.1 / min(size))  # whole pixels
    scale = max(size[0] / shape[0], size[1] / shape[1])
    assert size[0] * size[1] / (scale**2 * shape[0] * shape[1]) == pytest.approx(share)
    outside = border(shape, size)
    assert (padded[:, outside] == 255).all()
    assert outside.mean() <= 1 - share + 1e-9
    assert (read_image(item, size, "stretch") == np.array([200, 30, 30])[:, None, None]).all()


@pytest.mark.parametrize(
    ("square", "wide", "expected"), [(20, 0, "crop"), (19, 1, "crop"), (18, 2, "pad"), (0, 3, "pad")]
)
def test_pictures_are_padded_where_more_than_one_in_twenty_would_lose_a_fifth(tmp_path, square, wide, expected):
    items = save(tmp_path / "imgs", *[(20, 24)] * square, *[(20, 26)] * wide)  # 17 and 23 % are cut off
    assert choose_fit(items, (64, 64)) == expected
    assert choose_fit(items, (64, 64), "stretch") == "stretch"
    assert choose_fit(items, None) == "crop"
    found = vqtool.read_images(tmp_path / "imgs", 64).images
    assert ((found[-1] == 255).any()) == (expected == "pad")
    assert (vqtool.read_images(items, 64, options=SourceOptions(fit="crop")).images != 255).any(1).all()


@pytest.mark.parametrize(
    ("fit", "chosen", "told"),
    [
        (
            "crop",
            "crop",
            "3 of 4 pictures lose more than a fifth to the crop, 52% at most: `fit` pad keeps them whole; "
            "`size` 48x96, their median shape, would cut so much off 1",
        ),
        (
            None,
            "pad",
            "3 of 4 pictures would lose more than a fifth to a crop, so white borders keep all whole and take "
            "37% of the cells (`fit` crop, or stretch); `size` 48x96, their median shape, leaves 15%",
        ),
        (
            "stretch",
            "stretch",
            "3 of 4 pictures are stretched by more than a quarter, 2.1 times at most; "
            "`size` 48x96, their median shape, would do so to 1",
        ),
    ],
)
def test_what_is_lost_is_told_with_the_size_that_loses_less(tmp_path, fit, chosen, told):
    items = save(tmp_path / "imgs", (40, 40), (30, 60), (30, 63), (32, 60))
    with pytest.warns(VqtoolWarning) as warnings:
        assert choose_fit(items, (64, 64), fit, factor=8) == chosen
    assert [str(warning.message) for warning in warnings] == [told]


def test_pictures_of_the_size_asked_for_and_bad_ones_say_nothing(tmp_path):
    items = save(tmp_path / "imgs", *[(30, 45)] * 3)
    (tmp_path / "imgs" / "000.png").write_bytes(b"no picture")
    assert choose_fit(items, (64, 96), factor=8) == "crop"
    assert find_shape(items[0]) is None
    assert choose_fit(items[:1], (64, 96), factor=8) == "crop"
    assert choose_fit([], (64, 96), factor=8) == "crop"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tiff", "webp"])
def test_the_shape_is_that_of_the_upright_picture(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (6, 4)).save(tmp_path / f"x.{ending}", exif=exif)
    (item,) = find_images([tmp_path])
    assert find_shape(item) == read_image(item, None).shape[1:]


@pytest.mark.parametrize("shapes", [[(30, 60)] * 3, [(10, 10), (60, 20), (61, 20)], [(400, 600)]])
def test_the_median_size_has_the_median_shape_and_as_many_cells(shapes):
    height, width = median_size(shapes, (64, 64), 8)
    assert height % 8 == width % 8 == 0
    ratio = np.median([a / b for a, b in shapes])
    assert height / width == pytest.approx(ratio, rel=0.15)
    assert height * width == pytest.approx(64 * 64, rel=0.15)
