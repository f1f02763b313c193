"""`vqtool codebook finetune`: a decoder that learns what the codes mean, and what it says of old grids."""

import shlex

import pytest
import torch
from support.commands import build_tokenizer, error_lines, write_pictures

from vqtool import artifacts
from vqtool.grids import read_grids
from vqtool.tokenizers import Tokenizer, load_tokenizer, save_tokenizer

SETTINGS = ("--size", "16", "-b", "4", "--steps", "12", "--learning-rate", "0.003")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """An empty current folder with `imgs/`, 8 pictures of 16x16, and a tokenizer `old`."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "imgs", 8)
    save_tokenizer(tmp_path / "old.safetensors", build_tokenizer(), history=[{"step": "made"}])
    return tmp_path


@pytest.fixture
def finetune(vqtool, work):
    """Run `vqtool codebook finetune old.safetensors imgs`."""

    def run(*arguments):
        return vqtool("codebook", "finetune", "old.safetensors", "imgs", *SETTINGS, *arguments)

    return run


def test_decoder_and_codes_are_new_the_encoder_is_not_and_the_file_says_where_it_came_from(finetune):
    result = finetune("-o", "new.safetensors")
    assert (result.code, result.data) == (0, b"")
    old, new = load_tokenizer("old.safetensors"), load_tokenizer("new.safetensors")
    for name, tensor in old.state_dict().items():
        assert torch.equal(new.state_dict()[name], tensor) is name.startswith("encoder")
    header = artifacts.verify("new.safetensors")
    assert header.parents == {"tokenizer": old.fingerprint}
    assert [record["step"] for record in header.history] == ["made", "codebook finetune"]


@pytest.mark.parametrize("flags", [[], ["--keep-codes"]])
def test_the_commands_that_it_names_bring_old_grids_along(finetune, vqtool, flags):
    """Encoding again gives the new grids; with the codes kept, converting gives the very same."""
    assert vqtool("encode", "imgs", "--size", "16", "-t", "old.safetensors").code == 0
    lines = finetune("-o", "new.safetensors", *flags).err.splitlines()
    again, convert = (next(line for line in lines if f"vqtool {word}" in line) for word in ("encode", "codebook"))
    old = read_grids("tok.h5")[1].tokens
    for line in (convert, again):
        command = shlex.split(line[line.index("vqtool ") :])[1:]
        assert vqtool(*command).code == 0
    header, converted = read_grids("new.h5")
    assert header.tokenizer_fingerprint == load_tokenizer("new.safetensors").fingerprint
    encoded = read_grids("tok.h5")[1].tokens
    if flags:
        assert (encoded == old).all()
        assert (converted.tokens == old).all()


def test_an_interrupted_run_is_resumed_with_the_same_tokenizer_alone(finetune, work):
    assert finetune("-o", "new.safetensors").code == 0
    first = artifacts.read_header("new.safetensors").fingerprint
    assert finetune("-o", "new.safetensors", "--resume").code == 0
    assert artifacts.read_header("new.safetensors").fingerprint == first
    save_tokenizer("old.safetensors", build_tokenizer(seed=1), force=True)
    result = finetune("-o", "new.safetensors", "--resume")
    assert result.code == 1
    assert "not the tokenizer that the run began with" in error_lines(result.err)[0]


def test_half_precision_stays_what_it_was(finetune):
    tokenizer = build_tokenizer()
    tokenizer.half_precision = True
    save_tokenizer("old.safetensors", tokenizer, force=True)
    assert finetune("-o", "new.safetensors").code == 0
    new, old = load_tokenizer("new.safetensors"), load_tokenizer("old.safetensors")
    assert new.half_precision
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    assert torch.equal(new.latents(images), old.latents(images))


def test_codes_that_cannot_learn_and_files_that_are_none_are_named(finetune, vqtool):
    projected = Tokenizer(build_tokenizer().config, lookup="projection")
    save_tokenizer("old.safetensors", projected, force=True)
    result = finetune()
    assert result.code == 1
    assert "old.safetensors has a lookup by projection: its codes cannot learn" in error_lines(result.err)[0]
    assert finetune("--keep-codes").code == 0
    result = finetune("--keep-codes")
    assert "finetuned.safetensors: exists; use --force" in error_lines(result.err)[0]
    result = finetune("-o", "other", "--adversarial-max", "1")
    assert "--adversarial-max goes with --adversarial" in error_lines(result.err)[0]
    result = vqtool("codebook", "finetune", "gone", "imgs", "-o", "other")
    assert result.code == 1
    assert "gone" in error_lines(result.err)[0]
