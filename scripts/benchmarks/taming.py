"""A VQGAN as taming-transformers runs it, with the weights of ours: what the benchmarks compare with.

Written after its `modules/diffusionmodules/model.py` and `modules/vqvae/quantize.py` (VectorQuantizer2): images in
contiguous (B, C, h, w), normalisation and swish one after the other, attention by the whole matrix of weights, doubling
by repetition before the convolution, all N x K distances, and the loss of the lookup in every `encode`. It is no copy
of its code, and the package itself is not run. Nothing of it is used by vqtool.
"""

from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool.tokenizers import Tokenizer
from vqtool.tokenizers.vqgan import Attention, Downsample, Level, Middle, ResidualBlock


def contiguous(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with the convolutions' weights as taming holds them."""
    return deepcopy(tokenizer).to(memory_format=torch.contiguous_format)


def encode(tokenizer: Tokenizer, images: Tensor) -> Tensor:
    """(B, H, W) int64: the tokens of images (B, 3, h, w)."""
    network = tokenizer.encoder
    h = network.conv_in(images)
    for level in network.down:
        h = _run_level(level, h)
    h = network.conv_out(_swish(network.norm_out(_run_middle(network.mid, h))))
    return _look_up(network.quant_conv(h), tokenizer.codebook)


def decode(tokenizer: Tokenizer, grid: Tensor) -> Tensor:
    """(B, 3, h, w): the images of tokens (B, H, W)."""
    network = tokenizer.decoder
    codes = F.embedding(grid.flatten(), tokenizer.codebook).view(*grid.shape, -1).permute(0, 3, 1, 2).contiguous()
    h = _run_middle(network.mid, network.conv_in(network.post_quant_conv(codes)))
    for level in reversed(network.up):
        h = _run_level(level, h)
    images: Tensor = network.conv_out(_swish(network.norm_out(h)))
    return images


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _run_level(level: Level, h: Tensor) -> Tensor:
    for number, block in enumerate(level.block):
        h = _run_block(block, h)
        if level.attn:
            h = _attend(level.attn[number], h)
    if isinstance(level.downsample, Downsample):
        h = level.downsample.conv(F.pad(h, (0, 1, 0, 1)))
    if level.upsample is not None:
        h = level.upsample.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))
    return h


def _run_middle(middle: Middle, h: Tensor) -> Tensor:
    return _run_block(middle.block_2, _attend(middle.attn_1, _run_block(middle.block_1, h)))


def _run_block(block: ResidualBlock, x: Tensor) -> Tensor:
    h = block.conv1(_swish(block.norm1(x)))
    h = block.conv2(_swish(block.norm2(h)))
    return (x if block.nin_shortcut is None else block.nin_shortcut(x)) + h


def _attend(attention: Attention | None, x: Tensor) -> Tensor:
    normed = attention.norm(x)
    q, k, v = attention.q(normed), attention.k(normed), attention.v(normed)
    batch, channels, height, width = q.shape
    weights = torch.bmm(q.flatten(2).permute(0, 2, 1), k.flatten(2)) * channels**-0.5  # (B, h w, h w)
    mixed = torch.bmm(v.flatten(2), F.softmax(weights, dim=2).permute(0, 2, 1))
    return x + attention.proj_out(mixed.reshape(batch, channels, height, width))


def _look_up(latents: Tensor, codebook: nn.Parameter | Tensor) -> Tensor:
    z = latents.permute(0, 2, 3, 1).contiguous()
    flat = z.view(-1, z.shape[-1])
    distances = flat.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * flat @ codebook.T  # (N, K)
    tokens = distances.argmin(1)
    codes = F.embedding(tokens, codebook).view(z.shape)
    loss = (codes - z).square().mean() + 0.25 * (codes - z).square().mean()
    del loss  # it is computed in inference too
    return tokens.view(z.shape[:-1])
