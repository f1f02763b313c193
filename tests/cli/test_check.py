"""`vqtool check`: every bad file is named, every good one passes, and the exit code tells."""

import json

import h5py
from support.commands import shell
from support.grids import make_batch, write_file, write_stream

from vqtool import artifacts


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)
    return path


def test_good_files_and_streams_are_ok(tmp_path, vqtool, tokenizer_path):
    write_stream(tmp_path / "s.h5", make_batch(5), make_batch(9))
    paths = [write_file(tmp_path / "a.h5", make_batch(300)), tmp_path / "s.h5", tokenizer_path]
    result = vqtool("check", *paths)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [f"ok {path}" for path in paths]
    assert shell("cat a.h5 s.h5 | $vqtool check -", tmp_path).out == "ok -\n"


def test_all_files_are_checked_and_each_bad_one_says_why(tmp_path, vqtool, tokenizer_path):
    good = write_file(tmp_path / "good.h5", make_batch(300))
    data = good.read_bytes()
    (tmp_path / "cut.h5").write_bytes(data[:-1])
    (tmp_path / "flipped.h5").write_bytes(data)
    flip(tmp_path / "flipped.h5", len(data) // 2)
    write_stream(tmp_path / "dead.h5", make_batch(8), finish=False)
    write_file(tmp_path / "range.h5", make_batch(8))
    with h5py.File(tmp_path / "range.h5", "r+") as file:
        file["tokens"][3, 0, 0] = 5000
    weights = tokenizer_path.read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(weights)
    flip(tmp_path / "weights.safetensors", len(weights) - 9)
    (tmp_path / "short.safetensors").write_bytes(weights[:-1])
    (tmp_path / "notes.txt").write_text("not a file of ours, at all")
    expected = {
        "cut.h5": f"truncated: {len(data) - 1} of {len(data)} bytes",
        "flipped.h5": "damaged",
        "dead.h5": "the producer stopped early: 8 grids arrived",
        "range.h5": "token 5000 at row 0, column 0 of grid 3 is not in [0, 1024)",
        "weights.safetensors": "damaged: its content has fingerprint",
        "short.safetensors": "truncated",
        "notes.txt": "token grids (HDF5) or an artifact (safetensors) were expected, found text",
        "missing.h5": "cannot be read: No such file",
        "good.h5": "",
    }
    paths = [tmp_path / name for name in expected]
    result = vqtool("check", *paths)
    assert result.code == 1
    lines = result.out.splitlines()
    assert len(lines) == len(expected)
    for path, line in zip(paths, lines, strict=True):
        why = expected[path.name]
        if path == good:
            assert line == f"ok {path}"
        else:
            assert line.startswith(f"bad {path}: {why}")
    found = json.loads(vqtool("check", "--json", *paths).out)
    assert [entry["ok"] for entry in found] == [False] * 8 + [True]
    assert found[-1]["num_grids"] == 300


def test_a_header_that_does_not_describe_its_tensors_is_bad_and_not_a_crash(tmp_path, vqtool, tokenizer_path):
    weights = tokenizer_path.read_bytes()
    path = tmp_path / "x.safetensors"
    for old, new in ((b'"dtype"', b'"dtypo"'), (b'"shape":[', b'"shape":{'), (b"data_offsets", b"data_0ffsets")):
        path.write_bytes(weights.replace(old, new))
        result = vqtool("check", path)
        assert result.code == 1, old
        assert result.out.startswith(f"bad {path}: ")
        assert result.err == ""


def test_weights_that_are_not_finite_are_bad(tmp_path, vqtool, tokenizer_path):
    header, tensors = artifacts.load(tokenizer_path)
    tensors["codebook"][1, 2] = float("nan")
    path = tmp_path / "x.safetensors"
    artifacts.save(path, kind=header.kind, config=header.config, tensors=tensors)
    result = vqtool("check", path)
    assert result.code == 1
    assert result.out == f"bad {path}: codebook holds numbers that are not finite: the weights are damaged\n"


def test_no_file_is_a_usage_error(vqtool):
    assert vqtool("check").code == 2
