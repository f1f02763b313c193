"""Files of version 0.2, made by golden/v0.2/make.py: they open, hold what they held and give the same numbers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vqtool import artifacts, load_prior, load_tokenizer
from vqtool.grids import open_grids

OLD = Path(__file__).parent / "golden" / "v0.2"
EXPECTED = json.loads((OLD / "expected.json").read_text())


def test_an_old_tokenizer_encodes_as_it_did():
    tokenizer = load_tokenizer(OLD / "tokenizer.safetensors")
    images = torch.linspace(-1, 1, 2 * 3 * 16 * 24).view(2, 3, 16, 24).sin()
    assert tokenizer.encode(images).tolist() == EXPECTED["tokens"]
    assert artifacts.verify(OLD / "tokenizer.safetensors").summary == {"psnr": 20.0}


def test_an_old_prior_says_what_it_said():
    prior = load_prior(OLD / "prior.safetensors")
    x_t = torch.tensor([[[0, 6, 2], [6, 4, 6]]])
    found = prior.log_x0(x_t, torch.tensor([5]), prior.conditioner.encode(["a red cat"]))
    torch.testing.assert_close(found, torch.tensor(EXPECTED["log_x0"]), rtol=0, atol=1e-5)
    assert prior.grid_spec.grid_size == (2, 3)
    assert prior.history == ({"step": "train-prior"},)
    prior.check_tokenizer(load_tokenizer(OLD / "tokenizer.safetensors").fingerprint, "tokenizer.safetensors")


@pytest.mark.parametrize("name", ["tok.h5", "masked.h5"])
def test_old_grids_hold_what_they_held(name):
    grids = np.array(EXPECTED["grids"])
    expected = np.where(grids == 2, 6, grids) if name == "masked.h5" else grids
    with open_grids(OLD / name, masked=True) as file:
        (batch,) = file.batches()
        assert np.array_equal(batch.tokens, expected)
        assert batch.ids == ["a", "b", "c", "d"]
        assert file.header.masked == (name == "masked.h5")
        if name == "tok.h5":
            assert batch.labels == ["red", "blue", "red", "blue"]
            assert batch.captions == ["a red cat", "the dog", "a red dog", "the cat"]


def test_commands_open_old_files(tmp_path, vqtool):
    for name in ("tokenizer.safetensors", "prior.safetensors", "tok.h5", "masked.h5"):
        assert vqtool("check", OLD / name).code == 0
        assert vqtool("info", OLD / name).code == 0
    drawn = tmp_path / "drawn.h5"
    assert vqtool("sample", OLD / "prior.safetensors", "-n", 2, "--caption", "the dog", "-o", drawn).code == 0
    result = vqtool("decode", drawn, "-t", OLD / "tokenizer.safetensors", "-o", tmp_path / "pictures")
    assert result.code == 0, result.err
