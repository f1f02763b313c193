"""scripts/finish_prior.py: 16-bit weights within their rounding, the built-in tokenizer, scores in the header."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.exact import random_prior

from vqtool import artifacts
from vqtool.priors import load_prior
from vqtool.samplers import sample
from vqtool.tokenizers import load_tokenizer

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
finish_prior = importlib.import_module("finish_prior")


@pytest.fixture
def trained(tmp_path):
    prior = random_prior(kind="caption")
    fingerprint = load_tokenizer("builtin").fingerprint
    spec = replace(prior.grid_spec, tokenizer_fingerprint=fingerprint, tokenizer_location="/elsewhere/t.safetensors")
    replace(prior, grid_spec=spec, summary={"steps": 5}).save(tmp_path / "prior.safetensors")
    return tmp_path / "prior.safetensors"


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["finish_prior.py", *map(str, arguments)])
    return finish_prior.main()


def test_a_finished_prior_is_half_as_large_and_the_same_within_its_rounding(trained, tmp_path, monkeypatch):
    (tmp_path / "scores.json").write_text(json.dumps({"summary": {"score": 0.5}}), encoding="utf-8")
    output = tmp_path / "small.safetensors"
    assert run(monkeypatch, trained, "--scores", tmp_path / "scores.json", "--output", output) == 0
    assert output.stat().st_size < 0.6 * trained.stat().st_size
    before, after = load_prior(trained), load_prior(output)
    assert after.grid_spec.tokenizer_location == "builtin"
    assert after.summary == {"steps": 5, "score": 0.5}
    assert after.conditioner.encode(["a bee"]).tolist() == before.conditioner.encode(["a bee"]).tolist()
    assert torch.equal(after.kernel.alpha_bar, before.kernel.alpha_bar)
    weights = dict(before.denoiser.named_parameters())
    for name, own in after.denoiser.named_parameters():
        assert own.dtype == torch.float32
        assert torch.equal(own, weights[name].half().float())


def test_settings_of_sampling_are_used_where_nobody_asks_for_others(trained, tmp_path, monkeypatch, capsys):
    output, settings = tmp_path / "small.safetensors", {"sampler": "purity", "steps": 2, "temperature": 0.8}
    assert run(monkeypatch, trained, "--sampling", json.dumps(settings), "--output", output) == 0
    prior = load_prior(output)
    assert dict(prior.sampling) == settings
    asked = sample(prior, 3, sampler="purity", steps=2, temperature=0.8)
    assert torch.equal(sample(prior, 3), asked)
    assert not torch.equal(sample(prior, 3, temperature=5.0), asked)
    output.unlink()
    assert run(monkeypatch, trained, "--sampling", '{"temperature": 0}', "--output", output) == 1
    assert "`temperature` 0" in capsys.readouterr().err
    assert not output.exists()


def test_a_prior_of_another_tokenizer_is_refused(tmp_path, monkeypatch, capsys):
    random_prior().save(tmp_path / "prior.safetensors")
    assert run(monkeypatch, tmp_path / "prior.safetensors", "--output", tmp_path / "out.safetensors") == 1
    assert "the built-in one is" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()


def test_a_prior_too_large_for_the_package_is_refused(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(finish_prior, "MAX_BYTES", 1000)
    assert run(monkeypatch, trained, "--output", tmp_path / "out.safetensors") == 1
    assert "more than 1000" in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
    assert artifacts.read_header(trained).kind == "prior"
