"""`vqtool decode`: images of grids; what arrived of a broken stream is kept, and nothing leaves the output folder."""

import importlib.util
import io
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from support.commands import error_lines, shell

from vqtool.grids import GridBatch, GridHeader, GridWriter, read_grids
from vqtool.images import find_images, read_image, to_uint8
from vqtool.tokenizers import load_tokenizer

NUM = 10


@pytest.fixture
def header(tokenizer_path):
    return GridHeader(16, (2, 3), (16, 24), load_tokenizer(tokenizer_path).fingerprint, str(tokenizer_path), "none")


def write(path, header, *, num=NUM, **columns):
    """A file of `num` random grids."""
    tokens = np.random.default_rng(0).integers(0, 16, (num, *header.grid_size)).astype(np.uint8)
    with GridWriter(path, header) as writer:
        writer.write(GridBatch(tokens, **{"ids": [f"id{i}" for i in range(num)], **columns}))
    return tokens


@pytest.fixture
def work(tmp_path, monkeypatch, header):
    """An empty current folder with `tok.h5`."""
    monkeypatch.chdir(tmp_path)
    write("tok.h5", header)
    return tmp_path


@pytest.fixture
def stream(work, vqtool):
    """`stream`: the same grids as a stream of chunks of 2 grids; returns where each chunk ends, in bytes."""
    path = work / "stream"
    header, batch = read_grids("tok.h5")
    buffer, ends = io.BytesIO(), []

    class Pipe:
        def __init__(self):
            self.buffer = buffer

        def isatty(self):
            return False

        def flush(self):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", Pipe())
        with GridWriter("-", header) as writer:
            for start in range(0, NUM, 2):
                writer.write(batch[start : start + 2])
                ends.append(buffer.tell())
    path.write_bytes(buffer.getvalue())
    return ends


def pictures(folder):
    return {item.id: read_image(item, None) for item in find_images([folder])}


def entries(folder="."):
    return sorted(path.name for path in Path(folder).iterdir())


def test_each_grid_becomes_the_picture_that_the_tokenizer_makes_of_it(vqtool, work, header, tokenizer_path):
    result = vqtool("decode", "tok.h5")
    assert (result.code, result.data) == (0, b"")
    assert "wrote 10 images to decoded" in result.err
    import torch

    tokens = torch.from_numpy(read_grids("tok.h5")[1].tokens.astype(np.int64))
    expected = to_uint8(load_tokenizer(tokenizer_path).decode(tokens))
    found = pictures("decoded")
    assert list(found) == [f"id{i}" for i in range(NUM)]
    assert expected.shape == (NUM, 3, 16, 24)
    for i, image in enumerate(expected):
        assert np.array_equal(found[f"id{i}"], image)
    assert entries() == ["decoded", "tok.h5"]


def test_pictures_differ_by_rounding_at_most_when_the_batch_size_does(vqtool, work):
    assert vqtool("decode", "tok.h5", "-o", "whole").code == 0
    assert vqtool("decode", "tok.h5", "-o", "single", "-b", 1).code == 0
    for one, other in zip(pictures("whole").values(), pictures("single").values(), strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_labels_and_captions_lie_beside_the_pictures(vqtool, work, header):
    write("words.h5", header, num=2, labels=["cat", ""], captions=["", "a dog"])
    assert vqtool("decode", "words.h5", "-o", "out").code == 0
    items = find_images(["out"])
    assert [(item.label, item.caption) for item in items] == [("cat", None), (None, "a dog")]


def test_a_tar_goes_to_stdout_or_to_a_file_and_a_png_is_one_sheet(vqtool, work):
    result = vqtool("decode", "tok.h5", "-o", "-")
    assert result.code == 0
    assert "wrote 10 images to stdout" in result.err
    with tarfile.open(fileobj=io.BytesIO(result.data)) as tar:
        assert tar.getnames() == [f"id{i}.png" for i in range(NUM)]
    assert vqtool("decode", "tok.h5", "-o", "out.tar").code == 0
    assert Path("out.tar").read_bytes() == result.data
    assert vqtool("decode", "tok.h5", "-o", "sheet.png").code == 0
    with Image.open("sheet.png") as sheet:
        assert sheet.width * sheet.height > NUM * 16 * 24
    assert entries() == ["out.tar", "sheet.png", "tok.h5"]


def test_joined_files_and_streams_are_read_from_stdin(vqtool, work, stream):
    Path("both").write_bytes(Path("tok.h5").read_bytes() + Path("stream").read_bytes())
    assert vqtool("decode", stdin="both").code == 0
    found = pictures("decoded")
    assert len(found) == 2 * NUM
    assert np.array_equal(found["id3"], found["id3-2"])


def test_hostile_ids_cannot_leave_the_folder(vqtool, work, header):
    ids = ["../up", "/tmp/vqtool-absolute", "a/../../../b", "..", "-rf"]
    write("hostile.h5", header, num=5, ids=ids)
    assert vqtool("decode", "hostile.h5", "-o", "a/b/out").code == 0
    assert len([name for name in entries("a/b/out") if name != "metadata.jsonl"]) == 5
    assert entries() == ["a", "hostile.h5", "tok.h5"]
    assert entries("a/b") == ["out"]
    assert not Path("/tmp/vqtool-absolute.png").exists()


def test_what_arrived_of_a_cut_stream_is_kept(vqtool, work, stream):
    """Cut at the ends and at random places: all grids of whole chunks are there, and the exit code is 1."""
    data = Path("stream").read_bytes()
    places = np.random.default_rng(0).integers(1, len(data), 5).tolist()
    for number, cut in enumerate([1, *places, stream[0], stream[0] + 5, len(data) - 1]):
        Path("cut").write_bytes(data[:cut])
        result = vqtool("decode", "-", "-o", f"out{number}", stdin="cut")
        arrived = 2 * sum(end <= cut for end in stream)
        assert result.code == 1
        assert len(error_lines(result.err)) == 1
        assert (f"{arrived} grids arrived" if cut >= stream[0] else "standard input") in error_lines(result.err)[0]
        assert len(pictures(f"out{number}")) == arrived if arrived else not Path(f"out{number}").exists()


def test_a_cut_stream_leaves_no_tar_and_no_sheet_that_look_whole(vqtool, work, stream):
    Path("cut").write_bytes(Path("stream").read_bytes()[: stream[2]])
    for output in ("out.tar", "sheet.png"):
        assert vqtool("decode", "cut", "-o", output).code == 1
        assert not Path(output).exists()
    result = vqtool("decode", "cut", "-o", "-")
    assert result.code == 1
    assert result.data.endswith(bytes(1024)) is False
    with tarfile.open(fileobj=io.BytesIO(result.data)) as tar:
        assert len(tar.getnames()) == 6


def test_a_producer_that_dies_is_an_error_of_the_consumer(work, stream):
    result = shell(f"head -c {stream[1] + 100} stream | $vqtool decode -o out", work)
    assert result.code == 1
    assert "4 grids arrived" in error_lines(result.err)[0]
    assert len(pictures("out")) == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty: token grids were expected, but not a single byte came"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "token grids (HDF5) were expected, found a PNG image"),
        (b"hello", "found text that begins with 'hello'"),
    ],
)
def test_a_foreign_stream_says_what_it_is(vqtool, work, content, message):
    Path("foreign").write_bytes(content)
    for source in ({"stdin": "foreign"}, {}):
        result = vqtool("decode", *([] if source else ["foreign"]), **source)
        assert result.code == 1
        assert message in error_lines(result.err)[0]
    assert entries() == ["foreign", "tok.h5"]


def test_hdf5_files_of_others_and_tokenizers_say_what_they_are(vqtool, work, tokenizer_path):
    with h5py.File("other.h5", "w") as file:
        file["images"] = np.zeros((1, 8, 8, 3), np.uint8)
    assert "not one of token grids made by vqtool (it holds images)" in vqtool("decode", "other.h5").err
    assert "a safetensors file (a tokenizer or a prior?)" in vqtool("decode", tokenizer_path).err


def test_a_truncated_file_is_an_error_and_leaves_nothing(vqtool, work):
    data = Path("tok.h5").read_bytes()
    for size in (7, 100, len(data) // 2, len(data) - 1):
        Path("cut.h5").write_bytes(data[:size])
        result = vqtool("decode", "cut.h5")
        assert result.code == 1
        assert error_lines(result.err)[0].startswith("error: cut.h5: truncated")
    assert entries() == ["cut.h5", "tok.h5"]


def test_tokens_out_of_range_are_named(vqtool, work):
    with h5py.File("tok.h5", "r+") as file:
        file["tokens"][4, 1, 2] = 16
    result = vqtool("decode", "tok.h5")
    assert result.code == 1
    assert "token 16 at row 1, column 2 of grid 4 is not in [0, 16)" in error_lines(result.err)[0]


@pytest.mark.parametrize(("size", "grid"), [(32, (2, 3)), (16, (4, 6))])
def test_a_codebook_or_grid_size_that_does_not_fit_the_tokenizer_is_refused(vqtool, work, header, size, grid):
    from dataclasses import replace

    write("odd.h5", replace(header, codebook_size=size, grid_size=grid))
    result = vqtool("decode", "odd.h5")
    assert result.code == 1
    assert f"grids of {grid[0]}x{grid[1]} tokens below {size} for images of 16x24" in error_lines(result.err)[0]
    assert "16 codes and factor 8" in error_lines(result.err)[0]


def test_another_tokenizer_is_refused_naming_both(vqtool, work, header, other_tokenizer_path):
    result = vqtool("decode", "tok.h5", "-t", other_tokenizer_path)
    assert result.code == 1
    other = load_tokenizer(other_tokenizer_path).fingerprint
    assert f"tokenizer {other} is not the tokenizer {header.tokenizer_fingerprint}" in error_lines(result.err)[0]
    assert entries() == ["tok.h5"]


def test_a_tokenizer_that_is_gone_is_named_and_can_be_given(vqtool, work, header, tokenizer_path):
    from dataclasses import replace

    write("gone.h5", replace(header, tokenizer_location="gone/t.safetensors"))
    result = vqtool("decode", "gone.h5")
    assert result.code == 1
    assert f"tokenizer {header.tokenizer_fingerprint}" in error_lines(result.err)[0]
    assert "gone/t.safetensors" in error_lines(result.err)[0]
    assert vqtool("decode", "gone.h5", "-t", tokenizer_path).code == 0


@pytest.mark.parametrize("output", ["decoded", "out.tar", "sheet.png"])
def test_an_existing_output_is_kept_without_force(vqtool, work, output):
    if output == "decoded":
        Path(output).mkdir()
        (Path(output) / "id3.png").write_bytes(b"mine")
        (Path(output) / "z.png").write_bytes(b"mine")
    else:
        Path(output).write_bytes(b"mine")
    result = vqtool("decode", "tok.h5", "-o", output)
    assert result.code == 1
    assert "use --force" in error_lines(result.err)[0]
    kept = [path for path in work.rglob("*") if path.is_file() and path.name != "tok.h5"]
    assert {path.read_bytes() for path in kept} == {b"mine"}
    forced = vqtool("decode", "tok.h5", "-o", output, "--force")
    assert forced.code == 0
    if output == "decoded":
        assert "warning: still in decoded as before: 1 file" in forced.err
        assert (Path(output) / "z.png").read_bytes() == b"mine"
        assert len(entries(output)) == NUM + 1


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("/proc/out", "/proc/out"),
        ("tok.h5/out", "tok.h5"),
        ("tok.h5", "tok.h5: exists and is not a folder"),
        ("gone/sheet.png", "the folder gone does not exist"),
        ("/dev/full", "/dev/full: cannot be written: No space left on device"),
    ],
)
def test_outputs_that_cannot_be_written_are_named(vqtool, work, output, message):
    result = vqtool("decode", "tok.h5", "-o", output)
    assert result.code == 1
    assert len(error_lines(result.err)) == 1
    assert message in error_lines(result.err)[0]
    assert "Traceback" not in result.err
    assert entries() == ["tok.h5"]


def test_a_closed_pipe_and_a_full_disk_end_it_cleanly(work):
    line = "$vqtool decode tok.h5 -o - | head -c 1000 | wc -c; echo ${PIPESTATUS[@]}"
    result = shell(line, work)
    assert result.out.split()[0] == "1000"
    assert result.out.split()[1] in ("141", "0")  # all of it may fit into the pipe before it is closed
    assert error_lines(result.err) == []
    result = shell("$vqtool decode tok.h5 -o - > /dev/full", work)
    assert result.code == 1
    assert error_lines(result.err) == ["error: standard output: cannot be written: No space left on device"]
    assert "Exception ignored" not in result.err


def test_ctrl_c_keeps_whole_pictures_and_leaves_no_half_tar(vqtool, work, monkeypatch):
    from vqtool.tokenizers import batches

    decode = batches.decode_batch

    def interrupted(batch, model, **how):
        if batch.ids[0] == "id6":
            raise KeyboardInterrupt
        return decode(batch, model, **how)

    monkeypatch.setattr(batches, "decode_batch", interrupted)
    for output, kept in {
        "out": "out keeps what was written so far",
        "out.tar": "out.tar was not written",
        "out.png": "out.png was not written",
    }.items():
        result = vqtool("decode", "tok.h5", "-b", 2, "-o", output)
        assert (result.code, result.err.splitlines()[-1]) == (130, f"interrupted: {kept}")
    assert entries() == ["out", "tok.h5"]
    assert len(pictures("out")) == 6


def test_a_terminal_as_input_is_refused(vqtool, work, monkeypatch):
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    result = vqtool("decode")
    assert result.code == 1
    assert error_lines(result.err) == ["error: standard input is a terminal: name a file, or pipe one in"]
    assert entries() == ["tok.h5"]


def test_a_missing_file_is_named(vqtool, work):
    result = vqtool("decode", "gone.h5")
    assert (result.code, error_lines(result.err)) == (
        1, ["error: gone.h5: cannot be read: No such file or directory"],
    )  # fmt: skip


def test_what_a_killed_run_left_in_the_folder_is_removed_by_the_next(work, vqtool):
    folder = work / "out"
    folder.mkdir()
    (folder / ".00.png.0123abcd.tmp").write_bytes(b"half")
    (folder / ".hidden").write_bytes(b"of the user")
    assert vqtool("decode", "tok.h5", "-o", folder, "--force").code == 0
    assert [path.name for path in folder.glob(".*")] == [".hidden"]


def test_another_runtime_makes_the_same_pictures_and_is_named_where_it_is_missing(vqtool, work, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("XDG_CACHE_HOME", str(work))
    assert vqtool("decode", "tok.h5", "-o", "torch").code == 0
    assert vqtool("decode", "tok.h5", "-o", "onnx", "--runtime", "onnx").code == 0
    for one, other in zip(pictures("torch").values(), pictures("onnx").values(), strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1  # rounding, at most
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = vqtool("decode", "tok.h5", "-o", "x", "--runtime", "onnx")
    assert result.code == 1
    assert "error: --runtime onnx: onnx and onnxruntime not installed: pip install " in result.err
