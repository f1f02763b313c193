"""Masked grids: written and read where these are taken, refused with a remedy where not."""

from dataclasses import replace

import h5py
import numpy as np
import pytest

from vqtool.errors import FormatError, MismatchError
from vqtool.grids import GridBatch, GridHeader, GridWriter, concatenate, join_batches, open_grids

WHOLE = GridHeader(
    codebook_size=256,  # K itself needs a second byte
    grid_size=(2, 3),
    image_size=(16, 24),
    tokenizer_fingerprint="0123456789abcdef",
    tokenizer_location="builtin",
    preprocessing="centre crop",
)
HOLED = replace(WHOLE, masked=True)
BATCH = GridBatch(np.array([[[0, 256, 255], [256, 256, 7]], [[1, 2, 3], [4, 5, 6]]]), ["a", "b"], None, ["x", ""])


def write(path, header=HOLED, batch=BATCH):
    with GridWriter(path, header) as writer:
        writer.write(batch)
    return path


def read(path):
    with open_grids(path, masked=True) as reader:
        return reader.header, join_batches(reader.header, list(reader.batches()))


def test_holes_come_back_from_a_file_and_from_a_stream(tmp_path):
    path = write(tmp_path / "x.h5")
    data = path.read_bytes()
    (tmp_path / "twice").write_bytes(data + data)
    for name, times in (("x.h5", 1), ("twice", 2)):
        header, batch = read(tmp_path / name)
        assert header == HOLED
        assert np.array_equal(batch.tokens, np.concatenate([BATCH.tokens] * times))
        assert (batch.ids, batch.captions) == (["a", "b"] * times, ["x", ""] * times)


def test_readers_that_take_no_holes_name_the_command_that_fills_them(tmp_path):
    path = write(tmp_path / "x.h5")
    with (
        pytest.raises(FormatError, match=r"x\.h5: masked grids: .* `vqtool complete .*x\.h5`"),
        open_grids(path),
    ):
        pass


def test_only_partial_grids_may_hold_the_unknown_token(tmp_path):
    with pytest.raises(ValueError, match=r"not in \[0, 256\)"):
        write(tmp_path / "x.h5", WHOLE)
    with pytest.raises(ValueError, match=r"not in \[0, 257\)"):
        write(tmp_path / "x.h5", HOLED, GridBatch(BATCH.tokens + 1, BATCH.ids))
    with h5py.File(write(tmp_path / "y.h5"), "a") as file:
        del file.attrs["holes"]
    with pytest.raises(FormatError, match="token 256 at row 0, column 1 of grid 0"):
        read(tmp_path / "y.h5")


def test_an_older_reader_is_told_to_be_upgraded_and_the_digest_knows_of_the_holes(tmp_path):
    tokens = GridBatch(BATCH.tokens % 256, BATCH.ids)
    digests = {}
    for name, header, version in (("x", HOLED, 2), ("y", WHOLE, 1)):
        with h5py.File(write(tmp_path / name, header, tokens)) as file:
            assert file.attrs["format_version"] == version
            assert ("holes" in file.attrs) == header.masked
            digests[name] = bytes(file.attrs["digest"])
    assert digests["x"] != digests["y"]


def test_grids_with_and_without_holes_are_not_joined(tmp_path):
    first, second = write(tmp_path / "x.h5"), write(tmp_path / "y.h5", WHOLE, GridBatch(BATCH.tokens % 256, ["a", "b"]))
    with concatenate([str(first), str(first)]) as joined:
        assert sum(len(batch) for batch in joined.batches()) == 4
        assert joined.header.masked
    with (
        pytest.raises(MismatchError, match=r"has masked cells none, but .* has masked cells in it"),
        concatenate([str(first), str(second)]),
    ):
        pass


def test_head_cat_info_and_check_take_partial_grids_and_the_others_refuse_them(vqtool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("x.h5")
    assert vqtool("head", "-n", "1", "x.h5", "-o", "first.h5").code == 0
    assert vqtool("cat", "first.h5", "x.h5", "-o", "all.h5").code == 0
    header, batch = read("all.h5")
    assert header.masked
    assert np.array_equal(batch.tokens, BATCH.tokens[[0, 0, 1]])
    assert "masked cell" in vqtool("info", "all.h5").out
    assert vqtool("check", "all.h5").out == "ok all.h5\n"
    for words in ("decode", "show", "train-prior", "eval", "codebook usage"):
        result = vqtool(*words.split(), "all.h5")
        assert (result.code, "`vqtool complete all.h5`" in result.err) == (1, True), words
