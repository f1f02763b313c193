"""Where pictures go: nothing leaves the folder, words come back, and what failed does not look whole."""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import vqtool
from vqtool.captions import join_captions
from vqtool.errors import VqtoolError
from vqtool.images import find_images, read_image
from vqtool.images.writer import (
    METADATA,
    PREVIEW_IMAGES,
    FolderWriter,
    PngWriter,
    PreviewWriter,
    TarWriter,
    writer_type,
)

HOSTILE = ["../up", "/etc/passwd", "a/../../b", "..", ".", "", ".hidden", "-o", "~root", "c:\\x", "nul", "a\0b", "a\nb",
           "x" * 300, "b", "B", "ü/ü", "metadata.jsonl", "a.b.c"]  # fmt: skip


def pictures(num, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, 3, 4, 6)).astype(np.uint8)


def files_below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", [FolderWriter, TarWriter])
def test_hostile_ids_cannot_leave_the_output_and_stay_apart(tmp_path, kind):
    output = tmp_path / "jail" / ("out" if kind is FolderWriter else "out.tar")
    output.parent.mkdir()
    images = pictures(len(HOSTILE))
    with kind(output) as writer:
        writer.write(images, HOSTILE)
    if kind is FolderWriter:
        names = [path.name for path in output.iterdir() if path.name != METADATA]
        assert files_below(tmp_path) == sorted(f"jail/out/{name}" for name in [*names, METADATA])
    else:
        assert files_below(tmp_path) == ["jail/out.tar"]
        with tarfile.open(output) as tar:
            names = tar.getnames()
    assert len({name.lower() for name in names}) == len(HOSTILE)
    for name in names:
        assert "/" not in name
        assert name.endswith(".png")
        assert name[0] not in ".-~"
        assert len(name.encode()) < 200
    found = [read_image(item, None) for item in find_images([output])]
    assert sorted(image.tobytes() for image in found) == sorted(image.tobytes() for image in images)


@pytest.mark.parametrize("kind", [FolderWriter, TarWriter])
def test_pictures_labels_and_captions_come_back_as_they_were(tmp_path, kind):
    output = tmp_path / ("out" if kind is FolderWriter else "out.tar")
    images = pictures(5)
    labels = ["cat", "", "dog", 'ü "q"', "0"]
    captions = ["a, b\nc", "", "", "日本", "{}"]
    with kind(output) as writer:
        writer.write(images[:2], ["a", "b"], labels[:2], captions[:2])
        writer.write(images[2:], ["c", "d", "e"], labels[2:], captions[2:])
    assert writer.num_images == 5
    items = find_images([output])
    assert [item.id for item in items] == list("abcde")
    assert all(np.array_equal(read_image(item, None), image) for item, image in zip(items, images, strict=True))
    assert [item.label or "" for item in items] == labels
    assert [" ".join((item.caption or "").split()) for item in items] == [" ".join(text.split()) for text in captions]


def test_pictures_of_which_nothing_is_known_have_no_metadata(tmp_path):
    with FolderWriter(tmp_path / "out") as writer:
        writer.write(pictures(2), ["a", "b"])
    assert files_below(tmp_path / "out") == ["a.png", "b.png"]


def fail_midway(writer, error=ZeroDivisionError):
    with writer:
        writer.write(pictures(2), ["a", "b"], ["x", ""], None)
        raise error


def test_a_folder_keeps_what_arrived_before_a_failure_with_its_words(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fail_midway(FolderWriter(tmp_path / "out"))
    assert [(item.id, item.label) for item in find_images([tmp_path / "out"])] == [("a", "x"), ("b", None)]


def test_no_folder_is_made_for_pictures_that_never_come(tmp_path):
    with pytest.raises(KeyboardInterrupt), FolderWriter(tmp_path / "out"):
        raise KeyboardInterrupt
    assert files_below(tmp_path) == []
    assert not (tmp_path / "out").exists()
    with FolderWriter(tmp_path / "out"):
        pass
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize("kind", [TarWriter, PreviewWriter])
def test_a_failure_leaves_no_tar_and_no_preview(tmp_path, kind):
    output = tmp_path / ("out.tar" if kind is TarWriter else "out.png")
    with pytest.raises(ZeroDivisionError):
        fail_midway(kind(output))
    assert list(tmp_path.iterdir()) == []
    output.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        fail_midway(kind(output, force=True))
    assert output.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [output]


class Stdout:
    """Stands in for standard output, a pipe."""

    def __init__(self, buffer):
        self.buffer = buffer

    def isatty(self):
        return False

    def flush(self):
        self.buffer.flush()


def test_a_stream_carries_all_that_arrived_and_ends_with_a_marker_only_when_whole(tmp_path, monkeypatch):
    stream = io.BytesIO()
    monkeypatch.setattr("sys.stdout", Stdout(stream))
    with pytest.raises(ZeroDivisionError):
        fail_midway(TarWriter("-"))
    failed = stream.getvalue()
    with TarWriter("-") as writer:
        writer.write(pictures(2), ["a", "b"], ["x", ""], None)
        before_end = stream.getvalue()[len(failed) :]
    whole = stream.getvalue()[len(failed) :]
    assert failed == before_end  # sent as it comes, not held back
    assert whole == failed + bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        assert tar.getnames() == ["a.png", "a.cls", "b.png"]
        assert {member.mtime for member in tar} == {0}  # equal pictures make an equal tar


def test_a_full_disk_names_the_output(tmp_path, monkeypatch):
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr("sys.stdout", Stdout(full))
        with (
            pytest.raises(VqtoolError, match="standard output: cannot be written: No space left on device"),
            TarWriter("-") as writer,
        ):
            writer.write(pictures(1), ["a"])


def test_a_preview_shows_all_pictures_up_to_its_limit(tmp_path):
    with PreviewWriter(tmp_path / "a.png", columns=2) as writer:
        writer.write(pictures(3), ["a", "b", "c"], ["", "label", "label"], ["", "", "caption"])
    assert writer._captions == ["a", "label", "caption"]
    with Image.open(tmp_path / "a.png") as sheet:
        small = sheet.size
    with PreviewWriter(tmp_path / "b.png", columns=2) as writer:
        writer.write(pictures(4), list("abcd"))
    with Image.open(tmp_path / "b.png") as sheet:
        assert sheet.size == small  # two rows of two
    with PreviewWriter(tmp_path / "c.png") as writer:
        for start in range(0, PREVIEW_IMAGES + 60, 50):
            writer.write(pictures(50), [str(i) for i in range(start, start + 50)])
    assert (writer.num_images, writer.num_dropped) == (PREVIEW_IMAGES, 100)


def test_one_picture_is_written_to_a_png_as_it_is(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (1, 3, 8, 16), dtype=np.uint8)
    vqtool.save_images(picture, tmp_path / "x.png", captions=["a bee"])
    with Image.open(tmp_path / "x.png") as image:
        assert np.array_equal(np.asarray(image).transpose(2, 0, 1), picture[0])
    vqtool.save_images(np.concatenate([picture, picture]), tmp_path / "two.png", captions=["a bee"] * 2)
    with Image.open(tmp_path / "two.png") as image:
        assert image.width > 2 * 16


def test_a_preview_goes_to_a_pipe_as_png(monkeypatch):
    stream = io.BytesIO()
    monkeypatch.setattr("sys.stdout", Stdout(stream))
    with PreviewWriter("-") as writer:
        writer.write(pictures(2), ["a", "b"])
    with Image.open(io.BytesIO(stream.getvalue())) as sheet:
        assert sheet.format == "PNG"


def test_a_preview_of_nothing_is_refused(tmp_path):
    with pytest.raises(VqtoolError, match="no images"), PreviewWriter(tmp_path / "a.png"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_not_overwritten_without_force(tmp_path):
    folder, file = tmp_path / "folder", tmp_path / "file.png"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    file.write_text("mine")
    (tmp_path / "file.tar").write_text("mine")
    with pytest.raises(VqtoolError, match="folder: exists and is not empty; use --force"):
        FolderWriter(folder)
    with pytest.raises(VqtoolError, match="exists and is not a folder"):
        FolderWriter(file, force=True)
    for kind, name in ((PreviewWriter, "file.png"), (TarWriter, "file.tar")):
        with pytest.raises(VqtoolError, match="exists; use `force`"):
            kind(tmp_path / name)
        assert (tmp_path / name).read_text() == "mine"


def test_force_overwrites_pictures_and_words_and_counts_what_else_is_there(tmp_path):
    with FolderWriter(tmp_path) as writer:
        writer.write(pictures(3), ["a", "b", "c"], None, ["old", "old", "old"])
    with FolderWriter(tmp_path, force=True) as writer:
        writer.write(pictures(1, seed=1), ["b"])
    assert writer.num_others == 2
    items = {item.id: item for item in find_images([tmp_path])}
    assert np.array_equal(read_image(items["b"], None), pictures(1, seed=1)[0])
    assert items["b"].caption is None
    assert not (tmp_path / METADATA).exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("out", FolderWriter), ("a.b", FolderWriter), ("x.png", PngWriter), ("X.PNG", PngWriter),
     ("x.tar", TarWriter), ("-", TarWriter), ("/dev/stdout", TarWriter), ("/dev/full", TarWriter)],
)  # fmt: skip
def test_the_name_of_the_output_chooses_the_gallery(tmp_path, name, kind):
    from pathlib import Path

    assert writer_type(Path(name) if name.startswith(("-", "/")) else tmp_path / name) is kind


@pytest.mark.parametrize("name", ["preview.jpg", "X.JPEG", "x.zip", "x.tar.gz", "x.tgz", "x.h5", "x.webp"])
def test_a_name_of_another_kind_of_file_is_refused_and_no_folder_is_made(tmp_path, name):
    with pytest.raises(VqtoolError, match=f"{name}: pictures are written to a folder, to x.tar, or to x.png"):
        writer_type(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / name).mkdir()
    assert writer_type(tmp_path / name) is FolderWriter


@pytest.mark.parametrize(
    ("images", "words", "message"),
    [
        (np.zeros((2, 3, 4, 4), np.float32), {}, r"are float32; expected uint8 in 0\.\.255: `vqtool.images.to_uint8`"),
        (np.zeros((2, 3, 4, 4), np.int64), {}, "images are int64"),
        (np.zeros((3, 4, 4), np.uint8), {}, r"expected \(B, 3, height, width\): one image is a batch of one"),
        (np.zeros((2, 4, 4, 3), np.uint8), {}, r"shape \(2, 4, 4, 3\); expected"),
        (np.zeros((2, 3, 4, 4), np.uint8), {"ids": ["a"]}, "ids: a list with one text an image is expected: 1 for 2"),
        (np.zeros((2, 3, 4, 4), np.uint8), {"captions": "ab"}, "captions: .* one string for 2 images"),
    ],
)  # fmt: skip
def test_what_is_no_batch_of_images_with_its_words_is_not_saved(tmp_path, images, words, message):
    with pytest.raises(VqtoolError, match=message):
        vqtool.save_images(images, tmp_path / "out", **words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_tensors_are_saved_under_numbers_that_sort(tmp_path, name):
    images = torch.from_numpy(pictures(11))
    vqtool.save_images(images, tmp_path / name)
    found = vqtool.read_images(tmp_path / name)
    assert found.ids == [f"{number:02d}" for number in range(11)]
    assert np.array_equal(found.images, images.numpy())
    with pytest.raises(VqtoolError, match=r"use (--|`)force"):
        vqtool.save_images(images, tmp_path / name)
    vqtool.save_images(images[:3], tmp_path / name, force=True)


@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_ids_that_names_cannot_show_come_back(tmp_path, name):
    ids = ["cat/1", "cat/2.5", "Dog/Über Bild 10", "a b", "plain", "a_b"]
    vqtool.save_images(pictures(6), tmp_path / name, ids=ids)
    found = vqtool.read_images(tmp_path / name)
    back = dict(zip(found.ids, found.images, strict=True))
    assert {id: image.tobytes() for id, image in back.items()} == {
        id: image.tobytes() for id, image in zip(ids, pictures(6), strict=True)
    }
    assert (found.labels, found.captions) == (None, None)


@pytest.mark.parametrize("name", ["out", "out.tar"])
def test_several_captions_of_an_image_come_back(tmp_path, name):
    several = join_captions(["a cat", "eine Katze\nsitzt"])
    vqtool.save_images(pictures(3), tmp_path / name, captions=[several, "", "one"])
    assert [item.captions for item in find_images([tmp_path / name])] == [
        ("a cat", "eine Katze\nsitzt"),
        (),
        ("one",),
    ]
