"""Many images in few bytes: the same items as lists of all would give, made when they are asked for."""

import gc
import io
import random
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.sources import fill, make_tar, png

from vqtool.images import SourceOptions, find_images, read_image
from vqtool.images.sources import ids as naming
from vqtool.images.sources import packed
from vqtool.images.sources.items import FileOrigin, Words, natural_key
from vqtool.images.sources.packed import Group, PackedWords, TextRows, Texts, natural_order, repeated

ODD = ["a", "", "ü", "e\u0301", "\udcff", "\ud800", "四 五", "x" * 1000, "a"]


def test_texts_come_back_as_they_were():
    texts = Texts(ODD)
    assert list(texts) == [texts[place] for place in range(len(ODD))] == ODD
    assert (texts[-1], texts[1:4]) == (ODD[-1], ODD[1:4])
    with pytest.raises(IndexError):
        texts[len(ODD)]
    rows = [(), ("a", "b"), ("",), ()]
    assert list(TextRows(rows)) == rows
    words = [Words("cat", ("a", "b")), Words(), Words("dog"), Words(None, ("",)), Words("cat")]
    assert list(PackedWords(words)) == words


def test_names_are_sorted_in_pieces_as_they_are_at_once(monkeypatch):
    monkeypatch.setattr(packed, "SORTED", 3)
    noise = random.Random(0)
    names = [f"{noise.choice('abB')}{noise.randrange(12)}/img{number}.png" for number in range(40)]
    for given in (names, sorted(names, key=natural_key), []):
        order = natural_order(given)
        assert [given[row] for row in order] == sorted(given, key=natural_key)
        assert sorted(order) == list(range(len(given)))


def test_repeated_texts_are_found_even_where_hashes_agree():
    assert repeated(lambda: iter(["a", "b", "a", "c"]), 4) == {"a"}
    assert repeated(lambda: iter(["a", "b"]), 2) == set()

    class Clashing(str):
        def __hash__(self) -> int:
            return 1

    clashing = [Clashing(text) for text in "abca"]
    assert list(map(str, repeated(lambda: iter(clashing), 4))) == ["a"]


def _ids_of_lists(groups: dict[str, list[tuple[str, ...]]]) -> list[str]:
    """What ids mean, on lists: the best name that no other image of the source has, and so on."""
    ids = {}
    for source, names in groups.items():
        level = [0] * len(names)
        for _ in range(max(map(len, names), default=1) - 1):
            own = [each[i] for each, i in zip(names, level, strict=True)]
            counts = Counter(own)
            level = [min(i + (counts[one] > 1), len(each) - 1) for each, i, one in zip(names, level, own, strict=True)]
        ids[source] = [each[i] for each, i in zip(names, level, strict=True)]
    seen = Counter(one for own in ids.values() for one in set(own))
    for source, own in ids.items():
        if source and any(seen[one] > 1 for one in own):
            ids[source] = [f"{source}/{one}" for one in own]
    found = [naming.printable_name(one) for own in ids.values() for one in own]
    given, taken, numbers = set(found), set(), Counter()
    for i, one in enumerate(found):
        while found[i] in taken or (found[i] != one and found[i] in given):
            numbers[one] += 1
            found[i] = f"{one}-{numbers[one] + 1}"
        taken.add(found[i])
    return found


def test_ids_are_those_that_lists_of_all_names_give():
    noise = random.Random(1)
    stems = ["a", "b", "a-2", "x/a", "s1/a", "\udcff", "e\u0301", "\xe9", *map(str, range(9))]
    clashes = 0
    for _ in range(300):
        groups = {}
        for source in noise.sample(["", "s1", "s2", "x"], noise.randrange(1, 5)):
            picked = [noise.choice(stems) for _ in range(noise.randrange(6))]
            groups[source] = [(stem, f"{stem}.{noise.choice(['png', 'jpg'])}", f"d/{stem}")[: 2 + (not source)]
                              for stem in picked]  # fmt: skip
        made = naming.make_items(
            {
                source: Group(len(names), names.__getitem__, lambda row: FileOrigin(str(row)), None)
                for source, names in groups.items()
            }
        )
        expected = _ids_of_lists(groups)
        clashes += len(set(expected)) < len({each for names in groups.values() for each in names}) or any(
            "-" in one for one in expected
        )
        assert [item.id for item in made] == expected
        assert len(set(expected)) == len(expected)
    assert clashes > 50


def test_items_are_equal_whenever_they_are_made_and_slices_are_views(tmp_path: Path) -> None:
    fill(tmp_path / "a", {f"{i}.png": png(i) for i in range(5)} | {"3.txt": "three"})
    make_tar(tmp_path / "b.tar", {f"{i}.png": png(9) for i in range(3)})
    items = find_images([tmp_path / "a", tmp_path / "b.tar"])
    everything = list(items)
    assert [items[place] for place in range(-8, 8)] == everything * 2
    assert len({*everything, *items}) == 8
    assert list(items[2:7][1:-1]) == everything[3:6]
    assert list(items[::-3]) == everything[::-3]
    assert [item.caption for item in items] == [None] * 3 + ["three"] + [None] * 4
    assert np.array_equal(read_image(items[6], None), read_image(everything[7], None))
    with pytest.raises(IndexError):
        items[8]


def test_a_member_that_is_there_several_times_or_linked_is_the_last_one_before(tmp_path: Path) -> None:
    contents = [("a.png", png(1)), ("b.png", png(2)), ("a.png", png(3)), ("c.png", "a.png"), ("a.png", png(4))]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, content in contents:
            member = tarfile.TarInfo(name)
            if isinstance(content, str):
                member.type, member.linkname = tarfile.LNKTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    with pytest.warns(UserWarning, match="2 names given to several members, of which the last counts: a.png, a.png"):
        items = find_images([tmp_path / "x.tar"])
    assert [(item.id, int(read_image(item, None)[0, 0, 0])) for item in items] == [("a", 4), ("b", 2), ("c", 3)]


@pytest.mark.parametrize("kind", ["tar", "folder", "h5"])
def test_a_picture_takes_few_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Python alone would keep 200 for the object, its place and its name; here names have 14 characters."""
    monkeypatch.setattr(packed, "SORTED", 64)
    num, data = 1000, b"no picture"
    names = [f"{number // 100:04}/{number:09}" for number in range(num)]
    if kind == "tar":
        source = make_tar(tmp_path / "x.tar", {f"{name}.png": data for name in names})
    elif kind == "folder":
        source = fill(tmp_path / "x", {f"{name}.png": data for name in names})
    else:
        source = tmp_path / "x.h5"
        with h5py.File(source, "w") as file:
            file["images"], file["id"] = np.zeros((num, 1, 1), np.uint8), names
    options = SourceOptions(captions="none", labels="none")
    find_images([source], options, words="none")
    gc.collect()
    tracemalloc.start()
    try:
        items = find_images([source], options, words="none")
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [item.id for item in items] == names
    assert kept < 80 * num
