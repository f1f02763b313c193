"""Tokenizers and quantizers on a GPU against the same on the CPU."""

import pytest
import torch
from support.commands import build_tokenizer

from vqtool.tokenizers import load_tokenizer, quantizers

pytestmark = pytest.mark.gpu


def pictures(num=4, size=64):
    """Smooth pictures, in [-1, 1]."""
    coarse = torch.rand(num, 3, size // 8, size // 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1)


@pytest.mark.parametrize("build", [load_tokenizer, build_tokenizer], ids=["builtin", "random"])
def test_tokens_and_pictures_are_those_of_the_cpu(gpu, build):
    images = pictures()
    expected = build().encode(images)
    tokenizer = build().to(gpu)
    found = tokenizer.encode(images.to(gpu)).cpu()
    assert float((found != expected).double().mean()) < 0.005  # codes as near as rounding
    torch.testing.assert_close(tokenizer.decode(expected.to(gpu)).cpu(), build().decode(expected), rtol=0, atol=2e-4)


def test_in_bfloat16_most_tokens_are_the_same_and_pictures_near(gpu):
    tokenizer, images = load_tokenizer().to(gpu), pictures().to(gpu)
    tokens = tokenizer.encode(images)
    found = tokenizer.encode(images, precision="bf16")
    assert float((found == tokens).double().mean()) > 0.5
    exact, near = tokenizer.decode(tokens), tokenizer.decode(tokens, precision="bf16")
    assert near.dtype == torch.float32
    assert not torch.equal(near, exact)
    assert float((near - exact).square().mean().sqrt()) < 0.02  # 34 dB and more


def test_the_size_of_a_batch_changes_no_picture(gpu):
    tokenizer = load_tokenizer().to(gpu)
    tokens = tokenizer.encode(pictures(6).to(gpu))
    alone = torch.cat([tokenizer.decode(row[None]) for row in tokens])
    torch.testing.assert_close(alone, tokenizer.decode(tokens), rtol=0, atol=2e-4)


def test_a_token_outside_the_codebook_is_refused_and_the_gpu_goes_on(gpu):
    tokenizer = build_tokenizer().to(gpu)
    with pytest.raises(ValueError, match="must lie in"):
        tokenizer.decode(torch.full((1, 4, 4), 16, device=gpu))
    assert tokenizer.decode(torch.zeros(1, 4, 4, dtype=torch.int64, device=gpu)).isfinite().all()


@pytest.mark.parametrize("name", quantizers.NAMES)
def test_every_quantizer_learns_what_it_learns_on_the_cpu(gpu, name):
    found = []
    size, width = quantizers.choose_options(name, {}).shape(16, 4)
    for device in ("cpu", gpu):
        torch.manual_seed(0)
        quantizer = quantizers.build(name, size, width).to(device).train()
        noise = torch.Generator().manual_seed(1)
        for _ in range(2):  # the first may place the codes
            latents = torch.randn(2, 8, 8, width, generator=noise).tanh()
            if quantizer.lookup == "cosine":
                latents = torch.nn.functional.normalize(latents, dim=-1)
            picks = torch.rand(size, dtype=torch.float64, generator=noise)
            latents = latents.to(device).requires_grad_()
            made = quantizer(latents, picks.to(device))
        (made.codes.square().sum() + sum(made.losses.values())).backward()
        found.append([made.tokens, made.codes, latents.grad, quantizer.effective_codebook(), *made.losses.values()])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs.detach().cpu(), mine.detach(), rtol=1e-3, atol=1e-4)
