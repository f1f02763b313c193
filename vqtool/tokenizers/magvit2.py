"""The convolutional autoencoder of Open-MAGVIT2's tokenizers of bits.

What it does: residual blocks without biases and attention; resolutions are halved by strided convolutions and doubled
by a convolution to four times the channels, whose parts are put side by side. Before its blocks each level of the
decoder normalises and is scaled and shifted by the deviation and mean of the codes over all cells. A grid of one cell
has no deviation.
When to use it: for imported tokenizers.
Cost: about that of `vqgan`.
Source: Luo et al. 2024 (arXiv:2409.04410) and its code, github.com/TencentARC/SEED-Voken, which is golden.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqtool.tokenizers.maskgit import NUM_GROUPS, Level, residual_blocks
from vqtool.tokenizers.vqgan import NORM_EPSILON


@dataclass(frozen=True)
class Magvit2Config:
    """Shape of the network."""

    codebook_size: int = 1 << 18  # K
    code_dim: int = 18  # D, bits
    stem_channels: int = 128  # after the first convolution of the encoder
    channels: tuple[int, ...] = (128, 128, 256, 256, 512)  # one entry a resolution, finest first
    num_blocks: int = 4  # residual blocks at each resolution, and in the middle

    @property
    def factor(self) -> int:
        """Pixels a side that one token stands for."""
        return int(2 ** (len(self.channels) - 1))


class Upsample(nn.Module):
    """Doubling: channel (2 dy + dx) C + c of a convolution becomes channel c of cell (2 y + dy, 2 x + dx)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2h, 2w)."""
        batch, channels, height, width = x.shape
        parts = self.conv1(x).view(batch, 2, 2, channels, height, width)  # (B, dy, dx, C, h, w)
        return parts.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels, 2 * height, 2 * width)  # type: ignore[no-any-return]


class Adaptive(nn.Module):
    """A norm that is scaled and shifted by the deviation and the mean of the codes."""

    def __init__(self, channels: int, code_dim: int) -> None:
        super().__init__()
        self.gamma = nn.Linear(code_dim, channels)
        self.beta = nn.Linear(code_dim, channels)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        """(B, C, h, w) by (B, D, H, W)."""
        cells = codes.flatten(2)
        scale = self.gamma((cells.var(-1) + NORM_EPSILON).sqrt())[..., None, None]
        shift = self.beta(cells.mean(-1))[..., None, None]
        return torch.addcmul(shift, functional.group_norm(x, NUM_GROUPS, eps=NORM_EPSILON), scale)


class Encoder(nn.Module):
    """Images (B, 3, h, w) in [-1, 1] -> latents (B, D, h/f, w/f)."""

    def __init__(self, config: Magvit2Config) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, config.stem_channels, 3, padding=1, bias=False)
        widths = (config.stem_channels, *config.channels)
        self.down = nn.ModuleList(
            Level(widths[i], widths[i + 1], config.num_blocks, passes=True) for i in range(len(config.channels))
        )
        for level, channels in zip(self.down[:-1], config.channels, strict=False):
            level.downsample = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.mid_block = residual_blocks(widths[-1], widths[-1], config.num_blocks, passes=True)
        self.norm_out = nn.GroupNorm(NUM_GROUPS, widths[-1], eps=NORM_EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], config.code_dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, D, h/f, w/f)."""
        h = self.conv_in(images)
        for level in (*self.down, *self.mid_block):
            h = level(h)
        latents: Tensor = self.conv_out(functional.silu(self.norm_out(h), inplace=True))
        return latents


class Decoder(nn.Module):
    """Codes (B, D, H, W) -> images (B, 3, f H, f W), about [-1, 1]."""

    def __init__(self, config: Magvit2Config) -> None:
        super().__init__()
        coarse = config.channels[-1]
        self.conv_in = nn.Conv2d(config.code_dim, coarse, 3, padding=1)
        self.mid_block = residual_blocks(coarse, coarse, config.num_blocks, passes=True)
        inner = (*config.channels[1:], coarse)
        self.up = nn.ModuleList(
            Level(inner[i], config.channels[i], config.num_blocks, passes=True) for i in range(len(config.channels))
        )  # finest first, as in the encoder; run from the last
        for level, channels in zip(self.up[1:], config.channels[1:], strict=True):
            level.upsample = Upsample(channels)
        self.adaptive = nn.ModuleList(Adaptive(width, config.code_dim) for width in inner)
        self.norm_out = nn.GroupNorm(NUM_GROUPS, config.channels[0], eps=NORM_EPSILON)
        self.conv_out = nn.Conv2d(config.channels[0], 3, 3, padding=1)

    def forward(self, codes: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, 3, f H, f W)."""
        h = self.conv_in(codes)
        for block in self.mid_block:
            h = block(h)
        for level, adaptive in zip(reversed(self.up), reversed(self.adaptive), strict=True):
            h = level(adaptive(h, codes))
        images: Tensor = self.conv_out(functional.silu(self.norm_out(h), inplace=True))
        return images


Config = Magvit2Config

__all__ = ["Config", "Decoder", "Encoder", "Magvit2Config"]
