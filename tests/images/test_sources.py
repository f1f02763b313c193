"""Finding images: ids, order, labels, captions, and what is wrong with a source."""

import gzip
import io
import json
import os
import stat
import sys
import tarfile
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from posixpath import splitext

import h5py
import numpy as np
import pytest
from support.sources import fill, make_tar, make_zip, png

from vqtool.errors import FormatError, VqtoolError, VqtoolWarning
from vqtool.images import Tally, find_images, read_image
from vqtool.images.sources import SourceOptions
from vqtool.images.sources.tars import TarShard


def ids(*sources: Path | str) -> list[str]:
    return [item.id for item in find_images(sources)]


def labels(*sources: Path) -> list[str | None]:
    return [item.label for item in find_images(sources)]


def captions(*sources: Path) -> list[str | None]:
    return [item.caption for item in find_images(sources)]


# Folders


def test_a_folder_is_searched_to_any_depth_in_natural_order(tmp_path: Path) -> None:
    names = ["img10.png", "img2.JPG", "b/x.webp", "b/c/y.tiff", "a12.bmp", "a2b.gif", "README", "notes.md", "x.json"]
    fill(tmp_path, {name: png() for name in names})
    assert ids(tmp_path) == ["a2b", "a12", "b/c/y", "b/x", "img2", "img10"]


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": png(), ".b.png": png(), "._a.png": b"", ".git/c.png": png(), "d/.e/f.png": png()})
    assert ids(tmp_path) == ["a"]


def test_a_hidden_folder_may_be_given_itself(tmp_path: Path) -> None:
    assert ids(fill(tmp_path / ".cache", {"a.png": png()})) == ["a"]


def test_loops_of_links_end_and_linked_folders_are_followed_once(tmp_path: Path) -> None:
    elsewhere = fill(tmp_path / "elsewhere", {"cat.png": png()})
    folder = fill(tmp_path / "imgs", {"a/1.png": png(), "b/2.png": png()})
    (folder / "a" / "up").symlink_to(folder)
    (folder / "a" / "b").symlink_to(folder / "b")
    (folder / "b" / "a").symlink_to(folder / "a")
    (folder / "self").symlink_to(folder / "self")
    (folder / "z").symlink_to(elsewhere)
    assert ids(folder) == ["a/1", "b/2", "z/cat"]


def test_a_link_to_nowhere_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    items = find_images([tmp_path])
    assert [item.id for item in items] == ["gone", "loop"]
    for item in items:
        with pytest.raises(FormatError, match=rf"{item.id}\.png: cannot be read"):
            read_image(item, None)


def test_a_pipe_with_the_name_of_an_image_is_passed_over(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": png()})
    os.mkfifo(tmp_path / "b.png")
    assert ids(tmp_path) == ["a"]


def test_names_that_collide_keep_their_extension(tmp_path: Path) -> None:
    fill(tmp_path, {name: png() for name in ["a.png", "a.jpg", "b.png", "c/a.png", "v1.5.png"]})
    assert ids(tmp_path) == ["a.jpg", "a.png", "b", "c/a", "v1.5"]


def test_ids_are_unique_even_where_a_stem_is_another_name(tmp_path: Path) -> None:
    fill(tmp_path, {name: png() for name in ["a.png", "a.jpg", "a.png.gif"]})
    found = ids(tmp_path)
    assert len(set(found)) == 3


def test_a_name_that_is_not_utf_8_gives_an_id_that_is(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(path, "wb") as file:
        file.write(png(9))
    (item,) = find_images([tmp_path])
    assert item.id.encode("utf-8").startswith(b"caf")
    assert read_image(item, None)[0, 0, 0] == 9


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(VqtoolError, match=r"no images here; looked for files that end in \.jpg.*it is empty"):
        find_images([tmp_path])


def test_a_folder_of_other_files_says_so(tmp_path: Path) -> None:
    fill(tmp_path, {"a.txt": "x", "b.py": "x"})
    with pytest.raises(VqtoolError, match="of its 2 files none is an image"):
        find_images([tmp_path])


def test_a_folder_of_shards_says_how_to_give_them(tmp_path: Path) -> None:
    make_tar(tmp_path / "train-000.tar", {"a.png": png()})
    with pytest.raises(VqtoolError, match=r"shards are given as files, for example 'train-000\.tar'"):
        find_images([tmp_path])


def test_a_missing_path_and_no_path_are_errors(tmp_path: Path) -> None:
    with pytest.raises(VqtoolError, match=r"nothing\.png: no such file or folder"):
        find_images([tmp_path / "nothing.png"])
    with pytest.raises(VqtoolError, match="no images given"):
        find_images([])
    with pytest.raises(ValueError, match="list of paths"):
        find_images(str(tmp_path))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_a_folder_without_permission_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": png(), "b/c.png": png()})
    (tmp_path / "b").chmod(0)
    try:
        with pytest.raises(VqtoolError, match="cannot read this folder"):
            find_images([tmp_path])
    finally:
        (tmp_path / "b").chmod(0o700)


# Files


def test_files_are_taken_in_the_order_given_and_called_by_their_name(tmp_path: Path) -> None:
    fill(tmp_path, {"b.png": png(1), "a.png": png(2), "c": png(3), "d.dat": png(4)})
    items = find_images([tmp_path / name for name in ["b.png", "a.png", "c", "d.dat"]])
    assert [item.id for item in items] == ["b", "a", "c", "d"]
    assert [read_image(item, None)[0, 0, 0] for item in items] == [1, 2, 3, 4]


def test_files_of_one_name_are_called_by_their_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {name: png() for name in ["x/1.png", "y/1.png", "y/1.jpg", "y/2.png"]})
    monkeypatch.chdir(tmp_path)
    assert ids("x/1.png", "y/1.png", "y/2.png") == ["x/1", "y/1", "2"]
    assert ids("y/1.jpg", "y/1.png") == ["y/1.jpg", "y/1.png"]
    assert ids("y/2.png", "y/2.png", "y/2.png") == ["y/2.png", "y/2.png-2", "y/2.png-3"]


def test_sources_that_collide_begin_with_their_names(tmp_path: Path) -> None:
    for folder in ("x", "y", "z"):
        fill(tmp_path / folder, {"1.png": png(), "2.png": png()})
    fill(tmp_path / "w", {"5.png": png()})
    with pytest.warns(VqtoolWarning, match="give the folder that holds them"):
        assert ids(tmp_path / "x", tmp_path / "y", tmp_path / "w") == ["x/1", "x/2", "y/1", "y/2", "5"]
    with pytest.warns(VqtoolWarning):
        assert ids(tmp_path / "x", tmp_path / "x") == ["x/1", "x/2", "x-2/1", "x-2/2"]


# Labels and captions


def test_labels_come_from_class_folders(tmp_path: Path) -> None:
    fill(tmp_path, {name: png() for name in ["cat/1.png", "cat/sub/2.png", "dog/1.png"]})
    assert labels(tmp_path) == ["cat", "cat", "dog"]
    assert ids(tmp_path) == ["cat/1", "cat/sub/2", "dog/1"]


def test_images_without_folders_have_no_labels(tmp_path: Path) -> None:
    fill(tmp_path, {name: png() for name in ["1.png", "2.png", "some/3.png"]})
    assert set(labels(tmp_path)) == {None}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat/1.png", "cat/2.png"], r"no labels: cat/ is the only folder.*`labels` folder takes it"),
        (["cat/1.png", "dog/2.png", "3.png", "4.png"], r"no labels: 2 of 4 images lie beside cat/, dog/"),
    ],
)
def test_folders_that_are_no_classes_give_no_labels_unless_they_are_asked_for(
    tmp_path: Path, names: list[str], message: str
) -> None:
    fill(tmp_path, {name: png() for name in names})
    with pytest.warns(VqtoolWarning, match=message):
        assert set(labels(tmp_path)) == {None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VqtoolWarning)
        found = {item.id: item.label for item in find_images([tmp_path], SourceOptions(labels="folder"))}
    assert found == {splitext(name)[0]: name.split("/")[0] if "/" in name else None for name in names}


def test_a_stray_image_beside_class_folders_is_told_and_has_no_label(tmp_path: Path) -> None:
    fill(tmp_path, {name: png() for name in ["cat/1.png", "dog/2.png", "3.png"]})
    with pytest.warns(VqtoolWarning, match=r"1 of 3 images lie beside cat/, dog/ and have no label: 3\.png"):
        assert labels(tmp_path) == [None, "cat", "dog"]


def test_metadata_jsonl_gives_captions_and_labels(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a/1.png", "text": " a cat ", "label": 3},
        {"file_name": "./b/2.png", "caption": "a dog", "label": "dog", "width": 7},
        {"file_name": "a/gone.png", "text": "?"},
    ]
    text = "\ufeff" + "\n\n".join(json.dumps(row) for row in rows) + "\n"
    fill(tmp_path, {"a/1.png": png(), "b/2.png": png(), "b/3.png": png(), "metadata.jsonl": text})
    with pytest.warns(VqtoolWarning) as caught:
        assert captions(tmp_path) == ["a cat", "a dog", None]
    assert [str(each.message).split("metadata.jsonl")[1] for each in caught] == [
        ": 1 of its 3 rows name no image: 'a/gone.png' (nearest: 'a/1.png')",
        ": b/3.png",
    ]
    assert "1 of 3 images have no row in" in str(caught[1].message)
    with pytest.warns(VqtoolWarning):
        assert labels(tmp_path) == ["3", "dog", None]


def test_metadata_csv_gives_captions_and_class_folders_still_label(tmp_path: Path) -> None:
    text = 'file_name,text\r\na/1.png,"red, round\r\nface"\r\nb/2.png,\r\n'
    fill(tmp_path, {"a/1.png": png(), "b/2.png": png(), "metadata.csv": text})
    assert captions(tmp_path) == ["red, round\r\nface", None]
    assert labels(tmp_path) == ["a", "b"]


def test_metadata_nearer_to_the_image_counts(tmp_path: Path) -> None:
    outer = '{"file_name": "a/1.png", "text": "outer"}\n{"file_name": "2.png", "text": "two"}\n'
    inner = '{"file_name": "1.png", "text": "inner"}\n'
    fill(tmp_path, {"a/1.png": png(), "2.png": png(), "metadata.jsonl": outer, "a/metadata.jsonl": inner})
    assert captions(tmp_path) == ["two", "inner"]


def test_a_txt_beside_an_image_is_its_caption(tmp_path: Path) -> None:
    fill(tmp_path, {"1.png": png(), "1.txt": "eine Katze\n", "2.png": png(), "2.txt": "  \n", "3.png": png()})
    assert captions(tmp_path) == ["eine Katze", None, None]
    assert captions(tmp_path / "1.png", tmp_path / "3.png") == ["eine Katze", None]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.jsonl", '{"file_name": "1.png"}\n{"file_name": \n', r"metadata\.jsonl, line 2: not JSON"),
        ("metadata.jsonl", '\n\n["1.png"]', r"line 3: expected an object"),
        ("metadata.jsonl", '{"text": "x"}', r"line 1: no file_name"),
        ("metadata.jsonl", '{"file_name": 1}', r"line 1: no file_name"),
        ("metadata.jsonl", '{"file_name": "1.png"}\n' * 2, r"line 2: file_name '1\.png' stands here a second time"),
        ("metadata.jsonl", '{"file_name": "1.png", "text": [1]}', r"line 1: the caption is \[1\]"),
        ("metadata.jsonl", '{"file_name": "1.png", "label": 1.5}', r"line 1: label is 1\.5"),
        ("metadata.jsonl", '{"file_name": "1.png", "label": true}', r"line 1: label is True"),
        ("metadata.jsonl", "[" * 100_000, r"line 1: not JSON"),
        ("metadata.csv", "name,text\n1.png,x\n", r"metadata\.csv, line 1: no column file_name"),
        ("metadata.csv", "", r"line 1: no column file_name"),
        ("metadata.csv", "file_name,text\n1.png\n", r"line 2: expected 2 fields"),
        ("metadata.csv", "file_name,text\n1.png,a,b\n", r"line 2: expected 2 fields"),
        ("metadata.csv", 'file_name,text\n1.png,"a"b\n', r"line 2: not CSV"),
        ("metadata.csv", 'file_name,text\n1.png,"a\n', r"line 2: not CSV"),
    ],
)
def test_malformed_metadata_names_file_and_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    fill(tmp_path, {"1.png": png(), name: text})
    with pytest.raises(FormatError, match=message):
        find_images([tmp_path])


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "1.txt"])
def test_text_that_is_not_utf_8_names_file_and_line(tmp_path: Path, name: str) -> None:
    fill(tmp_path, {"1.png": png(), name: b"file_name,text\n1.png,caf\xe9\n"})
    with pytest.raises(FormatError, match=rf"{name}, line 2: not UTF-8"):
        find_images([tmp_path])


def test_metadata_that_fits_no_image_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, {"a/1.png": png(), "metadata.jsonl": '{"file_name": "1.png", "text": "x"}'})
    with pytest.raises(
        VqtoolError, match=r"none of its 1 file names is an image of this folder \(the first: '1\.png'\)"
    ):
        find_images([tmp_path])


def test_two_metadata_files_in_one_folder_are_an_error(tmp_path: Path) -> None:
    files = {"1.png": png(), "metadata.jsonl": '{"file_name": "1.png"}', "metadata.csv": "file_name\n1.png\n"}
    with pytest.raises(VqtoolError, match=r"has both metadata\.jsonl and metadata\.csv"):
        find_images([fill(tmp_path, files)])


# Tar shards

SHARD: dict[str, bytes | str] = {
    "0001.txt": "a cat",
    "0001.png": png(1),
    "0001.cls": "5\n",
    "0002.png": png(2),
    "0002.json": '{"caption": "a dog", "label": 7, "key": "0002", "size": [1, 2]}',
    "x/0003.face.png": png(3),
    "x/0003.txt": "by key",
    ".hidden.png": png(9),
    "./0004.png": png(4),
}


@pytest.mark.parametrize(("name", "mode"), [("s.tar", "w"), ("s.tar.gz", "w:gz"), ("s.tgz", "w:gz"), ("shard", "w")])
def test_a_shard_gives_images_with_their_words(tmp_path: Path, name: str, mode: str) -> None:
    items = find_images([make_tar(tmp_path / name, SHARD, mode)])
    assert [(item.id, item.label, item.caption) for item in items] == [
        ("0001", "5", "a cat"),
        ("0002", "7", "a dog"),
        ("0004", None, None),
        ("x/0003.face", None, "by key"),
    ]
    backwards = [read_image(item, None)[0, 0, 0] for item in reversed(items)]
    assert backwards == [3, 4, 2, 1]
    assert items[0].location == f"{tmp_path / name}: 0001.png"


def test_shards_with_the_same_keys_begin_with_their_names(tmp_path: Path) -> None:
    one = make_tar(tmp_path / "s-0.tar", {"0.png": png(), "1.png": png()})
    two = make_tar(tmp_path / "s-1.tar.gz", {"0.png": png()}, "w:gz")
    assert ids(one, two) == ["s-0/0", "s-0/1", "s-1/0"]


def test_a_tar_of_class_folders_gives_labels(tmp_path: Path) -> None:
    tar = make_tar(tmp_path / "s.tar", {"./cat/1.png": png(), "./dog/1.png": png()})
    assert labels(tar) == ["cat", "dog"]


def test_a_hard_link_in_a_tar_is_its_target(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        member = tarfile.TarInfo("a.png")
        member.size = len(png(6))
        tar.addfile(member, io.BytesIO(png(6)))
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a.png"
        tar.addfile(link)
    assert [read_image(item, None)[0, 0, 0] for item in find_images([tmp_path / "s.tar"])] == [6, 6]


def add_link(tar: tarfile.TarFile, name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> None:
    link = tarfile.TarInfo(name)
    link.type, link.linkname = kind, target
    tar.addfile(link)


def test_links_in_a_tar_are_skipped_and_counted_by_name(tmp_path: Path) -> None:
    with tarfile.open(make_tar(tmp_path / "s.tar", {"a.png": png(1)}), "a") as tar:
        add_link(tar, "b.png", "a.png")
        add_link(tar, "c.png", "gone.png", tarfile.LNKTYPE)
        add_link(tar, "cats", "../../elsewhere")
        add_link(tar, "a.txt", "b.txt")
    with pytest.raises(FormatError, match=r"s\.tar: b\.png: is left out: a symbolic link to a\.png, and links in"):
        find_images([tmp_path / "s.tar"])
    tally = Tally()
    with pytest.warns(VqtoolWarning, match=r"s\.tar: 1 file of words left out: a\.txt \(a symbolic link to b\.txt"):
        items = find_images([tmp_path / "s.tar"], on_error=tally)
    assert [item.id for item in items] == ["a"]
    assert tally.line == "1 picture: no captions, no labels; 3 files skipped"
    assert [text.split(": ", 1)[1][:50] for text in tally.skipped] == [
        "b.png: is left out: a symbolic link to a.png, and ",
        "c.png: is left out: a hard link to gone.png, which",
        "cats: is left out: a symbolic link to ../../elsewh",
    ]
    tally = Tally()
    find_images([tmp_path / "s.tar"], SourceOptions(include="a.png"), words="none", on_error=tally)
    assert tally.line == "1 picture"


def test_links_in_a_zip_are_skipped_and_counted_by_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(make_zip(tmp_path / "x.zip", {"a.png": png()}), "a") as archive:
        link = zipfile.ZipInfo("b.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "a.png")
    tally = Tally()
    assert [item.id for item in find_images([tmp_path / "x.zip"], on_error=tally)] == ["a"]
    assert tally.skipped == [
        f"{tmp_path}/x.zip: b.png: is left out: a symbolic link, and links in archives are not followed"
    ]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_of_members_of_one_name_the_last_counts_and_that_is_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Duplicate name", UserWarning)  # of zipfile
        if kind == "tar":
            make_tar(path, {"a.png": png(1), "b.png": png(2)})
            make_tar(path, {"./a.png": png(3)}, "a")
        else:
            with zipfile.ZipFile(path, "w") as archive:
                for name, value in (("a.png", 1), ("b.png", 2), ("a.png", 3)):
                    archive.writestr(name, png(value))
    with pytest.warns(VqtoolWarning, match=rf"x\.{kind}: 1 name given to several members, of which the last counts: a"):
        items = find_images([path])
    assert [read_image(item, None)[0, 0, 0] for item in items] == [3, 2]


@pytest.mark.parametrize("name", ["0002.json", "0001.txt"])
def test_a_malformed_sidecar_in_a_shard_is_named(tmp_path: Path, name: str) -> None:
    tar = make_tar(tmp_path / "s.tar", {**SHARD, name: b"\xff{"})
    with pytest.raises(FormatError, match=rf"s\.tar: {name}"):
        find_images([tar])
    tar = make_tar(tmp_path / "t.tar", {**SHARD, "0002.json": "{"})
    with pytest.raises(FormatError, match=r"t\.tar: 0002\.json: not JSON"):
        find_images([tar])


def test_a_tar_without_images_says_so(tmp_path: Path) -> None:
    with pytest.raises(VqtoolError, match="no images in this tar"):
        find_images([make_tar(tmp_path / "s.tar", {"a.txt": "x"})])


def test_a_tar_that_is_none_or_cut_is_a_format_error(tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "s.tar", {f"{i}.png": png() + bytes(2000) for i in range(3)}).read_bytes()
    packed = gzip.compress(whole)
    cuts: dict[str, bytes] = {
        "empty.tar": b"",
        "text.tar": b"hello" * 300,
        "text.tgz": b"hello",
        "cut.tgz": packed[:-9],
    }
    cuts |= {f"{end}.tar": whole[:end] for end in (100, 600, 3000, 4000)}
    for name, data in cuts.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FormatError, match=name):
            find_images([tmp_path / name])


def test_a_damaged_header_inside_a_tar_is_not_taken_for_its_end(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "s.tar", {f"{i}.png": png() for i in range(3)})
    data = bytearray(path.read_bytes())
    data[1024 + 150] ^= 0xFF  # the second header's checksum
    path.write_bytes(data)
    with pytest.raises(FormatError, match="damaged or cut short after 1 file"):
        find_images([path])


def test_a_tar_that_shrinks_after_it_was_indexed_is_a_format_error(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "s.tar", {"a.png": png() + bytes(100_000)})
    (item,) = find_images([path])
    os.truncate(path, 600)
    with pytest.raises(FormatError, match=r"s\.tar.*cut short"):
        read_image(item, None)


def test_threads_that_read_one_shard_do_not_disturb_each_other(tmp_path: Path) -> None:
    contents = {f"{i}.png": bytes([i]) * (5000 + i) for i in range(100)}
    shard = TarShard(make_tar(tmp_path / "s.tar", dict(contents)))
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            names = [f"{i * 37 % 100}.png" for i in range(3000)]
            found = list(pool.map(shard.read, names))
    finally:
        sys.setswitchinterval(interval)
    assert all(data == contents[name] for name, data in zip(names, found, strict=True))


# HDF5

LAYOUTS = {"NCHW": (0, 3, 1, 2), "NHWC": (0, 1, 2, 3)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chunked", [False, True])
def test_an_hdf5_of_images_gives_its_rows(tmp_path: Path, layout: str, chunked: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        data = pixels.transpose(LAYOUTS[layout])
        file.create_dataset("images", data=data, chunks=(2, *data.shape[1:]) if chunked else None)
        file["id"] = [f"a.{i}" for i in range(5)]
        file["label"] = np.arange(5)
        file["caption"] = ["one", "", "drei", "四", "5"]
    items = find_images([tmp_path / "x.h5"])
    assert [item.id for item in items] == [f"a.{i}" for i in range(5)]
    assert [item.label for item in items] == ["0", "1", "2", "3", "4"]
    assert [item.caption for item in items] == ["one", None, "drei", "四", "5"]
    for row in (4, 0, 3):
        assert np.array_equal(read_image(items[row], None), pixels[row].transpose(2, 0, 1))
    assert read_image(items[0], (3, 3)).shape == (3, 3, 3)


def test_grey_hdf5_images_without_ids_are_numbered(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["images"] = np.arange(12 * 4, dtype=np.uint8).reshape(12, 2, 2)
    items = find_images([tmp_path / "x.hdf5"])
    assert [item.id for item in items][:2] == ["00", "01"]
    assert read_image(items[11], None).tolist() == [[[44, 45], [46, 47]]] * 3


def test_an_hdf5_is_known_by_its_content_too(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "data", "w") as file:
        file["images"] = np.zeros((2, 2, 2), dtype=np.uint8)
    assert ids(tmp_path / "data") == ["0", "1"]


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({}, "has no dataset 'images'"),
        ({"tokens": np.zeros((1, 2, 2))}, "it holds token grids: decode them first"),
        ({"images": np.zeros((2, 3, 4, 4))}, r"'images' is float64 \(2, 3, 4, 4\); expected uint8"),
        ({"images": np.zeros((2, 5, 4, 4), np.uint8)}, r"expected uint8"),
        ({"images": np.zeros(7, np.uint8)}, r"expected uint8"),
        ({"images": np.zeros((0, 3, 4, 4), np.uint8)}, "has no rows"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "id": ["a"]}, r"'id' has shape \(1,\); expected \(2,\)"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "label": [0.5, 1.5]}, "'label' is float64"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "label": [[0, 1], [1, 0]]}, r"'label' has shape \(2, 2\)"),
    ],
)
def test_an_hdf5_of_something_else_says_what_it_holds(tmp_path: Path, datasets: dict, message: str) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for name, data in datasets.items():
            file[name] = data
    with pytest.raises(VqtoolError, match=message):
        find_images([tmp_path / "x.h5"])


def test_a_cut_hdf5_is_a_format_error(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["images"] = np.zeros((20, 30, 30), np.uint8)
    data = path.read_bytes()
    for end in (0, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(FormatError, match=r"x\.h5"):
            find_images([path])


def test_equal_ids_in_an_hdf5_are_numbered(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"] = np.zeros((4, 2, 2), np.uint8)
        file["id"] = ["a", "a", "a-2", "a"]
    assert ids(tmp_path / "x.h5") == ["a", "a-3", "a-2", "a-4"]
