"""`vqtool head`: the first grids, as a file or a stream."""

from dataclasses import replace

import h5py
import pytest
from support.commands import error_lines, shell
from support.grids import HEADER, assert_same, make_batch, write_file, write_stream

from vqtool.errors import count_text
from vqtool.grids import open_grids, read_grids
from vqtool.tokenizers import load_tokenizer


def test_the_first_grids_are_those_of_the_input_with_one_more_step_of_history(tmp_path, vqtool):
    path = write_file(tmp_path / "tok.h5", make_batch(600))
    for num in (0, 1, 256, 300, 600, 1000):
        output = tmp_path / f"{num}.h5"
        result = vqtool("head", "-n", num, path, "-o", output)
        assert (result.code, result.data) == (0, b"")
        assert f"wrote {count_text(min(num, 600), 'grid')} of" in result.err
        header, found = read_grids(output)
        expected = make_batch(600)[:num]
        assert_same(found, expected if num else found)
        assert len(found) == len(expected)
        assert header.history[:-1] == HEADER.history
        with open_grids(path) as reader:
            assert header.history[-1]["inputs"] == {str(path): reader.digest}


def test_a_pipe_goes_in_and_out_and_ten_grids_are_the_default(tmp_path):
    write_stream(tmp_path / "s.h5", make_batch(4), make_batch(40, first=4))
    result = shell("cat s.h5 | $vqtool head | cat > first.h5", tmp_path)
    assert result.code == 0, result.err
    assert read_grids(tmp_path / "first.h5")[1].ids == make_batch(44).ids[:10]


def test_the_start_of_a_broken_stream_can_be_had(tmp_path, vqtool):
    write_stream(tmp_path / "s.h5", make_batch(8), finish=False)
    assert vqtool("head", "-n", 8, tmp_path / "s.h5", "-o", tmp_path / "a.h5").code == 0
    result = vqtool("head", "-n", 9, tmp_path / "s.h5", "-o", tmp_path / "b.h5")
    assert result.code == 1
    assert "the producer stopped early: 8 grids arrived" in result.err
    assert not (tmp_path / "b.h5").exists()


@pytest.mark.parametrize("line", ["head -n 2 tok.h5", "head - -n 2", "cat tok.h5", "show tok.h5 -n 2"])
def test_grids_that_were_changed_are_not_copied(tmp_path, vqtool, line, monkeypatch, tokenizer_path):
    monkeypatch.chdir(tmp_path)
    own = load_tokenizer(tokenizer_path)
    header = replace(HEADER, codebook_size=16, tokenizer_fingerprint=own.fingerprint, tokenizer_location=own.location)
    write_file(tmp_path / "tok.h5", make_batch(6, header=header), header=header)
    with h5py.File(tmp_path / "tok.h5", "r+") as file:
        file["label"][5] = "dog"
    output = "x.png" if "show" in line else "x.h5"
    result = vqtool(*line.split(), "-o", output, stdin="tok.h5")
    assert result.code == 1
    name = "standard input" if " - " in line else "tok.h5"
    assert error_lines(result.err)[0].startswith(f"error: {name}: damaged: its content does not match its digest")
    assert [path.name for path in tmp_path.iterdir()] == ["tok.h5"]


def test_an_existing_file_needs_force_and_may_be_the_input(tmp_path, vqtool):
    path = write_file(tmp_path / "tok.h5", make_batch(20))
    result = vqtool("head", path, "-o", path)
    assert result.code == 1
    assert "--force" in result.err
    assert vqtool("head", path, "-o", path, "--force").code == 0
    assert len(read_grids(path)[1]) == 10


def test_a_negative_number_is_a_usage_error(vqtool):
    assert vqtool("head", "-n", -1, "tok.h5").code == 2
