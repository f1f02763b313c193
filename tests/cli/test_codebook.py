"""`vqtool codebook refit`: the same tokenizer with codes where one's own images are."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.commands import TINY, build_tokenizer, error_lines, write_pictures

from vqtool import artifacts
from vqtool.codebooks.rebuilt import with_codebook
from vqtool.grids import read_grids
from vqtool.tokenizers import Tokenizer, load_tokenizer, save_tokenizer


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
    assert re.search(r"fitting 16 codes to \d+ vectors of \d+ images: k-means\+\+, then k-means\n", result.err)
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
    result = refit("imgs", "-K", "40", "--seeding", "afk-mc2", "--chain-length", "50", "-o", "new")
    assert result.code == 0
    assert load_tokenizer("new").codebook.shape == (40, 4)
    assert artifacts.read_header("new").summary["after"]["usage"] == 1


def test_few_images_make_a_smaller_codebook_unless_a_size_is_given(vqtool, work):
    save_tokenizer("large.safetensors", Tokenizer(replace(TINY, codebook_size=121)))
    result = vqtool("codebook", "refit", "imgs", "--size", "16", "-t", "large.safetensors")
    assert result.code == 0
    assert "warning: 120 distinct vectors make 120 codes, not 121: more images make more" in result.err
    assert load_tokenizer("tokenizer.safetensors").codebook_size == 120


def test_vectors_beyond_the_memory_lie_in_a_file_and_are_the_same(refit, work):
    """In a file k-means goes by mini-batches; with a seed the vectors, and so the codes, are those of memory."""
    common = ["imgs", "-K", "8", "--seeding", "afk-mc2", "--seed", "3"]
    assert refit(*common, "--k-means", "mini-batch", "-o", "memory").code == 0
    result = refit(*common, "--memory", "0", "-o", "file")
    assert result.code == 0
    folder = re.search(r"GiB of vectors go to (\S+/vqtool-\w+), then k-means in mini-batches", result.err)
    assert not Path(folder[1]).exists()
    one, other = load_tokenizer("memory"), load_tokenizer("file")
    assert torch.equal(one.codebook, other.codebook)
    assert artifacts.read_header("file").summary == artifacts.read_header("memory").summary


def test_the_images_of_a_grid_file_are_found_by_their_names(refit, vqtool, work):
    """The other 20 pictures leave no trace: the result is that of a folder of the ten alone."""
    write_pictures(work / "ten", 10)
    assert vqtool("encode", "ten", "--size", "16", "-t", "old.safetensors", "-o", "ten.h5").code == 0
    line = ["-K", "8", "-o"]
    assert refit("ten", *line, "alone").code == 0
    result = vqtool("codebook", "refit", "imgs", "--grids", "ten.h5", *line, "named")
    assert result.code == 0
    assert "vectors from 10 images with tokenizer" in result.err
    assert "--size 16x16" in result.err
    assert torch.equal(load_tokenizer("named").codebook, load_tokenizer("alone").codebook)


def test_images_that_are_not_those_of_the_grids_are_refused(refit, vqtool, work):
    assert vqtool("encode", "imgs", "--size", "16", "-t", "old.safetensors").code == 0
    write_pictures(work / "some", 29)
    write_pictures(work / "others", 30, seed=1)
    for folder, message in (
        ("some", "1 of the 30 images that tok.h5 names are not among the 29 given, '29' for one"),
        ("others", "they are other pictures"),
    ):
        result = vqtool("codebook", "refit", folder, "--grids", "tok.h5")
        assert result.code == 1
        assert message in error_lines(result.err)[0]
    result = refit("imgs", "--grids", "tok.h5")
    assert "--size is that of the images that --grids was made of" in error_lines(result.err)[0]
    assert vqtool("head", "-n", "0", "tok.h5", "-o", "none.h5").code == 0
    result = vqtool("codebook", "refit", "imgs", "--grids", "none.h5")
    assert "none.h5: no token grids in it" in error_lines(result.err)[0]
    save_tokenizer("new.safetensors", build_tokenizer(seed=1))
    result = vqtool("codebook", "refit", "imgs", "--grids", "tok.h5", "-t", "new.safetensors")
    assert "is not the tokenizer" in error_lines(result.err)[0]
    assert not Path("tokenizer.safetensors").exists()


def test_a_bad_image_among_those_of_the_grids_is_skipped(vqtool, work):
    assert vqtool("encode", "imgs", "--size", "16", "-t", "old.safetensors").code == 0
    (work / "imgs" / "02.png").write_bytes(b"no image")
    result = vqtool("codebook", "refit", "imgs", "--grids", "tok.h5")
    assert result.code == 1
    assert error_lines(result.err) == ["error: 1 bad input skipped; the rest is done"]
    assert load_tokenizer("tokenizer.safetensors").codebook_size == 16


def test_a_tokenizer_without_nearest_codes_is_refused(refit, work):
    tokenizer = Tokenizer(TINY, lookup="projection")
    save_tokenizer("old.safetensors", tokenizer, force=True)
    result = refit("imgs")
    assert result.code == 1
    assert "looks tokens up by projection, not by the nearest code" in error_lines(result.err)[0]


def test_one_code_is_no_codebook(refit, work):
    result = refit("imgs", "-K", "1")
    assert result.code == 1
    assert "--codebook-size 1: must be 2 or more" in result.err
    tokenizer = load_tokenizer("old.safetensors")
    save_tokenizer("old.safetensors", with_codebook(tokenizer, tokenizer.codebook[:1]), force=True)
    result = refit("imgs")
    assert result.code == 1
    assert "a codebook of 1 says nothing" in error_lines(result.err)[0]


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
    summary = artifacts.read_header("tokenizer.safetensors").summary
    assert f"{summary['num_images']} pictures; {summary['num_skipped']} file skipped (names above)" in result.err
    assert f" vectors from {summary['num_images']} images " in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["imgs", "--seeding", "random"], "--seeding random: unknown; known are k-means++, afk-mc2"),
        (["imgs", "--chain-length", "9"], "--chain-length is for --seeding afk-mc2, not for k-means++"),
        (["imgs", "--k-means", "soft"], "--k-means soft: unknown; known are lloyd, mini-batch"),
        (["imgs", "--k-means", "lloyd", "--memory", "0"], "--k-means lloyd needs the vectors in memory"),
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
    assert "not finite: the weights are damaged" in error_lines(result.err)[0]
