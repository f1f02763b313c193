"""TiTok: an image of one size as a row of tokens, by transformers, without places of the tokens in the image.

What it does: the patches of an image and as many rows as there are tokens pass a transformer; the latter become the
latents. Codes and rows of one mask pass another, from which patches come: each is a mixture of proxy codes of a small
MaskGIT decoder (`pixels`), or the pixels themselves and a 3x3 convolution. Older models read their (tokens, width)
latents as (width, tokens) without turning them round (`legacy`): a fault that their weights have learned to live with.
When to use it: for imported tokenizers. Tokens stand for the whole image, so grids are 1 x N.
Cost: 24 * width^2 a layer and row, at 256 pixels of 257 + N rows, in both directions.
Source: Yu et al. 2024 (arXiv:2406.07550) and its code, github.com/bytedance/1d-tokenizer, which is golden.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool.products import Keep, Linear, attend
from vqtool.tokenizers import maskgit
from vqtool.tokenizers.maskgit import MaskgitConfig

HEAD_WIDTH = 64  # of every head of attention
MLP_RATIO = 4


@dataclass(frozen=True)
class TitokConfig:
    """Shape of the network; images inside it are in [0, 1]."""

    codebook_size: int = 4096  # K
    code_dim: int = 12  # D
    num_tokens: int = 32  # N, of an image
    only_size: tuple[int, int] = (256, 256)  # (height, width) of all images
    encoder_width: int = 1024
    encoder_layers: int = 24
    encoder_patch: int = 16  # pixels a side
    decoder_width: int = 1024
    decoder_layers: int = 24
    decoder_patch: int = 16
    legacy: bool = True  # whether latents are read as (width, tokens)
    pixels: MaskgitConfig | None = None  # of the decoder whose codes are mixed; None makes pixels at once

    def __post_init__(self) -> None:
        if self.num_tokens < 1 or min(self.encoder_width, self.decoder_width) < HEAD_WIDTH:
            raise ValueError(f"{self.num_tokens} tokens of {self.encoder_width} and {self.decoder_width} numbers")
        if any(width % HEAD_WIDTH for width in (self.encoder_width, self.decoder_width)):
            raise ValueError(f"widths {self.encoder_width} and {self.decoder_width} are not made of {HEAD_WIDTH}")
        for patch in (self.encoder_patch, self.decoder_patch):
            if patch < 1 or any(side < patch or side % patch for side in self.only_size):
                raise ValueError(f"images of {self.only_size} pixels are not made of patches of {patch}")

    @property
    def factor(self) -> int:
        """0: a token has no place in the image."""
        return 0


class Block(nn.Module):
    """A layer of attention and an MLP with an exact GELU, each added to its input.

    Norms stand before both, as in ViT, or behind the sums, as in BERT.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        mlp_width: int,
        *,
        epsilon: float = 1e-5,
        qkv_bias: bool = True,
        norm_last: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.norm_last = num_heads, norm_last
        self.norm1 = nn.LayerNorm(width, epsilon)
        self.qkv = Linear(width, 3 * width, bias=qkv_bias)  # rows: queries, keys, values
        self.out = Linear(width, width)
        self.norm2 = nn.LayerNorm(width, epsilon)
        self.first = Linear(width, mlp_width)
        self.second = Linear(mlp_width, width)

    def _attend(self, x: Tensor, keep: Keep | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if keep is not None:
            k, v = keep(k, v)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _change(self, x: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(x)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, keep: Keep | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); `keep` knows keys and values of more rows."""
        if self.norm_last:
            x = self.norm1(x + self._attend(x, keep))
            return self.norm2(x + self._change(x))  # type: ignore[no-any-return]
        x = x + self._attend(self.norm1(x), keep)
        return x + self._change(self.norm2(x))


class _Trunk(nn.Module):
    """A transformer over a row of its own, the patches and the tokens, in this order."""

    def __init__(self, config: TitokConfig, width: int, num_layers: int, patch: int) -> None:
        super().__init__()
        height, wide = config.only_size
        self.size = height // patch, wide // patch  # in patches
        self.num_patches = self.size[0] * self.size[1]
        self.start = nn.Parameter(torch.zeros(1, width))
        self.positions = nn.Parameter(torch.zeros(1 + self.num_patches, width))
        self.token_positions = nn.Parameter(torch.zeros(config.num_tokens, width))
        self.norm_in = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, width // HEAD_WIDTH, MLP_RATIO * width) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(width)

    def forward(self, patches: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (B, P, width) and tokens (B, N, width), after all layers."""
        image = torch.cat([self.start.expand(patches.shape[0], -1, -1), patches], dim=1) + self.positions
        x = self.norm_in(torch.cat([image, tokens + self.token_positions], dim=1))
        for block in self.blocks:
            x = block(x)
        return x[:, 1 : 1 + self.num_patches], x[:, 1 + self.num_patches :]


class Encoder(nn.Module):
    """Images (B, 3, h, w) in [-1, 1] -> latents (B, D, 1, N)."""

    def __init__(self, config: TitokConfig) -> None:
        super().__init__()
        self.legacy = config.legacy
        width = config.encoder_width
        self.patches = nn.Conv2d(3, width, config.encoder_patch, stride=config.encoder_patch)
        self.tokens = nn.Parameter(torch.zeros(config.num_tokens, width))
        self.trunk = _Trunk(config, width, config.encoder_layers, config.encoder_patch)
        self.out = Linear(width, config.code_dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, D, 1, N)."""
        patches = self.patches((images + 1) / 2).flatten(2).transpose(1, 2)
        _, tokens = self.trunk(patches, self.tokens.expand(images.shape[0], -1, -1))
        x = self.trunk.norm_out(tokens)  # (B, N, width)
        if self.legacy:
            x = x.reshape(x.shape[0], x.shape[2], x.shape[1]).transpose(
                1, 2
            )  # numbers in another order, not a transposition
        latents: Tensor = self.out(x).transpose(1, 2)[:, :, None]
        return latents


class Decoder(nn.Module):
    """Codes (B, D, 1, N) -> images (B, 3, h, w), about [-1, 1]."""

    def __init__(self, config: TitokConfig) -> None:
        super().__init__()
        width, patch, pixels = config.decoder_width, config.decoder_patch, config.pixels
        self.embed = Linear(config.code_dim, width)
        self.mask = nn.Parameter(torch.zeros(1, width))
        self.trunk = _Trunk(config, width, config.decoder_layers, patch)
        self.first = Linear(width, 3 * patch**2 if pixels is None else 2 * width)
        if pixels is None:
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1)
        else:
            self.second = Linear(2 * width, pixels.codebook_size)
            self.proxies = nn.Parameter(torch.zeros(pixels.codebook_size, pixels.code_dim))
            self.pixels = maskgit.Decoder(pixels)
        self.patch = patch

    def forward(self, codes: Tensor) -> Tensor:
        """(B, D, 1, N) -> (B, 3, h, w)."""
        x = self.first(self._patches(codes))  # (B, P, ...)
        if hasattr(self, "pixels"):
            mixed = self.second(x.tanh()).softmax(-1) @ self.proxies
            return self.pixels(mixed.transpose(1, 2).unflatten(2, self.trunk.size).contiguous())  # type: ignore[no-any-return]
        (rows, columns), patch = self.trunk.size, self.patch
        image = x.view(-1, rows, columns, patch, patch, 3).permute(0, 5, 1, 3, 2, 4)  # (B, 3, rows, p, columns, p)
        return self.conv_out(image.reshape(-1, 3, rows * patch, columns * patch)) * 2 - 1  # type: ignore[no-any-return]

    def _patches(self, codes: Tensor) -> Tensor:
        tokens = self.embed(codes.flatten(2).transpose(1, 2))
        patches, _ = self.trunk(self.mask.expand(codes.shape[0], self.trunk.num_patches, -1), tokens)
        return self.trunk.norm_out(patches)  # type: ignore[no-any-return]


Config = TitokConfig

__all__ = ["Block", "Config", "Decoder", "Encoder", "TitokConfig"]
