"""Sources beside folders and tars: zip, NumPy arrays, parquet, standard input; limits; and what was read."""

import gzip
import io
import json
import os
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import vqtool
from vqtool import trust
from vqtool.errors import FormatError, VqtoolError, VqtoolWarning
from vqtool.images import ImageItem, SourceOptions, Tally, find_images, read_image
from vqtool.images.sources import holds_grids, tars
from vqtool.tally import describe_words

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def contents(path: Path | str) -> list[bytes]:
    return [read_image(item, None).tobytes() for item in find_images([path])]


EXPECTED = [image.transpose(2, 0, 1).tobytes() for image in PIXELS]


# Zip


@pytest.mark.parametrize("name", ["x.zip", "x"])
def test_a_zip_gives_images_with_their_words(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, image in enumerate(PIXELS):
            archive.writestr(f"{'ab'[i % 2]}/{i}.png", png(image))
        archive.writestr("a/0.txt", "zero")
        archive.writestr("__MACOSX/a/._0.png", b"junk")
        archive.writestr("../../evil.png", png(PIXELS[0]))
        archive.writestr("empty/", b"")
    items = find_images([tmp_path / name], SourceOptions(exclude="*evil*"))
    assert [(item.id, item.label, item.caption) for item in items] == [
        ("a/0", "a", "zero"),
        ("a/2", "a", None),
        ("b/1", "b", None),
        ("b/3", "b", None),
    ]
    assert [read_image(item, None).tobytes() for item in items] == [EXPECTED[i] for i in (0, 2, 1, 3)]
    assert items[0].location == f"{tmp_path / name}: a/0.png"


def test_a_damaged_zip_and_a_bomb_in_it_are_format_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", png(PIXELS[0]))
        archive.writestr("2.png", bytes(100_000))
    whole = path.read_bytes()
    monkeypatch.setattr(trust, "ALLOWANCE", 1000)
    with pytest.raises(FormatError, match=r"2\.png: claims 100,000 bytes where \d+ are stored"):
        read_image(find_images([path])[1], None)
    path.write_bytes(whole[:60] + b"?" + whole[61:])
    with pytest.raises(FormatError, match=r"x\.zip: 1\.png: cannot be unpacked"):
        read_image(find_images([path])[0], None)
    path.write_bytes(whole[:-30])
    with pytest.raises(FormatError, match="not a whole zip archive"):
        find_images([path])
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(VqtoolError, match="no images in this zip"):
        find_images([path])


# NumPy


@pytest.mark.parametrize("layout", [(0, 1, 2, 3), (0, 3, 1, 2)])
def test_a_npy_is_an_array_of_images(tmp_path: Path, layout: tuple[int, ...]) -> None:
    np.save(tmp_path / "x.npy", PIXELS.transpose(layout))
    assert contents(tmp_path / "x.npy") == EXPECTED
    assert [item.id for item in find_images([tmp_path / "x.npy"])] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("images", "labels", "captions"), None),
        (("arr_0", "label", "caption"), None),
        (("train_images", "train_labels", "train_captions"), "train"),
        (("x_test", "y_test", None), "test"),
    ],
)
def test_a_npz_has_words_beside_its_images(tmp_path: Path, names: tuple[str, ...], split: str | None) -> None:
    columns = {names[0]: PIXELS, names[1]: np.arange(4)[:, None], names[2]: np.array(["a", "", "c", "d"])}
    np.savez(tmp_path / "x.npz", **{name: column for name, column in columns.items() if name})
    items = find_images([tmp_path / "x.npz"], SourceOptions(split=split))
    assert [item.label for item in items] == ["0", "1", "2", "3"]
    assert [item.caption for item in items] == (["a", None, "c", "d"] if names[2] else [None] * 4)
    assert [read_image(item, None).tobytes() for item in items] == EXPECTED


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 4, 4))}, "'images' is float64"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "it has no images"),
        ({"a": np.zeros(3), "b": np.zeros(3)}, "call its array of images 'images'"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, int)}, r"'labels' has shape \(3,\)"),
        ({"images": np.array([{}, {}], object)}, "not a whole file of NumPy arrays"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "label": np.eye(2, dtype=int)}, r"'label' has shape \(2, 2\)"),
    ],
)
def test_an_array_of_something_else_says_what_it_holds(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(VqtoolError, match=message):
        find_images([tmp_path / "x.npz"])


def test_patterns_choose_rows_of_arrays_by_their_ids_and_splits_are_refused(tmp_path: Path) -> None:
    images, names = np.zeros((3, 4, 4), np.uint8), ["cat/1", "cat/2", "dog/1"]
    np.savez(tmp_path / "x.npz", images=images, ids=np.array(names))
    np.save(tmp_path / "x.npy", images)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"], file["ids"] = images, names
    for source in ("x.npz", "x.h5"):
        assert [item.id for item in find_images([tmp_path / source], SourceOptions(include="cat/*"))] == names[:2]
        with pytest.raises(VqtoolError, match=rf"{source}: `include` and `exclude` leave no image"):
            find_images([tmp_path / source], SourceOptions(include="*.png"))
    for source in ("x.npy", "x.h5"):
        with pytest.raises(VqtoolError, match=rf"{source}: `split` train: it has no splits"):
            find_images([tmp_path / source], SourceOptions(split="train"))


@pytest.mark.parametrize("name", ["x.h5", "x.npz"])
def test_columns_that_are_not_needed_are_not_read_but_ids_are(tmp_path: Path, name: str) -> None:
    columns = {"images": np.zeros((2, 4, 4), np.uint8), "ids": np.array([b"a", b"b"]), "labels": np.zeros(3, int)}
    columns["captions"] = np.zeros(2)  # neither fits
    if name == "x.npz":
        np.savez(tmp_path / name, **columns)
    else:
        with h5py.File(tmp_path / name, "w") as file:
            for column, values in columns.items():
                file[column] = values
    with pytest.raises(FormatError, match="'labels' has shape"):
        find_images([tmp_path / name], SourceOptions(captions="none"))
    with pytest.raises(FormatError, match="'captions' is float64"):
        find_images([tmp_path / name], SourceOptions(labels="none"))
    for options in ({"captions": "none", "labels": "none"}, {}):
        words = "all" if options else "none"
        items = find_images([tmp_path / name], SourceOptions(**options), words=words)  # type: ignore[arg-type]
        assert [(item.id, item.label, item.captions) for item in items] == [("a", None, ()), ("b", None, ())]
    with pytest.warns(VqtoolWarning, match="no captions and labels are taken: .*'labels' has shape"):
        assert [item.id for item in find_images([tmp_path / name], words="some")] == ["a", "b"]


# Parquet


def test_a_parquet_of_hugging_face_gives_images_with_the_names_of_their_classes(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table(
        {
            "image": [{"bytes": png(image), "path": f"{i}.png"} for i, image in enumerate(PIXELS)],
            "label": [1, 0, 1, None],
            "text": [["a", "b"], ["c"], [], None],
            "width": [5] * 4,
        }
    )
    features = {"info": {"features": {"label": {"names": ["cat", "dog"]}}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    with pytest.warns(VqtoolWarning, match="columns width are not used"):
        items = find_images([tmp_path / "x.parquet"])
    assert [(item.label, item.captions) for item in items] == [
        ("dog", ("a", "b")),
        ("cat", ("c",)),
        ("dog", ()),
        (None, ()),
    ]
    assert [read_image(item, None).tobytes() for item in reversed(items)] == EXPECTED[::-1]
    (tmp_path / "x.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-20])
    with pytest.raises(FormatError, match="not a whole parquet file"):
        find_images([tmp_path / "x.parquet"])


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("label", [[1, 0], [0, 1]], r"'label': '\[1, 0\]' stands in a row; expected a string or an integer"),
        ("text", [{"en": "a"}, {"en": "b"}], "'text': .* stands in a row; expected a string, or a list of them"),
        ("text", [[1], [2]], "'text': .* stands in a row"),
    ],
)
def test_words_of_another_type_in_a_parquet_are_named(
    tmp_path: Path, column: str, values: list[object], message: str
) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [{"bytes": png(image), "path": ""} for image in PIXELS[:2]]
    parquet.write_table(pyarrow.table({"image": images, column: values}), tmp_path / "x.parquet")
    with pytest.raises(FormatError, match=rf"x\.parquet: {message}"):
        find_images([tmp_path / "x.parquet"])
    assert len(find_images([tmp_path / "x.parquet"], SourceOptions(captions="none", labels="none"))) == 2


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(VqtoolError, match=r"parquet needs pyarrow: pip install .*parquet"):
        find_images([tmp_path / "x.parquet"])


# Tars that were cut, or are not what they are called


def make_tar(path: Path) -> Path:
    vqtool.save_images(PIXELS.transpose(0, 3, 1, 2), path)
    return path


def test_a_tar_without_its_end_marker_is_refused_or_taken_as_it_is(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.tar")
    path.write_bytes(path.read_bytes()[:-1024])
    message = r"x\.tar: the tar archive has no end marker: it was cut short after 4 files"
    with pytest.raises(FormatError, match=message + "; `allow_truncated` takes what is there"):
        find_images([path])
    with pytest.warns(VqtoolWarning, match=message):
        items = find_images([path], SourceOptions(allow_truncated=True))
    assert [read_image(item, None).tobytes() for item in items] == EXPECTED


@pytest.mark.parametrize("cut", [600, 1024, 1200, 2100, 3000, 3500])
def test_what_is_whole_of_a_cut_tar_can_be_taken(tmp_path: Path, cut: int) -> None:
    path = make_tar(tmp_path / "x.tar")
    num = sum(span.offset + span.size <= cut for span in tars.TarShard(path).spans)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FormatError, match=r"cut short|not a whole tar") as caught:
        find_images([path])
    assert not num or "; `allow_truncated` takes what is there" in str(caught.value)
    fails = nullcontext() if num else pytest.raises(VqtoolError, match="no images in this tar")
    found: list[bytes] = []
    with pytest.warns(VqtoolWarning), fails:
        found = contents_of(path)
    assert found == EXPECTED[:num]


def contents_of(path: Path) -> list[bytes]:
    items = find_images([path], SourceOptions(allow_truncated=True))
    return [read_image(item, None).tobytes() for item in items]


def test_a_gzip_that_is_called_tar_is_read_and_told(tmp_path: Path) -> None:
    make_tar(tmp_path / "x.tar").write_bytes(gzip.compress((tmp_path / "x.tar").read_bytes()))
    with pytest.warns(VqtoolWarning, match=r"x\.tar: is compressed by gzip, whatever its name says"):
        assert contents(tmp_path / "x.tar") == EXPECTED


def test_a_gzip_may_not_unpack_to_more_than_is_believable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.tgz").write_bytes(gzip.compress(bytes(10 << 20)))
    monkeypatch.setattr(trust, "ALLOWANCE", 0)
    with pytest.raises(FormatError, match=r"x\.tgz: unpacks to more than 1,\d+,\d+ bytes, too many for its size"):
        find_images([tmp_path / "x.tgz"])


@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_is_read_from_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    data = make_tar(tmp_path / "x.tar").read_bytes()
    (tmp_path / "x").write_bytes(gzip.compress(data) if packed else data)
    with open(tmp_path / "x") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert not holds_grids("-")
        assert contents("-") == EXPECTED


def test_what_is_no_tar_on_standard_input_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "x", "w") as file:
        file["tokens"] = [1]
    with open(tmp_path / "x") as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert holds_grids("-")
        with pytest.raises(FormatError, match=r"standard input: not a whole tar archive .* it begins as an HDF5 file"):
            find_images(["-"])


# Limits


def test_arrays_of_too_many_pixels_are_refused_before_they_are_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("images", (4, 30000, 30000, 3), "u1", chunks=(1, 3000, 3000, 3), compression="gzip")
    with h5py.File(tmp_path / "y.h5", "w") as file:
        file.create_dataset("images", (4000, 1000, 1000), "u1", chunks=(4000, 1000, 100), compression="gzip")
    np.save(tmp_path / "x.npy", np.broadcast_to(np.uint8(0), (1, 10, 10)))
    header = (tmp_path / "x.npy").read_bytes().replace(b"(1, 10, 10), }" + b" " * 14, b"(1, 30000, 30000, 3), }     ")
    (tmp_path / "x.npy").write_bytes(header)
    for name, shape in (("x.h5", r"4, 30000, 30000, 3"), ("y.h5", "4000, 1000, 1000")):
        with pytest.raises(FormatError, match=rf"'images': \({shape}\) cannot be in a file of \d+ bytes"):
            find_images([tmp_path / name])
    with pytest.raises(FormatError, match=r"x\.npy"):
        find_images([tmp_path / "x.npy"])


def test_the_limit_on_pixels_stands_for_arrays_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"] = np.zeros((1, 10, 10, 3), "u1")
    assert len(find_images([tmp_path / "x.h5"])) == 1
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(FormatError, match=r"10x10 pixels are more than the limit of 50; shrink it first"):
        find_images([tmp_path / "x.h5"])


# What was read, in one line


def test_a_tally_says_what_was_read_and_skipped(tmp_path: Path) -> None:
    for folder in ("cat", "dog"):
        (tmp_path / folder).mkdir()
        for i in range(2):
            (tmp_path / folder / f"{i}.png").write_bytes(png(PIXELS[i]))
    (tmp_path / "cat" / "0.txt").write_text("a cat")
    (tmp_path / "dog" / "1.png").write_bytes(b"no image")
    told: list[str] = []
    tally = Tally(lambda item, error: told.append(item.id))
    assert len(vqtool.read_images(tmp_path, on_error=tally)) == 3
    assert tally.line == "3 pictures: captions for 1, labels for 3 in 2 classes; 1 file skipped"
    assert told == ["dog/1"]
    assert tally.skipped[0].startswith(f"{tmp_path}/dog/1.png: not an image")
    silent = Tally()
    vqtool.read_images(tmp_path / "cat", words="none", on_error=silent)
    assert silent.line == "2 pictures"


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0, 0, 0, 0), "no captions, no labels"),
        ((998, 998, 1000, 12), "captions for 998, labels for 1,000 in 12 classes"),
        ((1000, 5000, 1, 1), "captions for 1,000 (5,000 in all), labels for 1 in 1 class"),
    ],
)
def test_words_are_counted(numbers: tuple[int, int, int, int], text: str) -> None:
    assert describe_words(*numbers) == text


def test_a_folder_that_cannot_be_read_is_skipped_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(png(PIXELS[0]))
    scan = os.scandir

    def refuse(path: str | Path) -> object:
        if str(path).rstrip("/").endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(VqtoolError, match="b: cannot read this folder: Permission denied"):
        find_images([tmp_path])
    tally = Tally()
    with pytest.warns(VqtoolWarning, match="a/ is the only folder"):
        found: list[ImageItem] = find_images([tmp_path], on_error=tally)
    assert [item.id for item in found] == ["a/1"]
    assert tally.line == "1 picture: no captions, no labels; 1 file skipped"


def test_a_file_that_another_program_writes_is_told_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*arguments: object, **options: object) -> None:
        raise BlockingIOError(11, "unable to lock file")

    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    monkeypatch.setattr(h5py, "File", locked)
    with pytest.raises(FormatError, match="another program has it open for writing"):
        find_images([tmp_path / "x.h5"])
