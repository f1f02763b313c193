"""Captions and labels in all their usual places: used, or told in one warning that says what was not used and why."""

import json
import re
import unicodedata
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from support.sources import fill, make_tar, make_zip, png

from vqtool.errors import FormatError, VqtoolError, VqtoolWarning
from vqtool.images import SourceOptions, find_images, read_image
from vqtool.images.sources.items import NameIndex


def told(*sources: Path, **options: str) -> tuple[dict[str, tuple[str | None, tuple[str, ...]]], list[str]]:
    """Label and captions by id, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", VqtoolWarning)
        items = find_images(sources, SourceOptions(**options))  # type: ignore[arg-type]
    return {item.id: (item.label, item.captions) for item in items}, [str(each.message) for each in caught]


def captions(*sources: Path, **options: str) -> dict[str, tuple[str, ...]]:
    """Captions by id, where nothing is told."""
    found, messages = told(*sources, **options)
    assert messages == []
    return {id: words[1] for id, words in found.items()}


def labels(*sources: Path, **options: str) -> dict[str, str | None]:
    found, messages = told(*sources, **options)
    assert messages == []
    return {id: words[0] for id, words in found.items()}


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
@pytest.mark.parametrize(
    ("image", "file", "text"),
    [
        ("1.png", "1.txt", "a cat"),
        ("1.PNG", "1.TXT", "a cat"),
        ("1.png", "1.png.txt", "a cat"),
        ("1.png", "1.caption", "a cat"),
        ("1.png", "1.json", '{"prompt": "a cat"}'),
        ("1.png", "captions/1.txt", "a cat"),
        ("images/1.png", "captions/1.txt", "a cat"),
        ("images/x/1.png", "captions/x/1.txt", "a cat"),
        ("1.png", "metadata.jsonl", '{"file_name": "1.png", "prompt": "a cat"}'),
        ("1.png", "METADATA.CSV", " File_Name , Caption \n1.png,a cat\n"),
        ("1.png", "metadata.csv", "file_name;text\n1.png;a cat\n"),
        ("Bild.PNG", "metadata.csv", "file_name,text\nbild.png,a cat\n"),
        ("Caf\u00e9.png", "Cafe\u0301.txt", "a cat"),
    ],
)
def test_a_caption_is_found_in_all_usual_places(tmp_path: Path, kind: str, image: str, file: str, text: str) -> None:
    files: dict[str, bytes | str] = {image: png(7), file: text}
    make = {"folder": fill, "tar": make_tar, "zip": make_zip}[kind]
    source = make(tmp_path / ("x" if kind == "folder" else f"x.{kind}"), files)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "no labels: |.*: no labels: ", VqtoolWarning)
        (item,) = find_images([source])
    assert item.captions == ("a cat",)
    assert read_image(item, None)[0, 0, 0] == 7


def test_a_label_is_found_in_a_cls_in_capitals(tmp_path: Path) -> None:
    assert labels(fill(tmp_path, {"1.JPG": png(), "1.CLS": "cat\n"})) == {"1": "cat"}


def test_metadata_in_the_parent_folder_is_used_and_may_speak_of_others(tmp_path: Path) -> None:
    rows = [{"file_name": f"imgs/{name}.png", "text": name} for name in ("a", "b")]
    rows.append({"file_name": "others/c.png", "text": "c"})
    fill(tmp_path, {"imgs/a.png": png(), "imgs/b.png": png(), "metadata.jsonl": "\n".join(map(json.dumps, rows))})
    assert captions(tmp_path / "imgs") == {"a": ("a",), "b": ("b",)}
    assert captions(tmp_path / "imgs" / "a.png", tmp_path / "imgs" / "b.png") == {"a": ("a",), "b": ("b",)}


def test_files_of_a_glob_keep_metadata_and_class_folders(tmp_path: Path) -> None:
    text = "file_name,text\ncat/1.png,one\n"
    fill(tmp_path, {"cat/1.png": png(), "dog/2.png": png(), "metadata.csv": text, "dog/2.txt": "two"})
    found, messages = told(*sorted(tmp_path.glob("*/*.png")))
    assert found == {"1": ("cat", ("one",)), "2": ("dog", ("two",))}
    assert [message.partition(" in ")[0] for message in messages] == ["1 of 2 images have no row"]


def test_folders_of_a_glob_are_told_and_taken_for_classes_if_asked(tmp_path: Path) -> None:
    fill(tmp_path, {"cat/1.png": png(), "dog/2.png": png()})
    found, messages = told(tmp_path / "cat", tmp_path / "dog")
    assert found == {"1": (None, ()), "2": (None, ())}
    assert len(messages) == 1
    assert "give the folder that holds them" in messages[0]
    assert labels(tmp_path / "cat", tmp_path / "dog", labels="folder") == {"1": "cat", "2": "dog"}


def test_splits_above_classes_are_told_and_one_is_chosen(tmp_path: Path) -> None:
    names = ["train/cat/1.png", "train/dog/2.png", "Val/cat/3.png", "test/dog/4.png"]
    fill(tmp_path, {name: png() for name in names})
    found, messages = told(tmp_path)
    assert {words[0] for words in found.values()} == {"cat", "dog"}
    assert len(found) == 4
    assert messages == [
        f"{tmp_path}: Val/, test/, train/ are splits, not classes: all are taken; `split` train takes one of them"
    ]
    assert labels(tmp_path, split="train") == {"train/cat/1": "cat", "train/dog/2": "dog"}
    assert labels(tmp_path, split="validation") == {"Val/cat/3": "cat"}
    with pytest.raises(VqtoolError, match="`split` held-out: there are Val, test, train"):
        find_images([tmp_path], SourceOptions(split="held-out"))
    with pytest.raises(VqtoolError, match="there are no folders train, val or test above"):
        find_images([tmp_path / "train"], SourceOptions(split="train"))


def test_class_folders_are_found_below_a_folder_that_holds_all(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {f"data/{name}.png": png() for name in ("cat/1", "dog/2")}
    assert labels(make_zip(tmp_path / "x.zip", files)) == {"data/cat/1": "cat", "data/dog/2": "dog"}
    files = {f"data/{name}.png": png() for name in ("train/cat/1", "train/dog/2")}
    assert set(labels(make_zip(tmp_path / "y.zip", files)).values()) == {"cat", "dog"}


def test_labels_that_differ_in_case_are_told_and_those_in_composition_are_one(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))
    fill(tmp_path, {f"{nfc}/1.png": png(), f"{nfd}/2.png": png(), "tea/3.png": png(), "Tea/4.png": png()})
    found, messages = told(tmp_path)
    assert {words[0] for words in found.values()} == {nfc, "tea", "Tea"}
    assert messages == [
        "labels that differ in Unicode composition only (NFC, NFD) are one class: Café ('Cafe\\u0301' and 'Caf\\xe9')",
        "labels that differ in case only are different classes: Tea and tea",
    ]


def test_a_text_in_another_case_belongs_to_no_image_if_two_could_be_meant(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": png(), "A.png": png(), "a.txt": "small"})
    if len(list(tmp_path.iterdir())) == 3:  # not on file systems that take both for one
        assert captions(tmp_path) == {"A": (), "a": ("small",)}


def test_rows_of_no_image_and_images_of_no_row_are_counted_and_named(tmp_path: Path) -> None:
    rows = [{"file_name": f"img{i}.png", "text": "x"} for i in (1, 2)]
    rows += [{"file_name": f"imgs{i}.png", "text": "x"} for i in (5, 6, 7, 8)]
    fill(tmp_path, {f"img{i}.png": png() for i in (1, 2, 3)} | {"metadata.jsonl": "\n".join(map(json.dumps, rows))})
    _, messages = told(tmp_path)
    first, second = messages
    assert first.startswith(f"{tmp_path}/metadata.jsonl: 4 of its 6 rows name no image: 'imgs5.png' (nearest: 'img")
    assert first.endswith("and 1 more")
    assert second == f"1 of 3 images have no row in {tmp_path}/metadata.jsonl: img3.png"


@pytest.mark.parametrize(
    ("row", "images", "nearest"),
    [
        ("P03.png", ["p05.jpg", "p03.jpg", "p01.jpg"], "p03.jpg"),
        ("P03", ["p05.jpg", "p03.jpg", "p01.jpg"], "p03.jpg"),
        ("imgs/P03.PNG", ["p05.png", "p03.png", "p01.png"], "p03.png"),
        ("CAFE\u0301.png", ["cave.jpg", "caf\u00e9.jpg"], "caf\u00e9.jpg"),
        ("img12345.png", [f"img{i}.png" for i in range(12300, 12350, 3)], "img12345.png"),
        ("pic99990.png", [*(f"a{i}.png" for i in range(3000)), "pic99991.png"], "pic99991.png"),
    ],
)
def test_the_nearest_name_is_the_same_in_another_place_case_or_ending_else_one_spelled_alike(
    tmp_path: Path, row: str, images: list[str], nearest: str
) -> None:
    tree = {name: png() if name == nearest else b"" for name in images}
    fill(tmp_path, {**tree, "sub/known.png": png(), "t.csv": f"file,text\n{row},x\nsub/known.png,y\n"})
    fill(tmp_path, {"metadata.csv": f"file_name,text\nother/{row},x\nsub/known.png,y\n"})
    message = next(each for each in told(tmp_path)[1] if "name no image" in each)
    assert message.endswith(f"(nearest: {nearest!r})")
    fill(tmp_path, {"metadata.csv": f"file_name,text\nother/{row},x\n"})
    with pytest.raises(VqtoolError, match=re.escape(f"(nearest: {nearest!r})")):
        find_images([tmp_path])


def test_a_long_caption_of_one_line_is_told_with_the_longest_named(tmp_path: Path) -> None:
    texts = {"1.txt": "x" * 1000, "2.txt": "y" * 1001, "3.txt": "z" * 3331}
    fill(tmp_path, {f"{i}.png": png() for i in (1, 2, 3)} | texts)
    found, messages = told(tmp_path)
    assert found["3"][1] == ("z" * 3331,)
    assert messages == [
        f"2 captions of more than 1,000 characters, taken whole: the longest, of {tmp_path}/3.png, has 3,331"
    ]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"], file["caption"] = np.zeros((2, 4, 4), np.uint8), ["a", "b" * 2000]
    assert told(tmp_path / "x.h5")[1] == [
        f"1 caption of more than 1,000 characters, taken whole: the longest, of {tmp_path}/x.h5, row 1, has 2,000"
    ]


def test_labels_of_a_folder_without_class_folders_are_its_name_and_that_is_told(tmp_path: Path) -> None:
    fill(tmp_path, {"cats/1.png": png(), "cats/2.png": png()})
    files = sorted((tmp_path / "cats").iterdir())
    for sources in ([tmp_path / "cats"], files, [make_zip(tmp_path / "cats.zip", {"1.png": png(), "2.png": png()})]):
        found, messages = told(*sources, labels="folder")
        assert found == {"1": ("cats", ()), "2": ("cats", ())}
        assert messages == ["no class folders: all 2 images are one class, cats"]


def test_typed_names_match_in_either_composition_before_case(tmp_path: Path) -> None:
    nfc, nfd = "Caf\u00e9", "Cafe\u0301"
    assert NameIndex([nfc, "caf\u00e9"]).find(nfd) == nfc
    assert NameIndex([nfd, "cafe\u0301"]).find(nfc) == nfd
    assert NameIndex([nfd]).find("CAF\u00c9") == nfd
    assert NameIndex([nfc, nfd]).find("caf\u00e9") is None
    assert NameIndex([nfc, nfd]).find(nfd) == nfd


def test_captions_in_a_folder_beside_the_folder_of_images_are_found(tmp_path: Path) -> None:
    fill(tmp_path, {"images/1.png": png(), "images/x/2.png": png(), "captions/1.txt": "one", "captions/x/2.txt": "two"})
    assert captions(tmp_path / "images", labels="none") == {"1": ("one",), "x/2": ("two",)}
    assert captions(tmp_path / "images" / "1.png") == {"1": ("one",)}


def test_texts_named_like_images_in_a_folder_of_another_name_are_told(tmp_path: Path) -> None:
    fill(tmp_path, {"1.png": png(), "descriptions/1.txt": "one", "other/notes.txt": "x"})
    assert told(tmp_path)[1] == [
        f"{tmp_path}: 1 file of words beside no image of that name, not used: descriptions/1.txt; "
        "`captions` FILE and `labels` FILE take a table"
    ]


def test_metadata_in_the_parent_folder_that_names_no_image_of_the_folder_is_told(tmp_path: Path) -> None:
    rows = "imgs/1.png,one\nimgs/2b.png,seven\nothers/8.png,eight\n"
    fill(tmp_path, {"imgs/1.png": png(), "imgs/2.png": png(), "metadata.csv": f"file_name,text\n{rows}"})
    found, messages = told(tmp_path / "imgs")
    assert found == {"1": (None, ("one",)), "2": (None, ())}
    assert messages == [
        f"{tmp_path}/metadata.csv: 1 of its 3 rows name no image: 'imgs/2b.png' (nearest: '2.png')",
        f"1 of 2 images have no row in {tmp_path}/metadata.csv: 2.png",
    ]
    fill(tmp_path, {"metadata.csv": "file_name,text\nothers/1.png,one\n"})
    assert told(tmp_path / "imgs")[1] == []


# Globs, as the shell writes imgs/* out


def test_a_glob_of_a_captioned_folder_uses_what_lies_beside_the_images(tmp_path: Path) -> None:
    words = {"metadata.csv": "file_name,text\n1.png,one\n", "2.txt": "two", "3.cls": "dog", "captions/4.txt": "four"}
    fill(tmp_path, {f"{i}.png": png() for i in (1, 2, 3, 4)} | words | {"README.md": "x", "Thumbs.db": "x"})
    found, messages = told(*sorted(tmp_path.iterdir()))
    assert found == {"1": (None, ("one",)), "2": (None, ("two",)), "3": ("dog", ()), "4": (None, ("four",))}
    assert [message.partition(" in ")[0] for message in messages] == ["3 of 4 images have no row"]
    assert sorted(each.id for each in find_images(sorted(tmp_path.iterdir()), words="none")) == ["1", "2", "3", "4"]


def test_words_in_a_glob_that_belong_to_no_image_are_told_in_one_line(tmp_path: Path) -> None:
    fill(tmp_path, {"1.png": png(), "gone.txt": "x", "list.csv": "file,text\n1.png,one\n", "notes/a.txt": "x"})
    sources = sorted(tmp_path.iterdir())
    found, (message,) = told(*sources)
    assert found == {"1": (None, ())}
    listed = ", ".join(str(tmp_path / name) for name in ("gone.txt", "list.csv", "notes"))
    said = f"3 sources of words, not images, and not used for any: {listed}"
    assert message == f"{said}; `captions` FILE and `labels` FILE take a table"
    assert told(*sources, captions=f"{tmp_path}/list.csv") == ({"1": (None, ("one",))}, [])


def test_a_glob_of_class_folders_with_their_metadata_and_a_stray_image(tmp_path: Path) -> None:
    text = "file_name,text\ncat/1.png,one\ndog/2.png,two\n"
    fill(tmp_path, {"cat/1.png": png(), "dog/2.png": png(), "3.png": png(), "metadata.csv": text})
    sources = sorted(tmp_path.iterdir())
    found, messages = told(*sources)
    assert found == {"1": (None, ("one",)), "2": (None, ("two",)), "3": (None, ())}
    assert [message.partition(":")[0].partition(" in ")[0] for message in messages] == [
        "1 of 1 images have no row",
        "no labels",
    ]
    found, messages = told(*sources, labels="folder")
    assert {id: words[0] for id, words in found.items()} == {"1": "cat", "2": "dog", "3": None}
    assert messages[-1] == f"1 image beside the folders have no label: {tmp_path}/3.png"


def test_rows_of_a_table_beside_a_glob_name_images_that_are_there_or_are_told(tmp_path: Path) -> None:
    text = "file_name,text\n1.png,one\n2.png,two\n9.png,nine\n"
    fill(tmp_path, {"1.png": png(), "2.png": png(), "metadata.csv": text})
    found, messages = told(tmp_path / "1.png")
    assert found == {"1": (None, ("one",))}
    assert [message.partition(": ")[2] for message in messages] == [
        "1 of its 3 rows name no image: '9.png' (nearest: '1.png')"
    ]


def test_texts_that_are_not_needed_are_neither_read_nor_told(tmp_path: Path) -> None:
    files = {"cat/1.png": png(), "dog/2.png": png(), "cat/1.txt": b"\xff", "list.csv": "file,text\ncat/1.png,one\n"}
    fill(tmp_path, files)
    assert labels(tmp_path, captions="none") == {"cat/1": "cat", "dog/2": "dog"}
    fill(tmp_path, {"cat/1.txt": "one\ntwo\n", "dog/2.cls": b"\xff"})
    assert captions(tmp_path, captions="none", labels="none") == {"cat/1": (), "dog/2": ()}
    fill(tmp_path, {"metadata.jsonl": "{"})
    assert labels(tmp_path, captions="none", labels="folder") == {"cat/1": "cat", "dog/2": "dog"}
    with pytest.raises(FormatError, match="not JSON"):
        find_images([tmp_path], SourceOptions(captions="none"))


@pytest.mark.parametrize("place", ["captions.txt", "captions.json", "annotations/captions_Images.json"])
def test_a_list_of_captions_beside_the_folder_is_told_where_there_are_none(tmp_path: Path, place: str) -> None:
    fill(tmp_path, {"Images/1.jpg": png(), "Images/2.jpg": png(), place: "{}"})
    for sources in ([tmp_path / "Images"], sorted((tmp_path / "Images").iterdir())):
        _, messages = told(*sources)
        assert messages == [
            f"{tmp_path}/Images: no captions; `captions` {tmp_path}/{place} takes the list that lies beside it"
        ]
    assert captions(tmp_path / "Images", captions="none") == {"1": (), "2": ()}
    fill(tmp_path, {"Images/1.txt": "one"})
    assert captions(tmp_path / "Images") == {"1": ("one",), "2": ()}


def test_a_split_is_taken_of_files_named_one_by_one(tmp_path: Path) -> None:
    fill(tmp_path, {f"{split}/{kind}/1.png": png() for split in ("train", "val") for kind in ("cat", "dog")})
    files = sorted(tmp_path.glob("*/*/*"))
    assert labels(*files, split="val") == {f"{tmp_path}/val/{kind}/1": kind for kind in ("cat", "dog")}
    assert [message.partition(": ")[2] for message in told(*files)[1]] == [
        "train/, val/ are splits, not classes: all are taken; `split` val takes one of them"
    ]


def test_images_in_class_folders_without_a_label_that_is_written_are_told(tmp_path: Path) -> None:
    fill(tmp_path, {"cat/1.png": png(), "cat/2.png": png(), "dog/3.png": png(), "cat/1.cls": "tabby"})
    found, messages = told(tmp_path)
    assert {id: words[0] for id, words in found.items()} == {"cat/1": "tabby", "cat/2": None, "dog/3": None}
    assert messages == [
        f"{tmp_path}: 2 of 3 images have no label, since class folders are not taken where some labels are written; "
        "`labels` folder takes them: cat/2.png, dog/3.png"
    ]
    assert labels(tmp_path, labels="folder") == {"cat/1": "cat", "cat/2": "cat", "dog/3": "dog"}


def test_a_text_beside_an_image_that_has_its_caption_elsewhere_is_told(tmp_path: Path) -> None:
    fill(tmp_path, {"1.png": png(), "1.txt": "text", "2.png": png(), "2.txt": "text", "2.caption": "second"})
    fill(tmp_path, {"metadata.csv": "file_name,text\n1.png,row\n2.png,\n"})
    found, messages = told(tmp_path)
    assert {id: words[1] for id, words in found.items()} == {"1": ("row",), "2": ("text",)}
    assert messages == [
        f"{tmp_path}: 2 texts not used, since the images have captions elsewhere: 1.txt, 2.caption",
    ]


def test_of_several_known_columns_the_first_that_is_not_empty_counts_and_that_is_told(tmp_path: Path) -> None:
    text = "file_name,prompt,text,class,label\n1.png,p1,t1,c1,l1\n2.png,p2,,c2,\n"
    fill(tmp_path, {"1.png": png(), "2.png": png(), "metadata.csv": text})
    found, messages = told(tmp_path)
    assert found == {"1": ("l1", ("t1",)), "2": ("c2", ("p2",))}
    table = f"{tmp_path}/metadata.csv"
    assert messages == [
        f"{table}: {kind} are taken of column {names[0]}, not of {names[1]}; `{kind}` {table}:{names[1]} takes that"
        for kind, names in (("captions", ("text", "prompt")), ("labels", ("label", "class")))
    ]
    assert told(tmp_path, captions=f"{table}:prompt", labels=f"{table}:class") == (
        {"1": ("c1", ("p1",)), "2": ("c2", ("p2",))},
        [],
    )


def test_names_with_the_separators_of_windows_are_understood(tmp_path: Path) -> None:
    fill(tmp_path, {"a/1.png": png(), "b/2.png": png(), "metadata.csv": "file_name,text\na\\1.png,one\nb\\2.png,two\n"})
    assert captions(tmp_path) == {"a/1": ("one",), "b/2": ("two",)}


def test_a_caption_that_several_images_of_one_name_take_is_told(tmp_path: Path) -> None:
    fill(tmp_path, {"cat/1.png": png(), "dog/1.png": png(), "dog/2.png": png(), "captions/1.txt": "one"})
    found, messages = told(tmp_path)
    assert [words[1] for words in found.values()] == [("one",), ("one",), ()]
    assert messages == [
        f"{tmp_path}: 1 caption taken by several images of one name: captions/1.txt (cat/1.png and dog/1.png)"
    ]


@pytest.mark.parametrize("names", [("train2017", "val2017"), ("Train_1", "test-1"), ("training", "dev")])
def test_splits_may_have_a_number(tmp_path: Path, names: tuple[str, str]) -> None:
    fill(tmp_path, {f"{name}/{i}.png": png() for i, name in enumerate(names)})
    found, messages = told(tmp_path)
    assert {words[0] for words in found.values()} == {None}
    assert len(messages) == 1
    assert "are splits, not classes" in messages[0]
    assert len(captions(tmp_path, split="train")) == 1


def test_archives_among_images_are_told(tmp_path: Path) -> None:
    fill(tmp_path, {"1.png": png(), "more/shard.tar": b"", "x.zip": b"", "tok.h5": b""})
    assert told(tmp_path)[1] == [f"{tmp_path}: 2 archives among its files not looked into: x.zip, more/shard.tar"]


@pytest.mark.parametrize("name", ["captions.json", "metadata.json", "labels.json", "annotations.json", "prompts.json"])
def test_json_named_as_words_is_told_and_other_json_is_not(tmp_path: Path, name: str) -> None:
    fill(tmp_path, {"1.png": png(), name: "{}", "package.json": "{}"})
    (message,) = told(tmp_path)[1]
    assert message.startswith(f"{tmp_path}: 1 file of words beside no image of that name, not used: {name};")


def test_sources_that_hold_words_alone_are_an_error(tmp_path: Path) -> None:
    fill(tmp_path, {"a.txt": "x", "captions/1.txt": "x"})
    for source in (tmp_path / "a.txt", tmp_path / "captions"):
        with pytest.raises(VqtoolError, match=f"{source.name}: no images here, but words; looked for files that end"):
            find_images([source])


def test_metadata_without_a_known_column_is_told(tmp_path: Path) -> None:
    fill(tmp_path, {"1.png": png(), "metadata.csv": "file_name,description\n1.png,a cat\n"})
    found, (message,) = told(tmp_path)
    assert found == {"1": (None, ())}
    assert (
        "no captions and no labels are taken: its columns are description; known are text, caption, prompt" in message
    )
    table = f"{tmp_path}/metadata.csv:description"
    assert message.endswith(f"`captions` {table} names another")
    assert told(tmp_path, captions=table)[0] == {"1": (None, ("a cat",))}


def test_words_that_belong_to_nothing_are_told(tmp_path: Path) -> None:
    names = ["1.png", "README.txt", "gone.txt", "list.csv", "run.log.jsonl", "notes.md"]
    fill(tmp_path, {name: png() if name.endswith("png") else "x" for name in names})
    _, (message,) = told(tmp_path)
    assert message.startswith(
        f"{tmp_path}: 2 files of words beside no image of that name, not used: gone.txt, list.csv"
    )


@pytest.mark.parametrize(
    ("lines", "expected"), [("all", ("one\n\n two",)), ("first", ("one",)), ("each", ("one", "two"))]
)
def test_of_a_text_of_several_lines_all_the_first_or_each_is_taken(
    tmp_path: Path, lines: str, expected: tuple[str, ...]
) -> None:
    fill(tmp_path, {"1.png": png(), "1.txt": "one\n\n two\n", "2.png": png(), "2.txt": "short\n" * 9, "3.png": png()})
    found, messages = told(tmp_path, caption_lines=lines)
    assert found["1"][1] == expected
    if lines == "each":
        assert messages == []
    else:
        assert [message.split(": ", 1)[1] for message in messages] == [
            f"2 captions of several lines: {'each is taken whole' if lines == 'all' else 'the first line is taken'}; "
            "the longest, 2.txt, has 53 characters; `caption_lines` all, first or each chooses"
        ]


COCO = {
    "images": [{"id": 7, "file_name": "1.png"}, {"id": 8, "file_name": "2.png"}],
    "annotations": [{"image_id": 7, "caption": "a"}, {"image_id": 8, "caption": "c"}, {"image_id": 7, "caption": "b"}],
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.json", json.dumps(COCO)),
        ("c.json", '{"1.png": ["a", "b"], "2.png": "c"}'),
        ("metadata.json", '{"1": {"caption": ["a", "b"], "width": 1}, "2": {"caption": "c"}}'),
        ("captions.txt", "image,caption\n1.png,a\n1.png,b\n2.png,c\n"),
        ("Flickr8k.token.txt", "1.png#0\ta\n1.png#1\tb\n2.png#0\tc\n"),
        ("results.csv", "image_name| comment_number| comment\n1.png| 0| a\n1.png| 1| b\n2.png| 0| c\n"),
        ("c.jsonl", '{"file_name": "1", "text": ["a", "b"]}\n{"file_name": "x/2.png", "text": "c"}\n'),
        ("c.tsv", "image_id\ttext\n1\ta\n1\tb\n2\tc\n"),
    ],
)
@pytest.mark.parametrize("kind", ["folder", "files", "zip", "hdf5"])
def test_a_table_of_captions_that_is_named_gives_several_an_image(
    tmp_path: Path, kind: str, name: str, text: str
) -> None:
    table = tmp_path / "tables" / name
    fill(tmp_path, {"imgs/1.png": png(), "imgs/2.png": png(), f"tables/{name}": text})
    sources = [tmp_path / "imgs"]
    if kind == "files":
        sources = [tmp_path / "imgs" / "1.png", tmp_path / "imgs" / "2.png"]
    elif kind == "zip":
        sources = [make_zip(tmp_path / "x.zip", {"1.png": png(), "2.png": png()})]
    elif kind == "hdf5":
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["images"], file["id"] = np.zeros((2, 4, 4), np.uint8), ["1", "2"]
        sources = [tmp_path / "x.h5"]
    assert captions(*sources, captions=str(table)) == {"1": ("a", "b"), "2": ("c",)}


def test_a_table_of_labels_that_is_named_goes_before_folders_and_none_takes_nothing(tmp_path: Path) -> None:
    fill(
        tmp_path, {"imgs/cat/1.png": png(), "imgs/dog/2.png": png(), "l.csv": "file,kind,class\n1.png,A,x\n2.png,B,y\n"}
    )
    imgs = tmp_path / "imgs"
    assert labels(imgs, labels=f"{tmp_path}/l.csv") == {"cat/1": "x", "dog/2": "y"}
    assert labels(imgs, labels=f"{tmp_path}/l.csv:Kind") == {"cat/1": "A", "dog/2": "B"}
    assert labels(imgs, labels="none") == {"cat/1": None, "dog/2": None}
    assert labels(imgs, labels="folder") == {"cat/1": "cat", "dog/2": "dog"}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("gone.csv", "`captions` gone.csv: gone.csv cannot be read: No such file"),
        ("c.csv:poem", r"c\.csv: has no column 'poem'; there are file_name, kind"),
        ("c.csv", r"`captions` c\.csv: no captions in its columns file_name, kind; name one: c\.csv:COLUMN"),
        ("other.csv", r"other\.csv: none of its 1 file names is one of the images \(the first: '9\.png'\)"),
        ("empty.csv", r"empty\.csv: none of its 0 file names"),
        ("bad.json", r"bad\.json: not JSON"),
        ("list.json", r"list\.json: entry 1 is no object"),
    ],
)
def test_a_table_that_does_not_fit_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, {"imgs/1.png": png(), "c.csv": "file_name,kind\n1.png,x\n", "other.csv": "file,text\n9.png,x\n"})
    fill(tmp_path, {"empty.csv": "file_name,text\n", "bad.json": "{", "list.json": "[1]"})
    with pytest.raises(VqtoolError, match=message):
        find_images(["imgs"], SourceOptions(captions=said))


def test_several_captions_of_an_hdf5_and_other_names_of_its_columns(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"] = np.zeros((2, 4, 4), np.uint8)
        file["labels"], file["captions"] = ["cat", "dog"], [["a", "b"], ["c", ""]]
        file["scores"] = [0.5, 0.25]
    found, (message,) = told(tmp_path / "x.h5")
    assert found == {"0": ("cat", ("a", "b")), "1": ("dog", ("c",))}
    assert "x.h5: scores are not used; known are id, ids, label, labels" in message


def test_words_that_are_not_needed_are_not_read_and_those_that_are_wanted_are_told(tmp_path: Path) -> None:
    fill(tmp_path, {"cat/1.png": png(), "dog/2.png": png(), "metadata.jsonl": "{", "cat/1.txt": b"\xff"})
    with pytest.raises(FormatError, match="not JSON"):
        find_images([tmp_path])
    assert [(item.id, item.label) for item in find_images([tmp_path], words="none")] == [
        ("cat/1", None),
        ("dog/2", None),
    ]
    with pytest.warns(VqtoolWarning, match="no captions and labels are taken: .*not JSON"):
        assert [item.label for item in find_images([tmp_path], words="some")] == [None, None]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"include": "*.jpg"}, ["b/2"]),
        ({"include": "a/*,c.png"}, ["a/1", "c"]),
        ({"exclude": "a/*"}, ["b/2", "c"]),
        ({"include": "*.png", "exclude": "c.*"}, ["a/1"]),
    ],
)
def test_patterns_include_and_exclude_files(tmp_path: Path, options: dict[str, str], expected: list[str]) -> None:
    fill(tmp_path, {name: png() for name in ("a/1.png", "b/2.jpg", "c.png")})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VqtoolWarning)
        found = find_images([tmp_path], SourceOptions(**options))  # type: ignore[arg-type]
    assert [item.id for item in found] == expected
    with pytest.raises(VqtoolError, match="`include` and `exclude` leave no image"):
        find_images([tmp_path], SourceOptions(include="*.gif"))


@pytest.mark.parametrize("options", [{"include": "a*"}, {"exclude": "b*"}])
def test_words_of_images_that_are_left_out_are_not_told(tmp_path: Path, options: dict[str, str]) -> None:
    rows = "file_name,text\na1.png,one\nb2.png,two\nb.png,three\n"
    files = {name: png() for name in ("a1.png", "b2.png", "b.png")}
    assert captions(fill(tmp_path / "x", {"metadata.csv": rows, **files}), **options) == {"a1": ("one",)}
    assert captions(make_tar(tmp_path / "x.tar", {"metadata.csv": rows, **files}), **options) == {"a1": ("one",)}
    fill(tmp_path / "y", {"metadata.csv": rows.replace("a1", "y/a1"), **{f"y/{name}": files[name] for name in files}})
    assert captions(tmp_path / "y" / "y", **options) == {"a1": ("one",)}
    texts = {"a1.txt": "one", "b2.txt": "two", "b.txt": "three"}
    assert captions(fill(tmp_path / "z", {**files, **texts}), **options) == {"a1": ("one",)}
    (tmp_path / "x" / "b.png").unlink()
    assert "1 of its 3 rows name no image: 'b.png'" in told(tmp_path / "x", **options)[1][0]
    (tmp_path / "x" / "metadata.csv").write_text(rows.replace("a1.png,one\n", ""))
    assert told(tmp_path / "x", **options)[0]["a1"][1] == ()  # where all rows are of others


@pytest.mark.parametrize("options", [{"include": "train/*"}, {"exclude": "*/b*"}, {"split": "train"}])
def test_rows_of_a_table_about_images_that_are_left_out_are_not_told(tmp_path: Path, options: dict[str, str]) -> None:
    files = {name: png() for name in ("train/a1.png", "val/b2.png", "val/b.png")}
    table = tmp_path / "words.csv"
    table.write_text("file_name,text,label\na1.png,one,x\nval/b2.png,two,y\nb,three,z\n")
    for place in (fill(tmp_path / "x", files), make_tar(tmp_path / "x.tar", files)):
        words = told(place, captions=str(table), labels=str(table), **options)
        assert words == ({"train/a1": ("x", ("one",))}, [])
    (tmp_path / "x" / "val" / "b.png").unlink()
    assert "1 of its 3 rows name no image: 'b'" in told(tmp_path / "x", captions=str(table), **options)[1][0]
    table.write_text("file_name,text\nb2.png,two\n")
    with pytest.raises(VqtoolError, match=r"none of its 1 file names is one of the images$"):
        told(tmp_path / "x", captions=str(table), **options)


def test_a_folder_that_is_given_on_the_other_side_is_left_out_and_told(tmp_path: Path) -> None:
    fill(tmp_path, {"imgs/1.png": png(), "decoded/1.png": png(), "x.png": png()})
    with pytest.warns(VqtoolWarning, match="decoded: left out of .* given on the other side"):
        found = find_images([tmp_path], words="none", leave_out=[tmp_path / "decoded"])
    assert [item.id for item in found] == ["imgs/1", "x"]
    assert len(find_images([tmp_path / "decoded"], words="none", leave_out=[tmp_path / "decoded"])) == 1


def test_files_that_are_given_on_the_other_side_are_left_out_and_told(tmp_path: Path) -> None:
    fill(tmp_path, {"imgs/1.png": png(), "decoded/1.png": png(), "decoded/2.png": png()})
    files = sorted((tmp_path / "decoded").iterdir())
    with pytest.warns(VqtoolWarning, match="2 files left out of .* they are given on the other side"):
        found = find_images([tmp_path], words="none", leave_out=files)
    assert [item.id for item in found] == ["imgs/1"]
    with (
        pytest.warns(VqtoolWarning, match="2 files left out"),
        pytest.raises(VqtoolError, match="what it has is given on the other side"),
    ):
        find_images([tmp_path / "decoded"], words="none", leave_out=files)
    assert len(find_images(files, words="none", leave_out=files)) == 2
