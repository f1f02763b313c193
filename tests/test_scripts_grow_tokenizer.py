"""scripts/grow_tokenizer.py: a larger network that does what the small one does."""

import importlib
import sys
from pathlib import Path

import torch

from vqtool.tokenizers import Tokenizer, load_tokenizer, save_tokenizer
from vqtool.tokenizers.vqvae import VqVaeConfig

sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))
grow_tokenizer = importlib.import_module("grow_tokenizer")
SMALL = VqVaeConfig(codebook_size=12, code_dim=4, channels=(16, 32), encoder_blocks=(1, 1), decoder_blocks=(1, 1))


def grow(tmp_path, monkeypatch, *sizes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_tokenizer(tmp_path / "small.safetensors", Tokenizer(SMALL), history=[], force=True)
    small, large = str(tmp_path / "small.safetensors"), str(tmp_path / "large.safetensors")
    monkeypatch.setattr(sys, "argv", ["grow_tokenizer.py", small, *sizes, "-o", large])
    return grow_tokenizer.main(), small, large


def test_a_grown_tokenizer_has_the_same_tokens_and_pictures(tmp_path, monkeypatch):
    sizes = ("--channels", "32", "48", "--encoder-blocks", "2", "1", "--decoder-blocks", "1", "3")
    code, small, large = grow(tmp_path, monkeypatch, *sizes)
    assert code == 0
    before, after = load_tokenizer(small), load_tokenizer(large)
    shape = after.config.channels, after.config.encoder_blocks, after.config.decoder_blocks
    assert shape == ((32, 48), (2, 1), (1, 3))
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        tokens = before.encode(images)
        assert torch.equal(after.encode(images), tokens)
        torch.testing.assert_close(after.decode(tokens), before.decode(tokens), rtol=0, atol=1e-5)
    assert after.history[-1]["inputs"] == {"tokenizer": before.fingerprint}


def test_a_tokenizer_does_not_shrink(tmp_path, monkeypatch, capsys):
    sizes = ("--channels", "16", "16", "--encoder-blocks", "1", "1", "--decoder-blocks", "1", "1")
    assert grow(tmp_path, monkeypatch, *sizes)[0] == 1
    assert "--channels (16, 16): give 2 numbers, at least (16, 32)" in capsys.readouterr().err
