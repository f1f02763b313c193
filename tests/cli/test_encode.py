"""`vqtool encode`: grids of images; every bad input is named, and good ones are not lost with it."""

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from support.commands import error_lines, shell, start, write_pictures

import vqtool as vqtool_package
from vqtool.errors import VqtoolWarning
from vqtool.grids import open_grids, read_grids
from vqtool.grids.resume import Journal
from vqtool.images import find_images, read_batches, to_float
from vqtool.images.pixels import find_fit
from vqtool.tokenizers import load_tokenizer


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty current folder with `imgs/`: 5 pictures of 16x16."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "imgs", 5)
    return tmp_path


@pytest.fixture
def encode(vqtool, work, tokenizer_path):
    """Run `vqtool encode --size 16` with the tiny tokenizer."""

    def run(*arguments, size="16", tokenizer=tokenizer_path):
        return vqtool("encode", *arguments, "--size", size, "-t", tokenizer)

    return run


def entries(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_grids_hold_the_tokens_of_the_images_with_their_ids(encode, work, tokenizer_path):
    result = encode("imgs")
    assert (result.code, result.data) == (0, b"")
    assert "5 images at 16x16 -> grids of 2x2 tokens" in result.err
    assert "wrote 5 grids to tok.h5" in result.err
    header, batch = read_grids("tok.h5")
    tokenizer = load_tokenizer(tokenizer_path)
    (images,) = (found.images for found in read_batches(find_images(["imgs"]), (16, 16), 8))
    assert np.array_equal(batch.tokens, tokenizer.encode(to_float(images)).numpy())
    assert batch.ids == ["00", "01", "02", "03", "04"]
    assert (batch.labels, batch.captions) == (None, None)
    assert batch.tokens.dtype == np.uint8
    assert (header.codebook_size, header.grid_size, header.image_size) == (16, (2, 2), (16, 16))
    assert (header.tokenizer_fingerprint, header.tokenizer_location) == (tokenizer.fingerprint, str(tokenizer_path))
    assert header.history[-1]["command"].startswith("vqtool encode imgs --size 16")
    assert header.history[-1]["inputs"] == {"tokenizer": tokenizer.fingerprint}
    assert entries(".") == ["imgs", "tok.h5"]


def test_labels_and_captions_go_with_the_grids(encode, work):
    for label in ("cats", "dogs"):
        write_pictures(work / "classes" / label, 2)
    (work / "classes" / "cats" / "01.txt").write_text("a cat")
    assert encode("classes").code == 0
    _, batch = read_grids("tok.h5")
    assert batch.ids == ["cats/00", "cats/01", "dogs/00", "dogs/01"]
    assert batch.labels == ["cats", "cats", "dogs", "dogs"]
    assert batch.captions == ["", "a cat", "", ""]


def test_a_glob_of_a_captioned_folder_is_taken_as_the_folder_is(encode, work):
    (work / "imgs" / "metadata.csv").write_text("file_name,text\n" + "".join(f"0{i}.png,pic {i}\n" for i in range(4)))
    (work / "imgs" / "captions").mkdir()
    (work / "imgs" / "captions" / "04.txt").write_text("pic 4")
    (work / "imgs" / "README.md").write_text("about")
    result = encode(*sorted(Path("imgs").iterdir()))
    assert result.code == 0, result.err
    assert result.err.splitlines()[-1] == "5 pictures: captions for 5, no labels"
    assert read_grids("tok.h5")[1].captions == [f"pic {i}" for i in range(5)]


def test_a_column_of_another_length_is_not_called_by_the_name_of_a_flag(encode, work):
    with h5py.File("x.h5", "w") as file:
        file["images"], file["labels"] = np.zeros((3, 16, 16), np.uint8), ["a", "b"]
    assert error_lines(encode("x.h5").err) == ["error: x.h5: 'labels' has shape (2,); expected (3,)"]
    np.savez("x.npz", images=np.zeros((3, 16, 16), np.uint8), captions=np.array(["a", "b"]))
    assert error_lines(encode("x.npz").err) == ["error: x.npz: 'captions' has shape (2,); expected (3,)"]


def test_links_in_a_tar_are_named_and_counted_in_the_last_line_and_in_info(vqtool, encode, work):
    assert shell("ln -s 00.png imgs/link.png && tar cf x.tar -C imgs . && rm imgs/link.png", work).code == 0
    result = encode("x.tar")
    assert result.code == 1
    assert "warning: skipped x.tar: link.png: is left out: a symbolic link to 00.png" in result.err
    assert "5 pictures: no captions, no labels; 1 file skipped (names above)" in result.err.splitlines()
    assert "words         no captions, no labels; 1 file skipped" in vqtool("info", "tok.h5").out


def test_tokens_do_not_depend_on_the_batch_size(encode):
    for size in (1, 2, 64):
        assert encode("imgs", "-b", size, "-o", f"{size}.h5").code == 0
    one = read_grids("1.h5")[1]
    for size in (2, 64):
        assert np.array_equal(read_grids(f"{size}.h5")[1].tokens, one.tokens)


def test_grids_need_not_be_square(encode):
    assert encode("imgs", size="24x40").code == 0
    header, batch = read_grids("tok.h5")
    assert (header.image_size, header.grid_size, batch.tokens.shape) == ((24, 40), (3, 5), (5, 3, 5))


def test_stdout_gets_a_stream_and_nothing_else(encode, work):
    result = encode("imgs", "-b", "2", "-o", "-")
    assert result.code == 0
    Path("stream").write_bytes(result.data)
    with open_grids("stream") as reader:
        assert not reader.ordinary
        assert [len(batch) for batch in reader.batches()] == [2, 2, 1]
    assert entries(".") == ["imgs", "stream"]


def test_a_redirection_gets_one_ordinary_file(work, tokenizer_path):
    assert shell("$vqtool encode imgs --size 16 -t $t -o - > out.h5", work, t=tokenizer_path).code == 0
    with h5py.File("out.h5") as file:
        assert file["tokens"].shape == (5, 2, 2)
    with open_grids("out.h5") as reader:
        assert reader.ordinary


def test_a_corrupt_file_among_good_ones_is_named_skipped_and_counted(encode, work):
    (work / "imgs" / "01.png").write_bytes(b"this is no image")
    (work / "imgs" / "03.png").write_bytes((work / "imgs" / "03.png").read_bytes()[:60])
    result = encode("imgs", "-b", "2")
    assert result.code == 1
    warnings = [line for line in result.err.splitlines() if line.startswith("warning: skipped ")]
    assert ["01.png" in warnings[0], "03.png" in warnings[1], len(warnings)] == [True, True, 2]
    assert error_lines(result.err) == ["error: 2 bad inputs skipped; the rest is done"]
    assert read_grids("tok.h5")[1].ids == ["00", "02", "04"]


def test_strict_stops_at_the_first_bad_file_and_keeps_what_is_done(encode, work):
    picture = (work / "imgs" / "03.png").read_bytes()
    (work / "imgs" / "03.png").write_bytes(b"this is no image")
    result = encode("imgs", "--strict", "-b", "2")
    assert result.code == 1
    assert len(error_lines(result.err)) == 1
    assert "imgs/03.png" in error_lines(result.err)[0]
    assert entries(".") == ["imgs", "tok.partial.h5"]
    (work / "imgs" / "03.png").write_bytes(picture)
    assert encode("imgs", "--strict", "--resume").code == 0
    assert encode("imgs", "-o", "whole.h5").code == 0
    assert digest_of("tok.h5") == digest_of("whole.h5")
    assert entries(".") == ["imgs", "tok.h5", "whole.h5"]


def digest_of(path):
    with open_grids(path) as reader:
        return reader.digest


def test_images_of_which_none_can_be_read_leave_no_file(encode, work):
    for path in (work / "imgs").iterdir():
        path.write_bytes(b"")
    result = encode("imgs")
    assert result.code == 1
    assert error_lines(result.err) == ["error: none of the 5 images could be read"]
    assert entries(".") == ["imgs"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("empty", "empty: no images here"),
        ("gone", "gone: no such file or folder"),
        ("words.txt", "words.txt: no images here, but words"),
        ("photo", "none of the 1"),
    ],
)
def test_sources_without_images_are_named(encode, work, source, message):
    (work / "empty").mkdir()
    for name in ("words.txt", "photo"):
        (work / name).write_text("words")
    result = encode(source)
    assert (result.code, result.data) == (1, b"")
    assert message in error_lines(result.err)[0]
    assert not Path("tok.h5").exists()


def test_an_existing_output_is_kept_without_force(encode):
    Path("tok.h5").write_bytes(b"old")
    result = encode("imgs")
    assert result.code == 1
    assert error_lines(result.err) == ["error: tok.h5: exists; use --force to overwrite it or write elsewhere"]
    assert Path("tok.h5").read_bytes() == b"old"
    assert encode("imgs", "--force").code == 0
    assert len(read_grids("tok.h5")[1]) == 5


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("gone/tok.h5", "the folder gone does not exist"),
        ("imgs", "imgs: is a folder"),
        ("imgs/00.png/tok.h5", "does not exist"),
        ("/proc/tok.h5", "/proc/tok.h5: cannot be written"),
        ("/dev/full", "No space left on device"),
    ],
)
def test_outputs_that_cannot_be_written_are_named(encode, work, output, message):
    result = encode("imgs", "-o", output)
    assert result.code == 1
    assert message in error_lines(result.err)[0]
    assert len(error_lines(result.err)) == 1
    assert len(entries("imgs")) == 5


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_named(encode, work):
    (work / "locked").mkdir(mode=0o500)
    result = encode("imgs", "-o", "locked/tok.h5")
    assert result.code == 1
    assert "locked/tok.h5: cannot be written: Permission denied" in error_lines(result.err)[0]


def test_a_tokenizer_that_is_missing_or_none_is_named(encode, work):
    result = encode("imgs", tokenizer="gone.safetensors")
    assert (result.code, error_lines(result.err)) == (
        1, ["error: gone.safetensors: cannot be read: No such file or directory"],
    )  # fmt: skip
    result = encode("imgs", tokenizer="imgs/00.png")
    assert result.code == 1
    (line,) = error_lines(result.err)
    assert line.startswith("error: imgs/00.png: not a safetensors file")
    assert entries(".") == ["imgs"]


@pytest.mark.parametrize(
    ("size", "message"),
    [("20", "both sides must be multiples of 8, e.g. 16x16"), ("large", "size 'large'"), ("0", "size '0'")],
)
def test_sizes_that_do_not_fit_are_refused_with_what_does(encode, size, message):
    result = encode("imgs", size=size)
    assert result.code == 1
    assert message in error_lines(result.err)[0]
    assert entries(".") == ["imgs"]


def test_an_unknown_device_is_refused(encode):
    result = encode("imgs", "--device", "abacus")
    assert result.code == 1
    assert "--device abacus: cannot be used here" in error_lines(result.err)[0]
    if not torch.cuda.is_available():
        assert "--device cuda" in error_lines(encode("imgs", "--device", "cuda").err)[0]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["--precision", "bf16"], "--precision bf16 is for GPUs"),
        (["--precision", "tf32"], "--precision tf32 is for GPUs"),
        (["--precision", "fp8"], "unknown precision 'fp8': known are auto, fp32, tf32, bf16"),
        (["--compile"], "--compile is for GPUs: on a CPU --runtime onnx gains more"),
    ],
)
def test_what_a_cpu_gains_nothing_from_is_refused(encode, asked, message):
    result = encode("imgs", "--device", "cpu", *asked)
    assert result.code == 1
    assert message in error_lines(result.err)[0]
    assert entries(".") == ["imgs"]


@pytest.mark.parametrize("device", ["mps", "mps:0"])
def test_apples_gpus_are_refused_before_any_work(encode, device):
    result = encode("imgs", "--device", device)
    assert result.code == 1
    assert f"--device {device}: Apple's GPUs have no float64" in error_lines(result.err)[0]
    assert entries(".") == ["imgs"]


@pytest.fixture
def many(tmp_path, monkeypatch):
    """A current folder with 300 pictures of 64x64 in imgs/, and one in the middle that is none."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "imgs", 300, size=(64, 64))
    (tmp_path / "imgs" / "100.png").write_bytes(b"this is no image")
    return tmp_path


def stop_when_begun(process, number):
    """Send a signal to a process once it has kept some grids."""
    deadline = time.monotonic() + 60
    while not Path("tok.partial.h5").exists() or Path("tok.partial.h5").stat().st_size < 5000:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    return process.communicate(timeout=60)[1].decode()


def test_ctrl_c_leaves_no_half_file_and_says_how_to_go_on(many, vqtool, tokenizer_path):
    arguments = ("encode", "imgs", "-t", tokenizer_path, "--size", 64, "-b", 1)
    process = start(*arguments, stderr=-1)
    err = stop_when_begun(process, signal.SIGINT)
    assert process.returncode == 130, err
    last = err.splitlines()[-1]
    assert re.fullmatch(r"interrupted: \d+ grids? (is|are) kept in tok.partial.h5; --resume goes on with them", last)
    assert entries(many) == ["imgs", "tok.partial.h5"]
    again = vqtool(*arguments)
    assert again.code == 1
    assert "tok.partial.h5: an earlier run is there: --resume goes on with it" in error_lines(again.err)[0]


def test_a_killed_run_goes_on_to_the_same_grids_and_names_what_is_bad_again(many, vqtool, tokenizer_path):
    arguments = ("encode", "imgs", "-t", tokenizer_path, "--size", 64)
    process = start(*arguments, "-b", 1, stderr=-1)
    stop_when_begun(process, signal.SIGKILL)
    kept = Path("tok.partial.h5").stat().st_size
    result = vqtool(*arguments, "--resume")
    assert result.code == 1
    assert error_lines(result.err) == ["error: 1 bad input skipped; the rest is done"]
    assert "wrote 299 grids to tok.h5" in result.err
    assert vqtool(*arguments, "-o", "whole.h5").code == 1
    assert digest_of("tok.h5") == digest_of("whole.h5")
    assert read_grids("tok.h5")[1].ids == read_grids("whole.h5")[1].ids
    assert entries(many) == ["imgs", "tok.h5", "whole.h5"]
    assert kept > 0


def leave_partial(encode):
    """tok.partial.h5 as a killed run leaves it: 3 of 5 grids."""
    assert encode("imgs").code == 0
    header, batch = read_grids("tok.h5")
    Path("tok.h5").unlink()
    with Journal(Path("tok.partial.h5"), header) as journal:
        journal.write(batch[:3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "other"}, "a run with other --tokenizer:"),
        ({"size": "24"}, "a run with images of 16x16, but now it is 24x24"),
        ({"more": "05"}, "a run with images, of which there are 5, but now it is 6"),
        ({"label": "01"}, "a run with other images:"),
    ],
)
def test_a_run_of_other_settings_or_images_is_not_gone_on_with(encode, work, other_tokenizer_path, change, message):
    leave_partial(encode)
    before = Path("tok.partial.h5").read_bytes()
    if "more" in change:
        (work / "imgs" / "05.png").write_bytes((work / "imgs" / "00.png").read_bytes())
    if "label" in change:
        (work / "imgs" / "01.txt").write_text("a caption")
    how = {"size": change["size"]} if "size" in change else {}
    how |= {"tokenizer": other_tokenizer_path} if "tokenizer" in change else {}
    result = encode("imgs", "--resume", **how)
    assert result.code == 1
    assert f"tok.partial.h5: {message}" in error_lines(result.err)[0]
    assert Path("tok.partial.h5").read_bytes() == before
    assert not Path("tok.h5").exists()


def test_a_picture_that_was_bad_and_is_not_any_more_is_no_part_of_the_same_run(encode, work):
    picture = (work / "imgs" / "01.png").read_bytes()
    (work / "imgs" / "01.png").write_bytes(b"this is no image")
    assert encode("imgs").code == 1
    header, batch = read_grids("tok.h5")
    Path("tok.h5").unlink()
    with Journal(Path("tok.partial.h5"), header) as journal:
        journal.write(batch[:2])
    (work / "imgs" / "01.png").write_bytes(picture)
    result = encode("imgs", "--resume")
    assert result.code == 1
    assert "imgs/01.png: was left out before and can be read now" in error_lines(result.err)[0]


def test_encoding_and_decoding_are_functions_too(work, tokenizer_path):
    told = []

    @contextlib.contextmanager
    def progress(description, total):
        told.append((description, total))
        yield told.append

    how = {"batch_size": 2, "progress": progress}
    assert vqtool_package.encode(["imgs"], "tok.h5", tokenizer_path, image_size=(16, 16), **how) == 5
    done = vqtool_package.decode("tok.h5", "back", **how)
    assert (done.num_images, done.warnings) == (5, ())
    assert told == [("encode", 5), 2, 2, 1, ("decode", 5), 2, 2, 1]
    assert entries("back") == [f"0{i}.png" for i in range(5)]


def write_classes(folder, *names):
    for number, name in enumerate(names):
        write_pictures(folder / name, 2, seed=number)


def test_it_ends_with_a_line_of_what_was_read_and_info_says_the_same(encode, vqtool, work):
    write_classes(work / "classes", "1", "2", "10")
    (work / "classes" / "1" / "00.txt").write_text("a cat")
    (work / "classes" / "10" / "01.png").write_bytes(b"no image")
    result = encode("classes")
    assert result.code == 1
    line = "captions for 1, labels for 5 in 3 classes; 1 file skipped"
    assert result.err.splitlines()[-2:] == [
        f"5 pictures: {line} (names above)",
        "error: 1 bad input skipped; the rest is done",
    ]
    assert f"  words         {line}" in vqtool("info", "tok.h5").out.splitlines()
    result = encode("imgs", "-o", "plain.h5")
    assert result.err.splitlines()[-1] == "5 pictures: no captions, no labels"
    assert "  words         no captions, no labels" in vqtool("info", "plain.h5").out.splitlines()


def test_ten_bad_files_are_named_at_the_most_and_all_of_them_beside_the_output(encode, work):
    for i in range(5, 17):
        (work / "imgs" / f"{i:02d}.png").write_bytes(b"no image")
    result = encode("imgs")
    assert result.code == 1
    named = [line for line in result.err.splitlines() if line.startswith("warning: skipped")]
    assert len(named) == 10
    assert "5 pictures: no captions, no labels; 12 files skipped (names in tok.h5.skipped.txt)" in result.err
    lines = Path("tok.h5.skipped.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == [f"imgs/{i:02d}.png" for i in range(5, 17)]
    result = encode("imgs", "-o", "-")
    assert "12 files skipped (the first 10 are named above)" in result.err
    for i in range(7, 17):
        (work / "imgs" / f"{i:02d}.png").unlink()
    assert "2 files skipped (names above)" in encode("imgs", "--force").err
    assert entries(".") == ["imgs", "tok.h5"]  # the list is not one of this run


def test_captions_that_grids_cannot_hold_are_refused_before_the_first_image(encode, work, monkeypatch):
    monkeypatch.setattr("vqtool.tokenizers.batches.read_batches", None)  # nothing is read
    (work / "imgs" / "03.txt").write_text("x" * 70_000)
    result = encode("imgs")
    assert result.code == 1
    (line,) = error_lines(result.err)
    assert line.startswith("error: imgs/03.png: the captions 'xxx")
    assert "70,000 characters, more than the 65,536 bytes" in line
    assert entries(".") == ["imgs"]


def test_several_captions_and_a_table_of_labels_go_with_the_grids(encode, work):
    rows = [f"{i:02d}.png,caption {i} {n}" for i in range(5) for n in range(2)]
    (work / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    (work / "labels.tsv").write_text("\n".join(["file\tkind", *(f"{i:02d}\tk{i % 2}" for i in range(5))]))
    result = encode("imgs", "--captions", "captions.csv", "--labels", "labels.tsv:kind")
    assert result.code == 0
    assert "5 pictures: captions for 5 (10 in all), labels for 5 in 2 classes" in result.err
    _, batch = read_grids("tok.h5")
    assert batch.captions == [f"caption {i} 0\x1ecaption {i} 1" for i in range(5)]
    assert batch.labels == ["k0", "k1", "k0", "k1", "k0"]


def test_what_decode_writes_to_a_pipe_is_encoded_scored_and_shown_under_the_same_ids(work, tokenizer_path):
    write_classes(work / "classes", "Big Cat", "dog")
    first = "$vqtool encode classes -t $t --size 16 -o tok.h5"
    for line in (
        f"{first} && $vqtool decode tok.h5 -o - | $vqtool encode - -t $t --size 16 -o again.h5",
        "$vqtool decode tok.h5 -o - | $vqtool eval - --ref classes --paired",
        "$vqtool decode tok.h5 -o back && $vqtool eval back --ref classes --paired",
        "$vqtool decode tok.h5 -o - | $vqtool show - -o preview.png",
    ):
        result = shell(line, work, t=tokenizer_path)
        assert result.code == 0, result.err
    old, new = (read_grids(name)[1] for name in ("tok.h5", "again.h5"))
    assert (new.ids, new.labels) == (old.ids, old.labels)
    assert old.ids == ["Big Cat/00", "Big Cat/01", "dog/00", "dog/01"]
    assert old.labels == ["Big Cat", "Big Cat", "dog", "dog"]


def test_a_split_is_encoded_alone_and_a_cut_tar_if_it_is_asked_for(encode, work):
    write_classes(work / "data" / "train", "a", "b")
    write_classes(work / "data" / "test", "a", "b")
    result = encode("data")
    assert "warning: data: test/, train/ are splits, not classes: all are taken; --split train takes one" in result.err
    result = encode("data", "--split", "test", "-o", "test.h5")
    assert "4 pictures: no captions, labels for 4 in 2 classes" in result.err
    assert read_grids("test.h5")[1].ids == ["test/a/00", "test/a/01", "test/b/00", "test/b/01"]
    assert encode("imgs", "-o", "imgs.h5").code == 0
    vqtool_package.save_images(vqtool_package.read_images("imgs").images, "x.tar")
    Path("x.tar").write_bytes(Path("x.tar").read_bytes()[:-1024])
    result = encode("x.tar", "-o", "cut.h5")
    assert "has no end marker" in error_lines(result.err)[0]
    assert error_lines(result.err)[0].endswith("--allow-truncated takes what is there")
    result = encode("x.tar", "-o", "cut.h5", "--allow-truncated")
    assert result.code == 0
    assert np.array_equal(read_grids("cut.h5")[1].tokens, read_grids("imgs.h5")[1].tokens)


@pytest.fixture
def wide(work):
    """A folder of 6 pictures, 4 of them twice as wide as high."""
    write_pictures(work / "wide", 2)
    for number in range(2, 6):
        Image.fromarray(np.full((16, 32, 3), 40 * number, np.uint8)).save(work / "wide" / f"{number:02}.png")
    return work


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_the_fit_stands_in_the_header_and_goes_into_the_tokens(encode, wide, tokenizer_path, fit):
    result = encode("wide", "--fit", fit)
    assert result.code == 0
    header, batch = read_grids("tok.h5")
    assert find_fit(header.preprocessing) == fit
    (images,) = (found.images for found in read_batches(find_images(["wide"]), (16, 16), 8, fit=fit))
    assert np.array_equal(batch.tokens, load_tokenizer(tokenizer_path).encode(to_float(images)).numpy())


def test_pictures_of_many_shapes_are_kept_whole_and_what_a_crop_would_cut_is_told(encode, wide):
    told = "warning: 4 of 6 pictures would lose more than a fifth to a crop, so white borders keep all whole"
    assert told in encode("wide").err
    assert find_fit(read_grids("tok.h5")[0].preprocessing) == "pad"
    result = encode("wide", "--fit", "crop", "-o", "crop.h5")
    assert "4 of 6 pictures lose more than a fifth to the crop, 50% at most: --fit pad keeps them whole" in result.err
    assert "--size 24x48, their median shape" in encode("wide", "--fit", "stretch", "-o", "x.h5", size="32").err
    assert encode("wide", "-o", "wide.h5", size="16x32").code == 0  # the two square ones alone are cut
    assert "fifth" not in encode("imgs", "-o", "square.h5").err


def test_a_run_goes_on_with_the_fit_that_it_began_with(encode, wide):
    picture = (wide / "wide" / "05.png").read_bytes()
    (wide / "wide" / "05.png").write_bytes(b"no picture")
    assert encode("wide", "--strict", "-b", "2", "--fit", "stretch").code == 1
    (wide / "wide" / "05.png").write_bytes(picture)
    (error,) = error_lines(encode("wide", "--strict", "--resume", "--fit", "crop").err)
    assert "`preprocessing`" in error or "--preprocessing" in error
    assert encode("wide", "--strict", "--resume", "--fit", "stretch").code == 0
    assert encode("wide", "--fit", "stretch", "-o", "whole.h5").code == 0
    assert digest_of("tok.h5") == digest_of("whole.h5")


def test_a_tokenizer_that_makes_no_white_borders_is_told(encode, wide):
    """The tiny tokenizer has random weights: no white comes out of it, and none of the built-in one's fails to."""
    told = "levels of 255 darker: tokenizer"
    assert told in encode("wide", "--fit", "pad", size="32").err
    assert told not in encode("wide", "--fit", "stretch", "-o", "x.h5", size="32").err
    result = encode("wide", "--fit", "pad", "-o", "y.h5", size="64", tokenizer="builtin")
    assert (result.code, told in result.err) == (0, False)


@pytest.mark.parametrize("num", [1, 3])
def test_folders_of_one_picture_and_of_the_same_picture_are_encoded(encode, work, num):
    for number in range(num):
        (work / "few").mkdir(exist_ok=True)
        Image.fromarray(np.full((10, 30, 3), 90, np.uint8)).save(work / "few" / f"{number}.png")
    result = encode("few")
    assert result.code == 0
    assert f"{num} of {num} pictures would lose" in result.err
    assert len(np.unique(read_grids("tok.h5")[1].tokens, axis=0)) == 1


def test_another_runtime_gives_the_same_tokens_and_stands_in_the_history(encode, work, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("XDG_CACHE_HOME", str(work))
    for runtime in ("torch", "onnx"):
        assert encode("imgs", "-o", f"{runtime}.h5", "--runtime", runtime).code == 0
    (first, tokens), (second, others) = read_grids("torch.h5"), read_grids("onnx.h5")
    assert np.array_equal(tokens.tokens, others.tokens)
    assert "runtime" not in first.history[-1]
    assert second.history[-1]["runtime"] == "onnx"


def test_resume_auto_of_a_complete_file_says_so_and_wrote_nothing(encode, work, tokenizer_path):
    (work / "imgs" / "02.png").write_bytes(b"no picture")
    assert "wrote 4 grids to x.h5" in encode("imgs", "-o", "x.h5").err
    before = os.stat("x.h5").st_mtime_ns
    again = encode("imgs", "-o", "x.h5", "--resume", "auto")
    assert again.code == 0
    assert "x.h5 is complete: nothing is left to do" in again.err
    assert "wrote" not in again.err
    assert os.stat("x.h5").st_mtime_ns == before
    with pytest.warns(VqtoolWarning, match="is complete"):
        assert vqtool_package.encode(["imgs"], "x.h5", tokenizer_path, image_size=(16, 16), resume="auto") == 4
