"""`vqtool show`: one preview of images or of decoded grids."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.commands import error_lines, write_pictures

from vqtool.grids import GridBatch, GridHeader, GridWriter
from vqtool.images import preview, to_uint8
from vqtool.tokenizers import load_tokenizer


@pytest.fixture
def work(tmp_path, monkeypatch, tokenizer_path):
    """An empty current folder with `imgs/` (6 pictures) and `tok.h5` (5 grids with labels and captions)."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "imgs", 6)
    header = GridHeader(16, (2, 2), (16, 16), load_tokenizer(tokenizer_path).fingerprint, str(tokenizer_path), "none")
    with GridWriter("tok.h5", header) as writer:
        writer.write(GridBatch(tokens(), list("abcde"), ["x", "x", "", "", "x"], ["one", "", "three", "", ""]))
    return tmp_path


def tokens():
    return np.random.default_rng(0).integers(0, 16, (5, 2, 2)).astype(np.uint8)


@pytest.fixture
def drawn(monkeypatch):
    """What was put on the last preview: (images, captions, columns)."""
    found = []

    def preview_grid(images, captions, *, columns=None):
        found[:] = [images, list(captions), columns]
        return preview.preview_grid(images, captions, columns=columns)

    monkeypatch.setattr("vqtool.images.writer.preview_grid", preview_grid)
    return found


def test_images_are_shown_under_their_names(vqtool, work, drawn):
    result = vqtool("show", "imgs")
    assert (result.code, result.data) == (0, b"")
    assert "wrote 6 pictures to preview.png" in result.err
    images, captions, columns = drawn
    for i, image in enumerate(images):
        with Image.open(f"imgs/{i:02d}.png") as picture:
            assert np.array_equal(image.transpose(1, 2, 0), np.asarray(picture))
    assert (captions, columns) == ([f"{i:02d}" for i in range(6)], None)
    with Image.open("preview.png") as sheet:
        assert sheet.format == "PNG"


def test_grids_are_decoded_and_shown_under_captions_else_labels_else_ids(vqtool, work, drawn, tokenizer_path):
    import torch

    assert vqtool("show", "tok.h5", "--columns", "2", "-o", "grids.png").code == 0
    images, captions, columns = drawn
    assert (captions, columns) == (["one", "x", "three", "d", "x"], 2)
    expected = to_uint8(load_tokenizer(tokenizer_path).decode(torch.from_numpy(tokens().astype(np.int64))))
    assert np.abs(images.astype(int) - expected).max() <= 1


def test_the_number_of_pictures_can_be_limited(vqtool, work, drawn):
    for source in ("imgs", "tok.h5"):
        assert vqtool("show", source, "-n", "3", "--force").code == 0
        assert len(drawn[0]) == 3


def test_it_is_told_that_there_are_more_than_are_shown_where_nobody_has_said_how_many(vqtool, work, drawn):
    assert vqtool("cat", *["tok.h5"] * 13, "-o", "many.h5").code == 0  # 65
    (work / "many").mkdir()
    for number in range(65):
        os.link("imgs/00.png", f"many/{number}.png")
    for source in ("many.h5", "many"):
        result = vqtool("show", source, "-f")
        assert (result.code, len(drawn[0])) == (0, 64)
        assert "there are more pictures than the 64 shown: --num shows others, too, up to 400" in result.err
        assert "there are more" not in vqtool("show", source, "-f", "-n", 3).err
    for source in ("tok.h5", "imgs"):
        assert "there are more" not in vqtool("show", source, "-f").err


def test_grids_are_read_from_stdin_and_the_preview_goes_to_a_pipe(vqtool, work):
    result = vqtool("show", "-", "-o", "-", stdin="tok.h5")
    assert result.code == 0
    assert "wrote 5 pictures to stdout" in result.err
    with Image.open(io.BytesIO(result.data)) as sheet:
        assert sheet.format == "PNG"
    assert sorted(path.name for path in work.iterdir()) == ["imgs", "tok.h5"]


def test_images_of_several_sizes_are_shown_at_128_pixels_or_a_given_size(vqtool, work, drawn):
    write_pictures(work / "large", 2, size=(40, 20))
    assert vqtool("show", "imgs", "large").code == 0
    assert drawn[0].shape == (8, 3, 128, 128)
    assert vqtool("show", "imgs", "large", "--size", "16x8", "--force").code == 0
    assert drawn[0].shape == (8, 3, 16, 8)


def test_an_option_for_the_other_kind_of_input_is_refused(vqtool, work):
    for arguments, flag in ((["tok.h5", "--size", "16"], "--size"), (["imgs", "-t", "tok.safetensors"], "--tokenizer")):
        result = vqtool("show", *arguments)
        assert result.code == 1
        assert f"{flag} is for" in error_lines(result.err)[0]
    assert not Path("preview.png").exists()


def test_a_bad_image_is_named_skipped_and_counted_or_stops_it(vqtool, work, drawn):
    (work / "imgs" / "02.png").write_bytes(b"no image")
    result = vqtool("show", "imgs", "--strict")
    assert result.code == 1
    assert "imgs/02.png" in error_lines(result.err)[0]
    assert not Path("preview.png").exists()
    result = vqtool("show", "imgs")
    assert result.code == 1
    assert "warning: skipped imgs/02.png" in result.err
    assert error_lines(result.err) == ["error: 1 bad input skipped; the rest is done"]
    assert drawn[1] == ["00", "01", "03", "04", "05"]


def test_an_existing_preview_is_kept_without_force(vqtool, work):
    Path("preview.png").write_bytes(b"mine")
    result = vqtool("show", "imgs")
    assert result.code == 1
    assert "preview.png: exists; use --force" in error_lines(result.err)[0]
    assert Path("preview.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone"], "gone: no such file or folder"),
        (["empty"], "empty: no images here"),
        (["tok.h5", "tok.h5"], "one grid file at a time"),
        (["imgs", "tok.h5"], "tok.h5: "),
        (["tok.h5", "-t", "gone"], "gone: cannot be read"),
        (["imgs", "-o", "gone/preview.png"], "the folder gone does not exist"),
        (["imgs", "-o", "/dev/full"], "/dev/full: cannot be written: No space left on device"),
        (["imgs", "--size", "big"], "size 'big'"),
    ],
)
def test_bad_inputs_and_outputs_are_named(vqtool, work, arguments, message):
    (work / "empty").mkdir()
    result = vqtool("show", *arguments)
    assert result.code == 1
    assert message in error_lines(result.err)[0]
    assert len(error_lines(result.err)) == 1
    assert not Path("preview.png").exists()


def test_a_truncated_grid_file_and_a_wrong_tokenizer_are_refused(vqtool, work, other_tokenizer_path):
    result = vqtool("show", "tok.h5", "-t", other_tokenizer_path)
    assert result.code == 1
    assert "is not the tokenizer" in error_lines(result.err)[0]
    Path("cut.h5").write_bytes(Path("tok.h5").read_bytes()[:-10])
    result = vqtool("show", "cut.h5")
    assert result.code == 1
    assert error_lines(result.err)[0].startswith("error: cut.h5: truncated")
    assert not Path("preview.png").exists()


def test_words_that_cannot_be_read_are_told_and_leave_the_pictures(vqtool, work, drawn):
    (work / "imgs" / "metadata.jsonl").write_text("{")
    result = vqtool("show", "imgs")
    assert result.code == 0
    assert "warning: no captions and labels are taken: imgs/metadata.jsonl, line 1: not JSON" in result.err
    assert drawn[1] == [f"{i:02d}" for i in range(6)]


def test_a_table_that_is_named_gives_captions_for_the_preview(vqtool, work, drawn):
    (work / "words.csv").write_text("file,poem\n" + "".join(f"{i:02d}.png,line {i}\n" for i in range(6)))
    result = vqtool("show", "imgs", "--captions", "words.csv:poem")
    assert "6 pictures: captions for 6, no labels" in result.err
    assert drawn[1] == [f"line {i}" for i in range(6)]
    result = vqtool("show", "imgs", "--captions", "words.csv", "--force")
    assert error_lines(result.err) == [
        "error: --captions words.csv: no captions in its columns file, poem; name one: words.csv:COLUMN"
    ]


def test_images_are_chosen_by_patterns_and_grids_are_not(vqtool, work, drawn):
    assert vqtool("show", "imgs", "--include", "*0[1-3]*", "--exclude", "02.png").code == 0
    assert drawn[1] == ["01", "03"]
    assert error_lines(vqtool("show", "tok.h5", "--include", "*", "--force").err) == [
        "error: --include is for images, but tok.h5 holds token grids"
    ]
