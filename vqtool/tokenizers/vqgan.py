"""The convolutional autoencoder of published VQGANs: taming-transformers and those that follow it.

What it does: residual blocks with group normalisation and swish at each resolution, halved by strided convolutions and
doubled by nearest neighbours and a convolution; attention over all cells at chosen resolutions and in the middle.
When to use it: for imported tokenizers, and for new ones where quality counts more than time on a CPU.
Cost: at 256x256, factor 16 and the published widths 69 G multiply-adds to encode an image and 113 G to decode one.
Differs from the original: an upsampling and its convolution are one transposed convolution, which is the same map
with 4 instead of 9 products an output.
Source: Esser et al. 2021 (arXiv:2012.09841).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class VqganConfig:
    """Shape of the network; the default is factor 16 as published."""

    codebook_size: int = 1024  # K
    code_dim: int = 256  # D
    latent_channels: int = 256  # between the network and the 1x1 convolutions to and from D
    stem_channels: int = 128  # after the first convolution of the encoder
    channels: tuple[int, ...] = (128, 128, 256, 256, 512)  # one entry a resolution, finest first
    encoder_blocks: int | tuple[int, ...] = 2  # residual blocks at each resolution, the same or one entry each
    decoder_blocks: int | tuple[int, ...] = 3
    encoder_attention: tuple[bool, ...] = (False, False, False, False, True)  # after each block, by resolution
    decoder_attention: tuple[bool, ...] = (False, False, False, False, True)
    mid_attention: bool = True  # between the two blocks in the middle
    quant_conv: bool = True  # whether there are 1x1 convolutions to and from D; else D is latent_channels
    num_groups: int = 32  # of all normalisations
    swish_out: bool = True  # between the last normalisation and the last convolution
    pixel_range: tuple[float, float] = (-1.0, 1.0)  # of the images that the network itself knows
    decoder_channels: tuple[int, ...] | None = None  # where they are not those of the encoder

    @property
    def factor(self) -> int:
        """Pixels a side that one token stands for."""
        return int(2 ** (len(self.channels) - 1))


def _each(blocks: int | tuple[int, ...], num_levels: int) -> tuple[int, ...]:
    """How many blocks each resolution has."""
    return (blocks,) * num_levels if isinstance(blocks, int) else blocks


def _norm(channels: int, config: VqganConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.num_groups, channels, eps=NORM_EPSILON)


class ResidualBlock(nn.Module):
    """x + conv(swish(norm(conv(swish(norm(x)))))), 3x3; the shortcut is a 1x1 convolution where the width changes."""

    def __init__(self, inner: int, outer: int, config: VqganConfig) -> None:
        super().__init__()
        self.norm1 = _norm(inner, config)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.norm2 = _norm(outer, config)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inner, outer, 1) if inner != outer else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inner, h, w) -> (B, outer, h, w)."""
        h = self.conv1(functional.silu(self.norm1(x), inplace=True))
        h = self.conv2(functional.silu(self.norm2(h), inplace=True))
        shortcut = x if self.nin_shortcut is None else self.nin_shortcut(x)
        total: Tensor = h.add_(shortcut)
        return total


class Attention(nn.Module):
    """x + attention over all cells, one head."""

    def __init__(self, channels: int, config: VqganConfig) -> None:
        super().__init__()
        self.norm = _norm(channels, config)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same."""
        normed = self.norm(x)
        q, k, v = (part(normed).permute(0, 2, 3, 1).flatten(1, 2)[:, None] for part in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v)  # (B, 1, h w, C)
        cells = mixed.reshape(x.shape[0], *x.shape[-2:], -1).permute(0, 3, 1, 2)
        total: Tensor = self.proj_out(cells).add_(x)
        return total


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2 that sees one row and column of zeros behind the image, none before it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h/2, w/2)."""
        halved: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return halved


class Upsample(nn.Module):
    """Doubling by nearest neighbours, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2h, 2w)."""
        # doubling is a transposed convolution with a 2x2 kernel of ones: both together have one 4x4 kernel
        kernel = _widened(_widened(self.conv.weight.permute(2, 3, 1, 0), 0), 1)  # (4, 4, in, out), quickest on CPUs
        return functional.conv_transpose2d(x, kernel.permute(2, 3, 0, 1), self.conv.bias, stride=2, padding=1)


def _widened(kernel: Tensor, axis: int) -> Tensor:
    """Three taps along an axis of a convolution's kernel -> the four of a transposed one that doubles first."""
    first, second, third = kernel.unbind(axis)
    return torch.stack((third, second + third, first + second, first), axis)


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention if there is any, and the change of resolution."""

    def __init__(self, inner: int, outer: int, blocks: int, attention: bool, config: VqganConfig) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(outer if j else inner, outer, config) for j in range(blocks))
        self.attn = nn.ModuleList(Attention(outer, config) for _ in range(blocks if attention else 0))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inner, h, w) -> (B, outer, h', w')."""
        for j, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[j](x)
        if self.downsample is not None:
            x = self.downsample(x)
        if self.upsample is not None:
            x = self.upsample(x)
        return x


class Middle(nn.Module):
    """Block, attention, block at the coarsest resolution."""

    def __init__(self, channels: int, config: VqganConfig) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, config)
        self.attn_1 = Attention(channels, config) if config.mid_attention else None
        self.block_2 = ResidualBlock(channels, channels, config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same."""
        x = self.block_1(x)
        if self.attn_1 is not None:
            x = self.attn_1(x)
        mixed: Tensor = self.block_2(x)
        return mixed


class Encoder(nn.Module):
    """Images (B, 3, h, w) in [-1, 1] -> latents (B, D, h/f, w/f)."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.config = config
        self.conv_in = nn.Conv2d(3, config.stem_channels, 3, padding=1)
        widths = (config.stem_channels, *config.channels)
        self.down = nn.ModuleList(
            Level(widths[i], widths[i + 1], blocks, config.encoder_attention[i], config)
            for i, blocks in enumerate(_each(config.encoder_blocks, len(config.channels)))
        )
        for level, channels in zip(self.down[:-1], config.channels, strict=False):
            level.downsample = Downsample(channels)
        self.mid = Middle(widths[-1], config)
        self.norm_out = _norm(widths[-1], config)
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.code_dim, 1) if config.quant_conv else None

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, D, h/f, w/f)."""
        low, high = self.config.pixel_range
        if (low, high) != (-1.0, 1.0):
            images = (images + 1) * ((high - low) / 2) + low
        h = self.conv_in(images)
        for level in self.down:
            h = level(h)
        h = self.norm_out(self.mid(h))
        h = self.conv_out(functional.silu(h, inplace=True) if self.config.swish_out else h)
        latents: Tensor = h if self.quant_conv is None else self.quant_conv(h)
        return latents


class Decoder(nn.Module):
    """Codes (B, D, H, W) -> images (B, 3, f H, f W), about [-1, 1]."""

    def __init__(self, config: VqganConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.decoder_channels or config.channels
        coarse = widths[-1]
        self.post_quant_conv = nn.Conv2d(config.code_dim, config.latent_channels, 1) if config.quant_conv else None
        self.conv_in = nn.Conv2d(config.latent_channels, coarse, 3, padding=1)
        self.mid = Middle(coarse, config)
        inner = (*widths[1:], coarse)
        self.up = nn.ModuleList(
            Level(inner[i], widths[i], blocks, config.decoder_attention[i], config)
            for i, blocks in enumerate(_each(config.decoder_blocks, len(widths)))
        )  # finest first, as in the encoder; run from the last
        for level, channels in zip(self.up[1:], widths[1:], strict=True):
            level.upsample = Upsample(channels)
        self.norm_out = _norm(widths[0], config)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, codes: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, 3, f H, f W)."""
        h = self.mid(self.conv_in(codes if self.post_quant_conv is None else self.post_quant_conv(codes)))
        for level in reversed(self.up):
            h = level(h)
        h = self.norm_out(h)
        images: Tensor = self.conv_out(functional.silu(h, inplace=True) if self.config.swish_out else h)
        low, high = self.config.pixel_range
        return images if (low, high) == (-1.0, 1.0) else (images - low) * (2 / (high - low)) - 1


def _last_only(levels: int) -> tuple[bool, ...]:
    return (*[False] * (levels - 1), True)


def _published(channels: tuple[int, ...], *, attention: bool = True, **rest: Any) -> VqganConfig:
    where = _last_only(len(channels)) if attention else (False,) * len(channels)
    return VqganConfig(channels=channels, encoder_attention=where, decoder_attention=where, **rest)


def _small(channels: tuple[int, ...]) -> VqganConfig:
    """For CPUs: a quarter of the widths, one block less, attention in the middle alone."""
    nowhere = (False,) * len(channels)
    return VqganConfig(
        code_dim=16,
        latent_channels=64,
        stem_channels=32,
        channels=channels,
        encoder_blocks=1,
        decoder_blocks=2,
        encoder_attention=nowhere,
        decoder_attention=nowhere,
        num_groups=16,
    )


Config = VqganConfig
SIZES = {
    "f4": _published((128, 256, 512), attention=False, codebook_size=8192, code_dim=3, latent_channels=3),
    "f8": _published((128, 128, 256, 512), codebook_size=8192),
    "f16": VqganConfig(),
    "f4-small": _small((32, 64, 128)),
    "f8-small": _small((32, 64, 64, 128)),
    "f16-small": _small((32, 32, 64, 64, 128)),
}

__all__ = ["SIZES", "Config", "Decoder", "Encoder", "VqganConfig"]
