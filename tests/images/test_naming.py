"""Names made from ids: they stay in their folder, and apart."""

import random
import unicodedata

import pytest

from vqtool.images.naming import UniqueNames, safe_name


@pytest.mark.parametrize(
    ("id", "name"),
    [
        ("cat", "cat"),
        ("faces/cat 12", "faces_cat_12"),
        ("a/b", "a_b"),
        ("a\\b", "a_b"),
        ("../../etc/passwd", "etc_passwd"),
        ("/etc/passwd", "etc_passwd"),
        ("C:\\boot.ini", "C__boot.ini"),
        ("", "image"),
        (".", "image"),
        ("..", "image"),
        ("///", "image"),
        (".hidden", "hidden"),
        ("-rf", "rf"),
        ("~root", "root"),
        ("a\x00b\nc", "a_b_c"),
        ("a\u202egnp", "a_gnp"),
        ("trailing. ", "trailing"),
        ("CON", "_CON"),
        ("nul.tar", "_nul.tar"),
        ("com1", "_com1"),
        ("console", "console"),
        ("猫/座る", "猫_座る"),
        ("v1.5", "v1.5"),
        ("\ud800x", "x"),
    ],
)
def test_an_id_becomes_a_readable_name(id: str, name: str) -> None:
    assert safe_name(id) == name


def test_a_long_id_is_cut_and_stays_apart_from_its_neighbours() -> None:
    one, other = safe_name("x" * 300), safe_name("x" * 299 + "y")
    assert len(one) == 120
    assert one.startswith("xxx")
    assert one != other
    assert len(safe_name("座" * 300).encode()) <= 120


def test_any_characters_give_a_name_of_one_folder() -> None:
    alphabet = 'ab./\\\x00\x1f:*?"<>| -~\ud800\u200f\u2028é座C' + "".join(chr(c) for c in range(0x7F, 0xA0))
    generator = random.Random(0)
    for _ in range(3000):
        id = "".join(generator.choices(alphabet, k=generator.randrange(200)))
        name = safe_name(id)
        assert name
        assert name not in (".", "..")
        assert name[0] not in ".-~"
        assert not set(name) & set('/\\:*?"<>| ')
        assert not any(unicodedata.category(character).startswith("C") for character in name)
        assert len(name.encode()) <= 120
        assert safe_name(name) == name


def test_names_that_collide_are_numbered_also_where_case_is_folded() -> None:
    names = UniqueNames()
    assert [names(id) for id in ["a", "A", "a", "a-2", "b/c", "b_c", "e\u0301", "é"]] == [
        "a",
        "A-2",
        "a-3",
        "a-2-2",
        "b_c",
        "b_c-2",
        "é",
        "é-2",
    ]


def test_many_equal_ids_take_no_quadratic_time() -> None:
    names = UniqueNames()
    assert len({names("x") for _ in range(50_000)}) == 50_000
