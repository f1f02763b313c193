"""Tokenizers run by ONNX Runtime give the tokens and pictures of PyTorch."""

import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from support.commands import build_tokenizer

from vqtool.tokenizers import Tokenizer, magvit2, maskgit, titok, vqgan, vqvae
from vqtool.tokenizers._onnx import use_runtime

CONFIGS = {
    "vqvae": vqvae.VqVaeConfig(codebook_size=16, channels=(16, 16), encoder_blocks=(1, 1), decoder_blocks=(1, 1)),
    "maskgit": maskgit.MaskgitConfig(codebook_size=16, code_dim=8, stem_channels=32, channels=(32, 32), num_blocks=1),
    "magvit2": magvit2.Magvit2Config(codebook_size=16, code_dim=4, stem_channels=32, channels=(32, 32), num_blocks=1),
    "titok": titok.TitokConfig(16, 4, 9, (16, 24), 64, 1, 8, 64, 1, 8),
    "attention": vqgan.VqganConfig(
        codebook_size=16, code_dim=8, latent_channels=8, stem_channels=8, channels=(8, 16), num_groups=4,
        encoder_attention=(False, True), decoder_attention=(False, True),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def random_tokenizer(config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = Tokenizer(config).eval().requires_grad_(False)
        for tensor in (*tokenizer.parameters(), tokenizer.codebook):
            tensor.add_(0.05 * torch.randn_like(tensor))
    return tokenizer


def check(tokenizer, size):
    run, runtime = use_runtime(tokenizer, "onnx")
    assert runtime == "onnx"
    for num in (3, 1):
        images = torch.rand(num, 3, *size, generator=torch.Generator().manual_seed(num)) * 2 - 1
        tokens = tokenizer.encode(images)
        torch.testing.assert_close(run.latents(images), tokenizer.latents(images), rtol=1e-4, atol=1e-4)
        assert torch.equal(run.encode(images), tokens)
        torch.testing.assert_close(run.decode(tokens), tokenizer.decode(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_and_pictures_are_those_of_pytorch(name):
    check(random_tokenizer(CONFIGS[name]), (16, 24))


def test_the_tiny_tokenizer_s_lookup_and_what_it_came_from_stay():
    tokenizer = build_tokenizer()
    tokenizer.fingerprint, tokenizer.location = "f", "here"
    check(tokenizer, (16, 32))
    run, _ = use_runtime(tokenizer, "onnx", ["decoder"])
    assert (run.fingerprint, run.location) == ("f", "here")
    assert run.encoder is tokenizer.encoder
    assert run.decoder is not tokenizer.decoder
    assert use_runtime(tokenizer, "auto") == (tokenizer, "torch")
