"""The networks of imported tokenizers: published sizes, and layers against the formulas they stand for."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from vqtool.tokenizers import Tokenizer, maskgit
from vqtool.tokenizers.vqgan import Attention, Decoder, Downsample, Encoder, ResidualBlock, Upsample, VqganConfig
from vqtool.tokenizers.vqvae import num_parameters

SMALL = VqganConfig(16, 4, 6, 8, (8, 16), 1, 2, (False, True), (True, False), num_groups=4)
F8 = VqganConfig(8192, 256, 256, 128, (128, 128, 256, 512), 2, 3, (False,) * 3 + (True,), (False,) * 3 + (True,))


def randomly(module):
    """The module in float64 with weights drawn from a seed, also where they start at 0 or 1."""
    noise = torch.Generator().manual_seed(0)
    module = module.double()
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=noise, dtype=torch.float64) / 3)
    return module


def grid(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("config", "encoder", "decoder"), [(VqganConfig(), 29.30, 42.45), (F8, 26.35, 38.32)], ids=["f16", "f8"]
)
def test_the_published_networks_have_their_published_sizes(config, encoder, decoder):
    """Millions of numbers, without the 1x1 convolutions to and from the codes."""
    with torch.device("meta"):
        found = Encoder(config), Decoder(config)
    for module, conv, millions in zip(found, ("quant_conv", "post_quant_conv"), (encoder, decoder), strict=True):
        size = num_parameters(module) - num_parameters(getattr(module, conv))
        assert size / 1e6 == pytest.approx(millions, abs=0.005)


def test_upsampling_is_nearest_neighbours_and_a_convolution():
    layer, x = randomly(Upsample(5)), grid(2, 5, 3, 4)
    doubled = functional.interpolate(x, scale_factor=2, mode="nearest")
    assert torch.allclose(layer(x), functional.conv2d(doubled, layer.conv.weight, layer.conv.bias, padding=1))


def test_downsampling_sees_zeros_behind_the_image_and_none_before_it():
    layer, x = randomly(Downsample(3)), grid(1, 3, 6, 4)
    weight, bias = layer.conv.weight, layer.conv.bias
    out = layer(x)
    assert out.shape == (1, 3, 3, 2)
    assert torch.allclose(out[0, :, 0, 0], torch.einsum("oiyx,iyx->o", weight, x[0, :, :3, :3]) + bias)
    assert torch.allclose(out[0, :, 2, 1], torch.einsum("oiyx,iyx->o", weight[..., :2, :2], x[0, :, 4:, 2:]) + bias)


def test_attention_is_that_of_the_formula():
    layer, x = randomly(Attention(8, SMALL)), grid(2, 8, 3, 5)
    normed = functional.group_norm(x, 4, layer.norm.weight, layer.norm.bias, 1e-6)
    q, k, v = (torch.einsum("oi,biyx->boyx", c.weight[..., 0, 0], normed) for c in (layer.q, layer.k, layer.v))
    q, k, v = (part + c.bias[:, None, None] for part, c in zip((q, k, v), (layer.q, layer.k, layer.v), strict=True))
    weights = torch.einsum("bcn,bcm->bnm", q.flatten(2), k.flatten(2)).div(8**0.5).softmax(2)
    mixed = torch.einsum("bnm,bcm->bcn", weights, v.flatten(2)).view_as(x)
    wanted = x + functional.conv2d(mixed, layer.proj_out.weight, layer.proj_out.bias)
    assert torch.allclose(layer(x), wanted)
    assert torch.allclose(layer(x.contiguous(memory_format=torch.channels_last)), wanted)


@pytest.mark.parametrize("layer", [ResidualBlock(4, 8, SMALL), Attention(4, SMALL), Upsample(4)])
def test_gradients_are_those_of_finite_differences(layer):
    layer = randomly(layer)
    x = grid(1, 4, 2, 3)
    parameters = tuple(layer.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x.requires_grad_(), *parameters))


def test_layers_leave_their_input_alone():
    for layer in (ResidualBlock(4, 4, SMALL), ResidualBlock(4, 8, SMALL), Attention(4, SMALL), Upsample(4)):
        x = grid(1, 4, 4, 4).float()
        before = x.clone()
        with torch.no_grad():
            layer(x)
        assert torch.equal(x, before)


def test_the_shortcut_of_maskgit_starts_from_what_the_block_has_computed():
    block, x = randomly(maskgit.ResidualBlock(32, 64)), grid(1, 32, 4, 4)
    branch = nn.Sequential(block.norm1, nn.SiLU(), block.conv1, block.norm2, nn.SiLU(), block.conv2)
    assert torch.allclose(block(x), branch(x) + block.nin_shortcut(branch(x)))
    block = randomly(maskgit.ResidualBlock(32, 32))
    branch = nn.Sequential(block.norm1, nn.SiLU(), block.conv1, block.norm2, nn.SiLU(), block.conv2)
    assert torch.allclose(block(x), branch(x) + x)


def test_images_do_not_change_with_the_batch_that_they_are_in():
    tokenizer = Tokenizer(SMALL).eval()
    images = grid(3, 3, 6, 8).float()
    with torch.no_grad():
        tokenizer.codebook.copy_(tokenizer.latents(grid(1, 3, 8, 8).float()).flatten(0, 2)[:16])
    tokens = tokenizer.encode(images)
    assert torch.equal(torch.cat([tokenizer.encode(image[None]) for image in images]), tokens)
    one_by_one = torch.cat([tokenizer.decode(part[None]) for part in tokens])
    assert torch.allclose(one_by_one, tokenizer.decode(tokens), atol=1e-5)
    assert tokenizer.decode(tokens).shape == images.shape
