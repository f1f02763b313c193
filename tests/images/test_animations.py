"""Animations: what is written is what is read back, and what cannot be written is refused early."""

import pytest
from PIL import Image, features

from vqtool.errors import VqtoolError
from vqtool.images.animations import check_animation, save_animation

FRAMES = [Image.new("RGB", (24, 16), colour) for colour in ("red", "lime", "blue")]
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


@pytest.mark.parametrize("ending", ["webp", "gif", "png"])
def test_frames_come_back_in_order_and_the_last_one_stands(tmp_path, ending):
    path = tmp_path / f"x.{ending}"
    save_animation(FRAMES, path, milliseconds=100, held=900)
    with Image.open(path) as image:
        assert (image.n_frames, image.size) == (3, (24, 16))
        assert image.info.get("loop", 0) == 0
        for number, (colour, duration) in enumerate(zip(COLOURS, (100, 100, 900), strict=True)):
            image.seek(number)
            image.load()
            assert image.info["duration"] == duration
            pixel = image.convert("RGB").getpixel((12, 8))
            assert max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) <= 4


@pytest.mark.parametrize("ending", ["webp", "gif", "png"])
def test_the_same_frames_are_the_same_bytes(tmp_path, ending):
    for name in ("a", "b"):
        save_animation(FRAMES, tmp_path / f"{name}.{ending}", milliseconds=100)
    assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()


def test_one_frame_is_enough_and_none_are_too_few(tmp_path):
    save_animation(FRAMES[:1], tmp_path / "x.webp", milliseconds=100)
    with Image.open(tmp_path / "x.webp") as image:
        assert image.size == (24, 16)
    with pytest.raises(ValueError, match="no frames"):
        save_animation([], tmp_path / "y.webp", milliseconds=100)


def test_what_cannot_be_written_is_refused_and_what_is_there_is_kept(tmp_path, monkeypatch):
    (tmp_path / "x.gif").write_bytes(b"precious")
    with pytest.raises(VqtoolError, match="exists; use `force`"):
        check_animation(tmp_path / "x.gif", force=False)
    with pytest.raises(VqtoolError, match=r"x.mp4: an animation is a .webp, .gif, .png file"):
        check_animation(tmp_path / "x.mp4", force=False)
    monkeypatch.setattr(features, "check", lambda feature: False)
    with pytest.raises(VqtoolError, match="built without WebP"):
        check_animation(tmp_path / "x.webp", force=False)
    assert (tmp_path / "x.gif").read_bytes() == b"precious"
