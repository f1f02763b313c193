"""`vqtool export`: what other projects read comes out, and what they cannot hold is refused in one line."""

import errno
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from support.commands import build_tokenizer, error_lines, sharpened
from support.exact import random_prior

from vqtool.interop import Options, load, read_source
from vqtool.priors import load_prior
from vqtool.tokenizers import load_tokenizer, save_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(
    ("source", "name", "written"),
    [("taming-vqgan/last.ckpt", "taming", "model.ckpt"), ("df-vqmodel/vqvae", "diffusers", "")],
)
def test_an_imported_vqgan_is_exported_imported_again_and_the_same(tmp_path, vqtool, source, name, written):
    first, folder, again = tmp_path / "first.safetensors", tmp_path / "out", tmp_path / "again.safetensors"
    for arguments in (
        ("import", GOLDEN / source, "-o", first),
        ("export", first, "--format", name, "-o", folder),
        ("import", folder / written, "-o", again),
    ):
        result = vqtool(*arguments)
        assert result.code == 0, result.err
    one, other = load_tokenizer(first), load_tokenizer(again)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    grid = one.encode(images)
    assert torch.equal(other.encode(images), grid)
    assert torch.allclose(other.decode(grid), one.decode(grid), atol=1e-5)
    assert name != "taming" or "params" in yaml.safe_load((folder / "model.yaml").read_text())["model"]


def test_a_whole_pipeline_goes_in_and_out(tmp_path, vqtool):
    prior = tmp_path / "prior.safetensors"
    assert vqtool("import", GOLDEN / "df-pipeline", "-o", prior).code == 0
    result = vqtool("export", prior, "-o", tmp_path / "pipeline")
    assert result.code == 0, result.err
    again = load(read_source(tmp_path / "pipeline"), Options())
    expected = load(read_source(GOLDEN / "df-pipeline"), Options())
    weights = again.prior.denoiser.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in expected.prior.denoiser.state_dict().items())


def test_a_pipeline_goes_out_with_another_decoder_of_its_codes(tmp_path, vqtool):
    """What comes in again is known by its own weights."""
    prior, sharp = tmp_path / "prior.safetensors", tmp_path / "sharp.safetensors"
    assert vqtool("import", GOLDEN / "df-pipeline", "-o", prior).code == 0
    made = sharpened(tmp_path / "prior.tokenizer.safetensors", sharp)
    assert made.identity != made.fingerprint
    assert vqtool("export", prior, "-t", sharp, "-o", tmp_path / "pipeline").code == 0
    again = tmp_path / "again.safetensors"
    assert vqtool("import", tmp_path / "pipeline", "-o", again).code == 0
    found = load_tokenizer(tmp_path / "again.tokenizer.safetensors")
    assert found.identity == found.fingerprint == load_prior(again).grid_spec.tokenizer_fingerprint
    assert all(torch.equal(found.state_dict()[name], value) for name, value in made.state_dict().items())


def test_what_a_format_cannot_hold_and_folders_in_use_are_refused(tmp_path, vqtool):
    path, folder = tmp_path / "tokenizer.safetensors", tmp_path / "out"
    save_tokenizer(path, build_tokenizer())
    result = vqtool("export", path, "-o", folder)
    assert result.code == 1
    assert "only tokenizers of VQGANs can be exported" in result.err
    assert not folder.exists()
    assert "cannot be exported to 'nothing'" in vqtool("export", path, "--format", "nothing").err
    folder.mkdir()
    (folder / "mine.txt").write_text("kept")
    assert "not an empty folder; --force" in vqtool("export", path, "-o", folder).err


@pytest.mark.parametrize("format_name", ["diffusers", "taming"])
def test_a_tokenizer_has_no_tokenizer(tmp_path, vqtool, format_name):
    path = tmp_path / "tokenizer.safetensors"
    save_tokenizer(path, build_tokenizer())
    result = vqtool("export", path, "--format", format_name, "-o", tmp_path / "out", "-t", path)
    assert result.code == 1
    assert "--tokenizer goes with a prior" in result.err


@pytest.mark.parametrize(("name", "source"), [("taming", "taming-vqgan/last.ckpt"), ("diffusers", "df-vqmodel/vqvae")])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, vqtool, monkeypatch, name, source):
    tokenizer = tmp_path / "t.safetensors"
    assert vqtool("import", GOLDEN / source, "-o", tokenizer).code == 0
    (tmp_path / "out").mkdir()
    write = Path.write_bytes

    def full(path, data):
        write(path, bytes(data)[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    result = vqtool("export", tokenizer, "--format", name, "-o", tmp_path / "out")
    assert result.code == 1
    assert error_lines(result.err) == [f"error: {tmp_path / 'out'}: cannot be written: No space left on device"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["out", "t.safetensors"]


def run_graph(path, **inputs):
    """What ONNX Runtime makes of tensors."""
    session = pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    return [torch.from_numpy(each) for each in session.run(None, {name: t.numpy() for name, t in inputs.items()})]


def test_a_prior_becomes_networks_in_onnx_and_a_readme_of_what_goes_in(tmp_path, vqtool):
    pytest.importorskip("onnx")
    prior = random_prior(kind="caption")
    prior.save(tmp_path / "prior.safetensors")
    result = vqtool("export", tmp_path / "prior.safetensors", "--format", "onnx", "-o", tmp_path / "out")
    assert result.code == 0, result.err
    condition = prior.conditioner.encode(["an ant", "a bee"])
    x_t, t, cells = torch.full((2, 4, 6), 11), torch.tensor([20, 3]), torch.tensor([[0, 5, 7], [23, 1, 2]])
    parts = run_graph(tmp_path / "out" / "condition.onnx", condition=condition)
    encoded = dict(zip(("embedding", "keys_values", "mask"), parts, strict=True))
    (logits,) = run_graph(tmp_path / "out" / "denoiser.onnx", x_t=x_t, t=t, cells=cells, **encoded)
    torch.testing.assert_close(logits, prior.denoiser(x_t, t, condition, cells).detach(), rtol=1e-4, atol=1e-4)
    text = (tmp_path / "out" / "README.md").read_text()
    for name in (
        "x_t | (batch, height, width) int64",
        "cells | (batch, cells) int64",
        "condition | (batch, ",
        "output | ",
    ):
        assert name in text


def test_a_tokenizer_becomes_networks_in_onnx(tmp_path, vqtool, tokenizer_path):
    pytest.importorskip("onnx")
    result = vqtool("export", tokenizer_path, "--format", "onnx", "-o", tmp_path / "out")
    assert result.code == 0, result.err
    tokenizer = load_tokenizer(tokenizer_path)
    images = torch.rand(2, 3, 16, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (latents,) = run_graph(tmp_path / "out" / "encoder.onnx", images=images)
    torch.testing.assert_close(latents.permute(0, 2, 3, 1), tokenizer.latents(images).detach(), rtol=1e-4, atol=1e-4)
    codes = torch.from_numpy(np.load(tmp_path / "out" / "codebook.npy"))[tokenizer.encode(images)].permute(0, 3, 1, 2)
    (made,) = run_graph(tmp_path / "out" / "decoder.onnx", codes=codes.contiguous())
    torch.testing.assert_close(made, tokenizer.decode(tokenizer.encode(images)), rtol=1e-4, atol=1e-4)
    assert "images | (batch, 3, height, width) float32" in (tmp_path / "out" / "README.md").read_text()


def test_onnx_without_its_packages_or_with_a_tokenizer_is_refused_in_one_line(
    tmp_path, vqtool, tokenizer_path, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = vqtool("export", tokenizer_path, "--format", "onnx", "-o", tmp_path / "out")
    assert result.code == 1
    assert "error: --format onnx: onnx and onnxruntime not installed: pip install " in result.err
    result = vqtool("export", tokenizer_path, "--format", "onnx", "-t", tokenizer_path, "-o", tmp_path / "out")
    assert "error: --tokenizer is for the folder of a pipeline" in result.err
    assert not (tmp_path / "out").exists()


def test_the_built_in_artifacts_are_two(vqtool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = vqtool("export", "builtin", "--format", "onnx")
    assert result.code == 1
    (line,) = error_lines(result.err)
    assert "builtin names a prior and a tokenizer: name the file of one, " in line
    assert "prior.safetensors or " in line
