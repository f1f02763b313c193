"""`vqtool codebook refit`: the same tokenizer with codes where one's own images are."""

import shlex
from pathlib import Path

import pytest
import torch
from conftest import build_tokenizer, error_lines, write_pictures

from vqtool import artifacts
from vqtool.grids import read_grids
from vqtool.tokenizers import load_tokenizer, save_tokenizer


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty current folder with `imgs/` (30 pictures of 16x16) and a tokenizer `old` that uses few of its codes."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "imgs", 30)
    tokenizer = build_tokenizer()
    tokenizer.codebook[4:] = 100 + torch.arange(12.0)[:, None]
    save_tokenizer(tmp_path / "old.safetensors", tokenizer, history=[{"step": "made"}])
    return tmp_path


@pytest.fixture
def refit(vqtool, work):
    """Run `vqtool codebook refit --size 16` on the tokenizer `old`."""

    def run(*arguments):
        return vqtool("codebook", "refit", *arguments, "--size", "16", "-t", "old.safetensors")

    return run


def test_every_code_is_in_use_after_and_the_file_says_where_it_came_from(refit, work):
    result = refit("imgs")
    assert (result.code, result.data) == (0, b"")
    old, new = load_tokenizer("old.safetensors"), load_tokenizer("tokenizer.safetensors")
    header = artifacts.verify("tokenizer.safetensors")
    assert header.parents == {"tokenizer": old.fingerprint}
    assert [record["step"] for record in header.history] == ["made", "codebook refit"]
    before, after = header.summary["before"], header.summary["after"]
    assert before["usage"] <= 4 / 16
    assert after["usage"] == 1
    assert after["perplexity"] > before["perplexity"]
    assert after["error"] < before["error"]
    assert "before: usage" in result.err
    assert "after: usage 100.0%" in result.err
    for name, tensor in old.state_dict().items():
        assert torch.equal(new.state_dict()[name], tensor) is (name != "codebook")


def test_the_command_that_it_names_encodes_with_the_new_codebook(refit, vqtool, work):
    assert vqtool("encode", "imgs", "--size", "16", "-t", "old.safetensors").code == 0
    hint = next(line for line in refit("imgs").err.splitlines() if "encode again" in line)
    command = shlex.split(hint[hint.index("vqtool encode") :])
    assert vqtool(*command[1:]).code == 0
    header, batch = read_grids("tok.h5")
    assert header.tokenizer_fingerprint == load_tokenizer("tokenizer.safetensors").fingerprint
    assert len(set(batch.tokens.flatten().tolist())) == 16


def test_the_same_seed_gives_the_same_tokenizer_and_another_another(refit, work):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert refit("imgs", "-o", name, "--seed", seed, "--vectors", "60").code == 0
    one, same, other = (artifacts.read_header(name).fingerprint for name in "abc")
    assert one == same != other


def test_the_codebook_can_change_its_size_and_its_seeding(refit, work):
    result = refit("imgs", "-K", "40", "--seeding", "afk-mc2", "-o", "new")
    assert result.code == 0
    assert load_tokenizer("new").codebook.shape == (40, 4)
    assert artifacts.read_header("new").summary["after"]["usage"] == 1


def test_a_half_precision_tokenizer_stays_one(refit, work):
    tokenizer = load_tokenizer("old.safetensors")
    tokenizer.half_precision = True
    save_tokenizer("old.safetensors", tokenizer, force=True)
    assert refit("imgs").code == 0
    assert load_tokenizer("tokenizer.safetensors").half_precision


def test_a_bad_image_is_named_skipped_and_counted_or_stops_it(refit, work):
    (work / "imgs" / "02.png").write_bytes(b"no image")
    result = refit("imgs", "--strict")
    assert result.code == 1
    assert "imgs/02.png" in error_lines(result.err)[0]
    assert not Path("tokenizer.safetensors").exists()
    result = refit("imgs")
    assert result.code == 1
    assert "warning: skipped imgs/02.png" in result.err
    assert error_lines(result.err) == ["error: 1 bad input skipped; the rest is done"]
    assert load_tokenizer("tokenizer.safetensors").codebook_size == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imgs", "--seeding", "random"], "--seeding random: unknown; known are k-means++, afk-mc2"),
        (["imgs", "-K", "121"], "120 distinct vectors cannot make 121 codes: give more images, more --vectors"),
        (["imgs", "-o", "old.safetensors"], "old.safetensors: exists; use --force"),
        (["imgs", "-o", "-"], "does not go to standard output"),
        (["imgs", "-o", "gone/new"], "the folder gone does not exist"),
        (["imgs", "-o", "/proc/new"], "/proc/new: cannot be written"),
        (["empty"], "empty: no images here"),
        (["gone"], "gone: no such file or folder"),
        (["bad"], "none of the 2 images could be read"),
    ],
)
def test_bad_inputs_and_outputs_are_named(refit, work, arguments, message):
    (work / "empty").mkdir()
    for path in write_pictures(work / "bad", 2).iterdir():
        path.write_bytes(b"")
    old = Path("old.safetensors").read_bytes()
    result = refit(*arguments)
    assert (result.code, result.data) == (1, b"")
    assert message in error_lines(result.err)[-1]
    assert not Path("tokenizer.safetensors").exists()
    assert Path("old.safetensors").read_bytes() == old


def test_a_missing_tokenizer_and_a_size_that_does_not_fit_are_refused(vqtool, work):
    result = vqtool("codebook", "refit", "imgs", "-t", "gone")
    assert (result.code, error_lines(result.err)) == (1, ["error: gone: cannot be read: No such file or directory"])
    result = vqtool("codebook", "refit", "imgs", "-t", "old.safetensors", "--size", "20")
    assert result.code == 1
    assert "multiples of 8" in error_lines(result.err)[0]


def test_an_encoder_that_makes_no_numbers_is_named(refit, work):
    tokenizer = load_tokenizer("old.safetensors")
    next(tokenizer.encoder.parameters()).data.fill_(float("nan"))
    save_tokenizer("old.safetensors", tokenizer, force=True)
    result = refit("imgs")
    assert result.code == 1
    assert "not finite: the tokenizer is damaged" in error_lines(result.err)[0]
