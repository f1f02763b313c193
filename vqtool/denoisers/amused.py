"""aMUSEd's U-ViT, as published: masked grids of a caption, and no time.

When to use it: for its checkpoints, and to go on training them. Positions come from convolutions at both ends alone, so
grids of any size work, with even sides where the network halves them.
A text is E = rms(W states); c = MLP([pooled, sinusoids of five numbers of the picture]). At both ends stand pairs of

    x = y * (1 + s) + b,  y = x + W2 grn(gelu(W1 rms(depthwise3x3(x)))),  (s, b) = W silu(c)
    x += cross(rms(x), W silu(E)) twice

and in between layers of self-attention, cross-attention to E and a GEGLU, whose norms are scaled and shifted by c. The
pooled text comes as one more row of the features; the null condition is the empty caption.
Cost: about 30 * num_layers * width^2 * H * W floating-point operations a call, and attention.
Source: Patil et al. 2024 (arXiv:2401.01808); diffusers' UVit2DModel, whose numbers are golden.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool.denoisers import Denoiser, EncodedCondition
from vqtool.denoisers._blocks import pick
from vqtool.products import Linear, attend

_TINY = {"token_width": 32, "outer_width": 64, "num_outer_blocks": 1, "num_outer_heads": 2, "mlp_width": 128}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"num_layers": 2, "width": 64, "num_heads": 2, "text_width": 32, "pooled_width": 16, **_TINY}
}
CONDITIONS = ()  # the features of CLIP, which come with an imported prior
PARAMETERISATION = "direct"
GRN_EPSILON = 1e-6  # also of the norms of attention at both ends
MAX_PERIOD = 10_000.0


@dataclass(frozen=True)
class Config:
    """What a network is built from."""

    codebook_size: int
    grid_size: tuple[int, int]  # (H, W) cells of the training grids
    num_steps: int  # T of the kernel; the network is not told t
    num_layers: int
    width: int
    num_heads: int
    mlp_width: int
    token_width: int
    outer_width: int
    num_outer_blocks: int
    num_outer_heads: int
    text_width: int
    pooled_width: int
    micro_width: int = 256  # of the sinusoids of each of the five numbers
    micro_conditions: tuple[float, ...] = (256.0, 256.0, 0.0, 0.0, 6.0)  # width, height, crop, crop, aesthetic score
    epsilon: float = 1e-6
    halves: bool = False  # whether the layers see a grid of half the sides

    learned_null = False

    def __post_init__(self) -> None:
        for width, heads in ((self.width, self.num_heads), (self.outer_width, self.num_outer_heads)):
            if not heads or width % heads:
                raise ValueError(f"a width of {width} cannot be shared by {heads} heads")
        if self.micro_width < 2 or self.micro_width % 2 or not self.micro_conditions:
            raise ValueError(f"{self.micro_width} sinusoids of {len(self.micro_conditions)} numbers are not possible")


class RmsNorm(nn.Module):
    """x / rms(x) * weight over the last axis."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.epsilon)


def micro_embedding(numbers: Tensor, width: int) -> Tensor:
    """(B, n * width) of (B, n) numbers: cosines and sines of frequencies from 1 down to nearly 1 / MAX_PERIOD."""
    half = width // 2
    frequencies = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, device=numbers.device) / half)
    angles = numbers.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).flatten(1)


class _Attention(nn.Module):
    """Attention without biases; keys and values may have been made before."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = Linear(width, width, bias=False)
        self.k = Linear(width, width, bias=False)
        self.v = Linear(width, width, bias=False)
        self.out = Linear(width, width, bias=False)

    def keys_values(self, x: Tensor) -> Tensor:
        """(B, 2, N, D) of (B, N, D)."""
        return torch.stack([self.k(x), self.v(x)], dim=1)

    def forward(self, x: Tensor, keys_values: Tensor) -> Tensor:
        """(B, N, D), of keys and values (B, 2, M, D)."""
        batch, num, width = x.shape
        q = self.q(x).view(batch, num, self.num_heads, -1).transpose(1, 2)
        k, v = keys_values.view(batch, 2, -1, self.num_heads, width // self.num_heads).transpose(2, 3).unbind(1)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _Residual(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.outer_width
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = RmsNorm(width, config.epsilon)
        self.first = Linear(width, 4 * width, bias=False)
        self.gamma = nn.Parameter(torch.zeros(4 * width))
        self.beta = nn.Parameter(torch.zeros(4 * width))
        self.second = Linear(4 * width, width, bias=False)
        self.modulation = Linear(config.width, 2 * width, bias=False)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        """Of (B, H, W, D)."""
        y = self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = F.gelu(self.first(self.norm(y)))
        size = torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True)
        response = size / (size.mean(-1, keepdim=True) + GRN_EPSILON)
        y = x + self.second(self.gamma * (y * response) + self.beta + y)
        scale, shift = self.modulation(conditioning)[:, None, None].chunk(2, dim=-1)
        return torch.addcmul(shift, y, 1 + scale)


class _Outer(nn.Module):
    """One pair of the convolutions and cross-attentions at both ends."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.outer_width
        self.residual = _Residual(config)
        self.text = Linear(config.width, width, bias=False) if width != config.width else None
        self.norm1 = RmsNorm(width, GRN_EPSILON)
        self.attn1 = _Attention(width, config.num_outer_heads)
        self.norm2 = RmsNorm(width, GRN_EPSILON)
        self.attn2 = _Attention(width, config.num_outer_heads)

    def keys_values(self, text: Tensor) -> Iterator[Tensor]:
        """Those of both attentions."""
        own = text if self.text is None else self.text(F.silu(text))
        yield self.attn1.keys_values(own)
        yield self.attn2.keys_values(own)

    def forward(self, x: Tensor, conditioning: Tensor, texts: Iterator[Tensor]) -> Tensor:
        """Of (B, H, W, D)."""
        x = self.residual(x, conditioning)
        rows = x.flatten(1, 2)
        rows = rows + self.attn1(self.norm1(rows), next(texts))
        rows = rows + self.attn2(self.norm2(rows), next(texts))
        return rows.view_as(x)  # type: ignore[no-any-return]


class _Modulated(nn.Module):
    """A norm, scaled and shifted by the conditioning."""

    def __init__(self, norm: nn.Module, width: int) -> None:
        super().__init__()
        self.norm = norm
        self.modulation = Linear(width, 2 * width, bias=False)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        scale, shift = self.modulation(conditioning)[:, None].chunk(2, dim=-1)
        return torch.addcmul(shift, self.norm(x), 1 + scale)


class _Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width, epsilon = config.width, config.epsilon
        self.norm1 = _Modulated(RmsNorm(width, epsilon), width)
        self.attn1 = _Attention(width, config.num_heads)
        self.norm2 = _Modulated(RmsNorm(width, epsilon), width)
        self.attn2 = _Attention(width, config.num_heads)
        self.norm3 = _Modulated(nn.LayerNorm(width, epsilon, bias=False), width)
        self.first = Linear(width, 2 * config.mlp_width, bias=False)
        self.second = Linear(config.mlp_width, width, bias=False)

    def forward(self, x: Tensor, conditioning: Tensor, keys_values: Tensor) -> Tensor:
        normed = self.norm1(x, conditioning)
        x = x + self.attn1(normed, self.attn1.keys_values(normed))
        x = x + self.attn2(self.norm2(x, conditioning), keys_values)
        value, gate = self.first(self.norm3(x, conditioning)).chunk(2, dim=-1)
        return x + self.second(value * F.gelu(gate))  # type: ignore[no-any-return]


class Resample(nn.Module):
    """A norm and a convolution that halves or doubles the sides."""

    def __init__(self, width: int, epsilon: float, *, doubles: bool) -> None:
        super().__init__()
        kind = nn.ConvTranspose2d if doubles else nn.Conv2d
        self.norm = RmsNorm(width, epsilon)
        self.conv = kind(width, width, 2, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, H', W', D)."""
        return self.conv(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


class TextNetwork(Denoiser):
    """A network of captions, whose head has no bias."""

    stretches = True
    text: nn.Linear  # that states pass first

    def set_frequencies(self, frequencies: Tensor) -> None:
        """Nothing: the head has no bias."""

    def split(self, condition: Tensor, micro: Tensor | None, sinusoids: int) -> tuple[Tensor, Tensor]:
        """States (B, L, text_width); pooled texts and what pictures are to be (B, pooled_width + n * sinusoids).

        Args:
            condition: (B, L + 1, the larger of text_width and pooled_width) features.
            micro: (B, n) numbers of the pictures; None for those of the config.
            sinusoids: that each number becomes.

        Raises:
            ValueError: the condition is of another shape.
        """
        config, least = self.config, max(self.config.text_width, self.config.pooled_width)
        if condition.ndim != 3 or condition.shape[-1] != least:
            raise ValueError(f"features (B, L + 1, {least}) are needed, not {tuple(condition.shape)}")
        features = condition.to(self.text.weight.dtype)
        if micro is None:
            micro = torch.tensor(config.micro_conditions, device=features.device).expand(len(features), -1)
        numbers = micro_embedding(micro, sinusoids).to(features.dtype)
        pooled = features[:, -1, : config.pooled_width]
        return features[:, :-1, : config.text_width], torch.cat([pooled, numbers], dim=1)

    def read(self, x_t: Tensor, condition: Tensor | EncodedCondition | None) -> tuple[Tensor, Tensor]:
        """Both parts of an encoded text: of the one that is given, else of zeros."""
        if condition is None:
            least = max(self.config.text_width, self.config.pooled_width)
            condition = torch.zeros(x_t.shape[0], 2, least, device=x_t.device)
        encoded = self.encode_condition(condition) if isinstance(condition, Tensor) else condition
        if encoded.embedding is None or encoded.keys_values is None:
            raise ValueError("this network was made for a text, and none is given")
        return encoded.embedding, encoded.keys_values


class Network(TextNetwork):
    """The network."""

    sees_time = False

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width, outer, epsilon = config.width, config.outer_width, config.epsilon
        self.tokens = nn.Embedding(config.codebook_size + 1, config.token_width)  # the last row is the mask
        self.token_norm = RmsNorm(config.token_width, epsilon)
        self.token_out = Linear(config.token_width, outer, bias=False)
        self.text = Linear(config.text_width, width, bias=False)
        self.text_norm = RmsNorm(width, epsilon)
        numbers = config.micro_width * len(config.micro_conditions)
        self.condition_in = Linear(config.pooled_width + numbers, width, bias=False)
        self.condition_out = Linear(width, width, bias=False)
        self.halving = Resample(outer, epsilon, doubles=False) if config.halves else None
        self.down = nn.ModuleList(_Outer(config) for _ in range(config.num_outer_blocks))
        self.into_norm = RmsNorm(outer, epsilon)
        self.into = Linear(outer, width, bias=False)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))
        self.back_norm = RmsNorm(width, epsilon)
        self.back = Linear(width, outer, bias=False)
        self.up = nn.ModuleList(_Outer(config) for _ in range(config.num_outer_blocks))
        self.doubling = Resample(outer, epsilon, doubles=True) if config.halves else None
        self.head_in = Linear(outer, config.token_width, bias=False)
        self.head_norm = RmsNorm(config.token_width, epsilon)
        self.head_out = Linear(config.token_width, config.codebook_size, bias=False)

    def encode_condition(self, condition: Tensor, micro: Tensor | None = None) -> EncodedCondition:
        """The text as every attention needs it, and the conditioning.

        Args:
            condition: (B, L + 1, at least text_width) states of texts, the last row their pooled text.
            micro: (B, n) numbers of the pictures; None for those of the config.

        Raises:
            ValueError: the condition is of another shape.
        """
        states, picture = self.split(condition, micro, self.config.micro_width)
        conditioning = self.condition_out(F.silu(self.condition_in(picture)))
        text = self.text_norm(self.text(states))
        parts = [part for outer in self._outer() for part in outer.keys_values(text)]
        parts += [layer.get_submodule("attn2").keys_values(text) for layer in self.layers]  # type: ignore[operator]
        return EncodedCondition(conditioning, torch.cat([part.flatten(1) for part in parts], dim=1))

    def _outer(self) -> Iterator[_Outer]:
        for blocks in (self.down, self.up):
            yield from blocks  # type: ignore[misc]

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Tensor | EncodedCondition | None = None, cells: Tensor | None = None
    ) -> Tensor:
        """Logits (B, H, W, K), or (B, n, K) at the wanted cells: see `Denoiser.forward`; t is not looked at."""
        conditioning, keys_values = self.read(x_t, condition)
        outer, layers = self._texts(keys_values)
        conditioning = F.silu(conditioning)
        x = self.token_out(self.token_norm(self.tokens(x_t)))  # (B, H, W, D)
        x = x if self.halving is None else self.halving(x)
        for block in self.down:
            x = block(x, conditioning, outer)
        size = x.shape
        rows = self.into(self.into_norm(x)).flatten(1, 2)
        for layer, text in zip(self.layers, layers, strict=True):
            rows = layer(rows, conditioning, text)
        x = self.back(self.back_norm(rows)).view(size)
        for block in self.up:
            x = block(x, conditioning, outer)
        x = x if self.doubling is None else self.doubling(x)
        x = x if cells is None else pick(x.flatten(1, 2), cells)
        return self.head_out(self.head_norm(self.head_in(x)))  # type: ignore[no-any-return]

    def _texts(self, keys_values: Tensor) -> tuple[Iterator[Tensor], list[Tensor]]:
        """The keys and values of the attentions at both ends, in turn, and those of the layers: (B, 2, L, D) each."""
        config = self.config
        widths = [config.outer_width] * (4 * config.num_outer_blocks) + [config.width] * config.num_layers
        length = keys_values.shape[1] // (2 * sum(widths))
        parts = torch.split(keys_values, [2 * length * width for width in widths], dim=1)
        shaped = [part.view(part.shape[0], 2, length, width) for part, width in zip(parts, widths, strict=True)]
        return iter(shaped[: 4 * config.num_outer_blocks]), shaped[4 * config.num_outer_blocks :]
