"""The convolutional autoencoder of MaskGIT's tokenizer, also as open-muse publishes it.

What it does: as `vqgan`, without attention or biases in its blocks; resolutions are halved by averaging 2x2 cells (in
MaskBit by strided convolutions) and doubled by nearest neighbours and a convolution. Where a residual block changes the
width, its shortcut is a 1x1 convolution of what the block has computed: the block's input does not get past it.
When to use it: for imported tokenizers.
Cost: about that of `vqgan`.
Source: Chang et al. 2022 (arXiv:2202.04200) and its published code, which the shortcut is taken from.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from vqtool.tokenizers.vqgan import NORM_EPSILON, Downsample, Upsample

NUM_GROUPS = 32


@dataclass(frozen=True)
class MaskgitConfig:
    """Shape of the network; images inside it are in [0, 1]."""

    codebook_size: int = 1024  # K
    code_dim: int = 256  # D
    stem_channels: int = 128  # after the first convolution of the encoder
    channels: tuple[int, ...] = (128, 128, 256, 256, 512)  # one entry a resolution, finest first
    num_blocks: int = 2  # residual blocks at each resolution, and in the middle
    strided: bool = False  # whether convolutions of stride 2 halve the encoder's resolutions, not means (MaskBit)

    @property
    def factor(self) -> int:
        """Pixels a side that one token stands for."""
        return int(2 ** (len(self.channels) - 1))


class ResidualBlock(nn.Module):
    """s + conv(swish(norm(conv(swish(norm(x)))))), 3x3; s is x, or where the width changes a 1x1 map of the rest.

    With `passes` that is a map of x, as in other networks.
    """

    def __init__(self, inner: int, outer: int, *, passes: bool = False) -> None:
        super().__init__()
        self.passes = passes
        self.norm1 = nn.GroupNorm(NUM_GROUPS, inner, eps=NORM_EPSILON)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(NUM_GROUPS, outer, eps=NORM_EPSILON)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        seen = inner if passes else outer
        self.nin_shortcut = nn.Conv2d(seen, outer, 1, bias=False) if inner != outer else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inner, h, w) -> (B, outer, h, w)."""
        h = self.conv1(functional.silu(self.norm1(x), inplace=True))
        h = self.conv2(functional.silu(self.norm2(h), inplace=True))
        total: Tensor = h + (x if self.nin_shortcut is None else self.nin_shortcut(x if self.passes else h))
        return total


def residual_blocks(inner: int, outer: int, num: int, *, passes: bool = False) -> nn.ModuleList:
    """So many, one behind the other."""
    return nn.ModuleList(ResidualBlock(outer if j else inner, outer, passes=passes) for j in range(num))


class Level(nn.Module):
    """The blocks of one resolution, and the change of resolution behind them."""

    def __init__(self, inner: int, outer: int, num: int, *, double: bool = False, passes: bool = False) -> None:
        super().__init__()
        self.block = residual_blocks(inner, outer, num, passes=passes)
        self.upsample: nn.Module | None = Upsample(outer) if double else None
        self.downsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inner, h, w) -> (B, outer, h', w')."""
        for block in self.block:
            x = block(x)
        x = x if self.downsample is None else self.downsample(x)
        return x if self.upsample is None else self.upsample(x)


class Encoder(nn.Module):
    """Images (B, 3, h, w) in [-1, 1] -> latents (B, D, h/f, w/f)."""

    def __init__(self, config: MaskgitConfig) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, config.stem_channels, 3, padding=1, bias=False)
        widths = (config.stem_channels, *config.channels)
        self.down = nn.ModuleList(
            Level(widths[i], widths[i + 1], config.num_blocks) for i in range(len(config.channels))
        )
        for level, channels in zip(self.down[:-1] if config.strided else (), config.channels, strict=False):
            level.downsample = Downsample(channels)
        self.strided = config.strided
        self.mid = residual_blocks(widths[-1], widths[-1], config.num_blocks)
        self.norm_out = nn.GroupNorm(NUM_GROUPS, widths[-1], eps=NORM_EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], config.code_dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, D, h/f, w/f)."""
        h = self.conv_in((images + 1) / 2)
        for i, level in enumerate(self.down):
            h = level(functional.avg_pool2d(h, 2) if i and not self.strided else h)
        for block in self.mid:
            h = block(h)
        latents: Tensor = self.conv_out(functional.silu(self.norm_out(h), inplace=True))
        return latents


class Decoder(nn.Module):
    """Codes (B, D, H, W) -> images (B, 3, f H, f W), about [-1, 1]."""

    def __init__(self, config: MaskgitConfig) -> None:
        super().__init__()
        coarse = config.channels[-1]
        self.conv_in = nn.Conv2d(config.code_dim, coarse, 3, padding=1)
        self.mid = residual_blocks(coarse, coarse, config.num_blocks)
        inner = (*config.channels[1:], coarse)
        self.up = nn.ModuleList(
            Level(inner[i], config.channels[i], config.num_blocks, double=i > 0) for i in range(len(config.channels))
        )  # finest first, as in the encoder; run from the last
        self.norm_out = nn.GroupNorm(NUM_GROUPS, config.channels[0], eps=NORM_EPSILON)
        self.conv_out = nn.Conv2d(config.channels[0], 3, 3, padding=1)

    def forward(self, codes: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, 3, f H, f W)."""
        h = self.conv_in(codes)
        for block in self.mid:
            h = block(h)
        for level in reversed(self.up):
            h = level(h)
        images: Tensor = self.conv_out(functional.silu(self.norm_out(h), inplace=True))
        return images * 2 - 1


Config = MaskgitConfig

__all__ = ["Config", "Decoder", "Encoder", "MaskgitConfig"]
