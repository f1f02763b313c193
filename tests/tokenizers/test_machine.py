"""How images pass a tokenizer's networks: in which precision, compiled, and fewer at once where memory runs out."""

import numpy as np
import pytest
import torch
from support.commands import build_tokenizer, write_pictures
from support.pretended_gpu import PretendedGpu

from vqtool.errors import VqtoolError, VqtoolWarning
from vqtool.grids import open_grids
from vqtool.images import find_images, read_batches
from vqtool.tokenizers import _machine
from vqtool.tokenizers.batches import decode, decode_batch, encode_batch
from vqtool.tokenizers.encoding import encode


def small(part, most):
    """A tokenizer whose part has memory for so many images, and how many each call had."""
    tokenizer, sizes = build_tokenizer(), []
    network = tokenizer.get_submodule(part)
    forward = network.forward

    def watch(rows):
        sizes.append(len(rows))
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return forward(rows)

    network.forward = watch
    return tokenizer, sizes


@pytest.fixture
def batch(tmp_path):
    (found,) = read_batches(find_images([write_pictures(tmp_path / "imgs", 7, size=(16, 16))]), (16, 16), 7)
    return found


def test_where_memory_runs_out_half_as_many_images_go_on_and_that_is_told_once(batch):
    expected = encode_batch(batch, build_tokenizer())
    tokenizer, sizes = small("encoder", 3)
    with pytest.warns(VqtoolWarning, match="out of memory with 7 images in the network at once: going on with 3"):
        found = encode_batch(batch, tokenizer)
    assert np.array_equal(found.tokens, expected.tokens)
    assert np.array_equal(encode_batch(batch, tokenizer).tokens, expected.tokens)  # without another word
    assert sizes == [7, *[3, 3, 1] * 2]
    tokenizer, sizes = small("decoder", 2)
    with pytest.warns(VqtoolWarning) as told:
        pictures = decode_batch(expected, tokenizer)
    assert [str(each.message).partition(": ")[2] for each in told] == ["going on with 3", "going on with 1"]
    assert np.array_equal(pictures, decode_batch(expected, build_tokenizer()))


def test_where_one_image_is_too_much_that_is_said_and_other_errors_are_not_taken_for_it(batch):
    tokenizer, _ = small("encoder", 0)
    tokenizer.most_at_once = 1
    with pytest.raises(VqtoolError, match="out of memory with one image in the network"):
        encode_batch(batch, tokenizer)
    tokenizer.get_submodule("encoder").forward = torch.nn.Linear(3, 3).forward
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        encode_batch(batch, tokenizer)


@pytest.mark.filterwarnings("ignore:CUDA is not available")  # of autocast
@pytest.mark.parametrize(
    ("precision", "expected"),
    [("fp32", ("highest", False)), ("tf32", ("high", True)), ("bf16", ("high", True)), ("auto", None)],
)
def test_products_are_rounded_as_is_asked(precision, expected):
    def settings():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before, seen = settings(), []
    with PretendedGpu():
        tokenizer = build_tokenizer().to("cuda:0")
        tokenizer.encoder.forward = lambda images: (seen.append(settings()), torch.zeros(1, 4, 2, 2).to("cuda:0"))[1]
        tokenizer.latents = lambda images: tokenizer.encoder(images)  # noqa: PLW0108
        tokenizer.look_up = lambda latents: latents[:, 0]
        tokenizer.encode(torch.zeros(1, 3, 16, 16, device="cuda:0"), precision=precision)
    assert seen == [expected or before]
    assert settings() == before


def test_a_history_says_what_makes_other_tokens():
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    assert _machine.record("auto", gpu, compile=False) == _machine.record("fp32", cpu, compile=False) == {}
    assert _machine.record("bf16", gpu, compile=True) == {"precision": "bf16", "compile": True}


@pytest.mark.slow
def test_compiled_networks_make_the_same(tmp_path, monkeypatch, tokenizer_path):
    compiled, real = [], torch.compile

    def trace(forward, *arguments, **more):
        compiled.append(forward)
        return real(forward, backend="eager")

    monkeypatch.setattr(torch, "compile", trace)
    monkeypatch.setattr(_machine, "refuse_without_gpu", lambda *given, **more: None)
    imgs = write_pictures(tmp_path / "imgs", 3, size=(16, 16))
    for name, chosen in (("plain", {}), ("compiled", {"compile": True})):
        how = {"batch_size": 2, "image_size": (16, 16), "device": "cpu", **chosen}
        encode([imgs], tmp_path / f"{name}.h5", tokenizer_path, **how)
        decode(tmp_path / f"{name}.h5", tmp_path / f"{name}.tar", tokenizer_path, device="cpu", **chosen)
    assert len(compiled) == 2
    with open_grids(tmp_path / "plain.h5") as plain, open_grids(tmp_path / "compiled.h5") as other:
        assert np.array_equal(next(plain.batches(3)).tokens, next(other.batches(3)).tokens)
        assert "compile" not in plain.header.history[-1]
        assert other.header.history[-1]["compile"] is True
    assert (tmp_path / "plain.tar").read_bytes() == (tmp_path / "compiled.tar").read_bytes()
