"""Cards: which lines keep two results apart, and which numbers are not to be trusted."""

from dataclasses import replace

import numpy as np
import pytest
from support.sets import SixNumbers, write_noise

from vqtool.images import find_images
from vqtool.metrics import compare_images
from vqtool.metrics.card import MATTER, Card, Facts, Side, count_endings, find_warnings, first_difference, split_of

SIDE = Side(num=10, num_given=12, duplicates=0, id="a" * 16, fit="crop")
CARD = Card(
    measure="images", features="F", features_digest="d", resize="clean", size="8x8", generated=SIDE, reference=SIDE
)


def changed(line, value):
    """The card with another value in one line."""
    side, _, part = line.rpartition(" ")
    return replace(CARD, **{side: replace(SIDE, **{part: value})} if side else {line: value})


@pytest.mark.parametrize("line", MATTER)
def test_each_line_that_matters_keeps_results_apart_and_is_named(line):
    told = first_difference(CARD, changed(line, 7 if line.endswith("num") else "other"))
    assert told.startswith(f"{line.replace('_', ' ')}: ")
    assert told.endswith(("and other", "and 7"))


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("seed", 5),
        ("vqtool", "9"),
        ("copies", 3),
        ("reference held", "statistics"),
        ("generated id", "b"),
        ("generated duplicates", 4),
    ],
)
def test_what_was_generated_and_the_seed_do_not(line, value):
    assert first_difference(CARD, changed(line, value)) is None


def test_a_card_is_json_and_comes_back():
    record = CARD.as_dict()
    assert record["reference"]["id"] == "a" * 16
    assert "tokenizer" not in record
    assert Card.parse(record, "x") == CARD
    assert ("reference num", "10") in CARD.rows()


def facts(num=2000, sizes=((8, 8),), endings=None, **side):
    return Facts(replace(SIDE, num=num, **{"id": "b", **side}), frozenset(sizes), endings or {".png": 10})


@pytest.mark.parametrize(
    ("generated", "reference", "words"),
    [
        (facts(), facts(id="c"), None),
        (facts(num=10), facts(num=10, id="c"), "10 images a side are fewer than the 1280 features"),
        (facts(num=2000), facts(num=3000, id="c"), "2000 images against 3000"),
        (facts(), facts(num=None, id="c"), "2000 images against an unknown number"),
        (facts(sizes=((8, 8), (16, 9))), facts(id="c"), "several sizes, 8x8 to 16x9, were brought to 8x8"),
        (facts(), facts(sizes=((32, 32),), id="c"), "several sizes, 8x8 to 32x32"),
        (facts(), facts(endings={".jpg": 9, ".jpeg": 1}, id="c"), "without losses, those of the reference JPEG"),
        (facts(), facts(endings={".jpg": 5, ".png": 5}, id="c"), None),
        (facts(), facts(endings={".webp": 9}, id="c"), None),
        (
            facts(endings={".jpg": 9}),
            facts(endings={".bmp": 9, ".png": 3}, id="c"),
            "JPEG, those of the reference without",
        ),
        (facts(), facts(split="train", id="c"), "the reference is a training split"),
        (facts(split="train"), facts(split="train", id="c"), None),
        (facts(id="c"), facts(id="c"), "both sides are the same pictures"),
    ],
)
def test_a_number_that_is_not_to_be_trusted_has_a_warning(generated, reference, words):
    told = find_warnings(generated, reference, CARD, 1280)
    assert told == [] if words is None else (len(told) == 1 and words in told[0])


def test_copies_are_told():
    told = find_warnings(facts(), facts(id="c"), replace(CARD, copies=2), 3)
    assert told == ["2 pictures are in the reference too, pixel by pixel"]


def test_a_split_is_told_by_the_name_of_a_folder_or_file():
    assert split_of(["data/train"]) == split_of(["train.tar.gz"]) == split_of(["x"], "train") == "train"
    assert split_of(["data/val"]) == split_of(["test.h5"]) == "test"
    assert split_of(["imgs"]) == split_of(["train", "test"]) == split_of(["trainers/x"]) == ""


def test_the_card_of_a_comparison_names_pictures_not_places(tmp_path):
    write_noise(tmp_path / "a", 8)
    write_noise(tmp_path / "b", 8, seed=1)
    (tmp_path / "c").mkdir()
    for i, path in enumerate(sorted((tmp_path / "b").iterdir(), reverse=True)):
        (tmp_path / "c" / f"other-{i}.png").write_bytes(path.read_bytes())
    a, b, c = (find_images([tmp_path / name]) for name in "abc")
    one, other = (compare_images(a, ref, SixNumbers()).card for ref in (b, c))
    assert first_difference(one, other) is None
    assert one.reference.id == other.reference.id != one.generated.id
    assert first_difference(one, compare_images(a, b[:7], SixNumbers()).card) == "generated num: 8 and 7"
    swapped = compare_images(b, a, SixNumbers()).card
    assert first_difference(one, swapped).startswith("reference id: ")
    assert (one.features, one.features_digest, one.resize) == ("SixNumbers", "0123456789abcdef", "clean")


def test_unreadable_pictures_of_either_side_are_named_and_counted_in_the_card(tmp_path):
    for seed, name in enumerate("ab"):
        write_noise(tmp_path / name, 6, seed=seed)
    (tmp_path / "b" / "003.png").write_bytes(b"not a picture")
    (tmp_path / "a" / "001.png").write_bytes(b"not a picture")
    a, b = (find_images([tmp_path / name]) for name in "ab")
    report = compare_images(a, b, SixNumbers(), on_error=lambda item, error: None)
    assert (report.card.generated.unreadable, report.card.reference.unreadable) == (1, 1)
    assert "001.png" in report.unreadable["images"][0]
    assert "003.png" in report.as_dict()["unreadable"]["reference"][0]
    assert report.card.generated.num == 5


def test_features_that_are_not_finite_are_one_clear_line(tmp_path):
    class Broken(SixNumbers):
        def __call__(self, images):
            found = super().__call__(images)
            return replace(found, pooled=np.full_like(found.pooled, np.nan))

    write_noise(tmp_path / "a", 3)
    items = find_images([tmp_path / "a"])
    with pytest.raises(Exception, match=r"SixNumbers: .* nan or infinity"):
        compare_images(items, items, Broken())


def test_rows_of_arrays_have_no_ending():
    assert count_endings(["x.tar: a/b.JPG", "a.png", "x.h5, row 3", "none"]) == {".jpg": 1, ".png": 1}
