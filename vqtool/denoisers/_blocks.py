"""Blocks of attention and an MLP, whose LayerNorms are scaled and shifted by time or class (AdaLN).

Names are those of the weights in a prior's file: an importer fills them by these names.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool.products import Keep, Linear, attend, linear

GELU2_SLOPE = 1.702  # x * sigmoid(1.702 x), "GELU2" in VQ-Diffusion, "quick GELU" in CLIP
TIME_SCALE = 4000.0  # t / T times this is what the sinusoids see


class AdaptiveNorm(nn.Module):
    """LayerNorm whose scale and shift depend on a number: a row of a table, or sinusoids, through one linear map."""

    def __init__(self, width: int, num_rows: int) -> None:
        super().__init__()
        self.width = width
        self.table = nn.Embedding(num_rows, width) if num_rows else None  # without: sinusoids
        self.linear = Linear(width, 2 * width)

    def modulate(self, embedding: Tensor) -> Tensor:
        """Scale and shift, (B, 2 D), from an embedded number (B, D)."""
        return self.linear(F.silu(embedding))  # type: ignore[no-any-return]

    def modulate_class(self, classes: Tensor) -> Tensor:
        """Scale and shift, (B, 2 D), of classes (B,): rows of the table; num_classes is the mean of all rows."""
        if self.table is None:
            raise ValueError("this norm has no table of classes")
        rows = self.table.weight
        last = len(rows) - 1
        return self.modulate(torch.where((classes > last)[:, None], rows.mean(0), rows[classes.clamp(max=last)]))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Normalise (B, N, D) by (B, 2 D)."""
        scale, shift = modulation[:, None].chunk(2, dim=-1)
        return torch.addcmul(shift, F.layer_norm(x, (self.width,)), 1 + scale)


def normalise(norm: nn.Module | None, x: Tensor, time: Tensor) -> Tensor:
    """(B, N, D) by a plain LayerNorm, or by an adaptive one at rows (B,) of its table or at sinusoids (B, D)."""
    if isinstance(norm, AdaptiveNorm):
        return norm(x, norm.modulate(time if norm.table is None else norm.table(time)))  # type: ignore[no-any-return]
    return x if norm is None else norm(x)


def sinusoids(phases: Tensor, width: int) -> Tensor:
    """(B, D) float64 of (B,) phases: sines, then cosines, of frequencies from 1 down to 1e-4."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=phases.device, dtype=torch.float64) * -math.log(1e4) / (half - 1))
    angles = phases.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def pick(x: Tensor, cells: Tensor) -> Tensor:
    """(B, n, D): of (B, N, D) those of the cells (B, n)."""
    return x.gather(1, cells[..., None].expand(-1, -1, x.shape[-1]))


def resized_places(places: Tensor, trained: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Position embeddings (H * W, D) of a grid of the trained size, interpolated to those of another size."""
    if size == trained:
        return places
    table = places.view(1, *trained, -1).permute(0, 3, 1, 2)
    return F.interpolate(table, size, mode="bilinear", align_corners=True)[0].flatten(1).T


class SelfAttention(nn.Module):
    """Every cell attends to every other."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width)  # rows: queries, keys, values
        self.out = Linear(width, width)

    def forward(self, x: Tensor, cells: Tensor | None = None, keep: Keep | None = None) -> Tensor:
        """(B, N, D) for all cells, or (B, n, D) for `cells` (B, n) alone; `keep` knows keys and values of more."""
        batch, num, width = x.shape
        q, k, v = self.qkv(x).view(batch, num, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if keep is not None:
            k, v = keep(k, v)
        if cells is not None:
            q = q.gather(2, cells[:, None, :, None].expand(-1, self.num_heads, -1, q.shape[-1]))
        x = attend(q, k, v)
        return self.out(x.transpose(1, 2).reshape(batch, -1, width))  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Every cell attends to a text, whose keys and values are computed once a sample."""

    def __init__(self, width: int, text_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = Linear(width, width)
        self.kv = Linear(text_width, 2 * width)  # rows: keys, values
        self.out = Linear(width, width)

    def keys_values(self, features: Tensor) -> Tensor:
        """(B, 2, num_heads, L, D / num_heads) of a text's features (B, L, text_width)."""
        batch, length, _ = features.shape
        return self.kv(features).view(batch, length, 2, self.num_heads, -1).permute(0, 2, 3, 1, 4)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, keys_values: Tensor, mask: Tensor | None) -> Tensor:
        """Of (B, N, D); mask (B, L) is False at keys that are not seen."""
        batch, num, width = x.shape
        q = self.q(x).view(batch, num, self.num_heads, -1).transpose(1, 2)
        k, v = keys_values.unbind(1)
        x = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None])
        return self.out(x.transpose(1, 2).reshape(batch, num, width))  # type: ignore[no-any-return]


class LinearMlp(nn.Module):
    """Two layers a cell."""

    def __init__(self, width: int, ratio: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.first = Linear(width, ratio * width)
        self.second = Linear(ratio * width, width)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Of (B, N, D); the grid's size plays no part."""
        if self.activation == "gelu":
            return self.second(F.gelu(self.first(x)))  # type: ignore[no-any-return]
        # x * sigmoid(a x) = silu(a x) / a; both factors cost nothing inside the matrix products.
        a, first, second = GELU2_SLOPE, self.first, self.second
        hidden = F.silu(linear(x, a * first.weight, a * first.bias), inplace=not torch.is_grad_enabled())
        return linear(hidden, second.weight / a, second.bias)


class ConvolutionalMlp(nn.Module):
    """Two 3 x 3 convolutions over the grid."""

    def __init__(self, width: int, ratio: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.first = nn.Conv2d(width, ratio * width, 3, padding=1)
        self.second = nn.Conv2d(ratio * width, width, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Of (B, H * W, D) on a grid of this size."""
        hidden = self.first(x.view(x.shape[0], *size, -1).permute(0, 3, 1, 2))  # already channels last
        hidden = F.gelu(hidden) if self.activation == "gelu" else F.silu(GELU2_SLOPE * hidden) / GELU2_SLOPE
        return self.second(hidden).permute(0, 2, 3, 1).flatten(1, 2)  # type: ignore[no-any-return]
