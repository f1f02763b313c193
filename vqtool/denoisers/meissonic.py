"""Meissonic's transformer, as published: masked grids of a caption, told how many calls are still to come.

When to use it: for the checkpoints of Meissonic and Monetico, and to go on training them. Positions of cells are turned
into queries and keys (rotary, a part of each head for rows and one for columns), so grids of any size work, with even
sides where the network halves them. With c = MLP([pooled text, sinusoids of five numbers of the picture]) and
e = MLP(sinusoids of the calls to come) + MLP(c) the first layers keep text and cells in streams of their own,

    x += g1 * attention(norm(x) * (1 + s1) + b1);  x += g2 * mlp(norm(x) * (1 + s2) + b2)

with (b1, s1, g1, b2, s2, g2) linear in silu(e) and one attention over both; the others have one stream, and add
g * W [attention(...), gelu(mlp(...))]. The pooled text comes as one more row of the features. Its makers trained it
with times that have nothing to do with those of sampling; what it has learned of them is what it is asked for here.
Cost: about 24 * (num_double + num_single / 2) * width^2 * (H * W + L) floating-point operations a call.
Source: Bai et al. 2024 (arXiv:2410.08261); github.com/viiika/Meissonic, whose numbers are golden.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool.denoisers import EncodedCondition
from vqtool.denoisers._blocks import pick
from vqtool.denoisers.amused import Resample, RmsNorm, TextNetwork, micro_embedding
from vqtool.products import Linear, linear_gelu

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "num_double": 1, "num_single": 1, "width": 64, "num_heads": 2, "axes": (8, 12, 12), "text_width": 32,
        "pooled_width": 16,
    }
}  # fmt: skip
CONDITIONS = ()  # the features of CLIP, which come with an imported prior
PARAMETERISATION = "direct"
EPSILON = 1e-6  # of all norms
SINUSOIDS = 256  # of each number of a picture, and of the calls to come
CALL = 1000.0  # what a call counts for in the sinusoids
MLP_RATIO = 4
MAX_PERIOD = 10_000.0


@dataclass(frozen=True)
class Config:
    """What a network is built from."""

    codebook_size: int
    grid_size: tuple[int, int]  # (H, W) cells of the training grids
    num_steps: int  # T of the kernel; t is told as t - 1 calls to come
    num_double: int  # layers with two streams
    num_single: int  # layers with one
    width: int
    num_heads: int
    axes: tuple[int, int, int]  # numbers of a head that are turned by nothing, by the row and by the column
    text_width: int
    pooled_width: int
    micro_conditions: tuple[float, ...] = (1024.0, 1024.0, 0.0, 0.0, 6.0)  # width, height, crop, crop, aesthetic score
    halves: bool = False  # whether the layers see a grid of half the sides

    learned_null = False

    def __post_init__(self) -> None:
        if self.width != self.num_heads * sum(self.axes) or any(part % 2 for part in self.axes) or self.width < 1:
            raise ValueError(f"{self.num_heads} heads of {self.axes} numbers, even ones, do not make {self.width}")


def rotations(size: tuple[int, int], axes: tuple[int, ...], num_before: int = 0) -> Tensor:
    """(2, num_before + H * W, D / 2) float32: cosines and sines that queries and keys are turned by.

    Args:
        size: (H, W) cells; before them stand rows without a place, which are not turned.
        axes: how many numbers of a head the first axis, which is always 0, the row and the column turn.
        num_before: how many rows stand before the cells.
    """
    height, width = size
    places = torch.cartesian_prod(torch.zeros(1).long(), torch.arange(height), torch.arange(width))
    angles = []
    for place, part in zip(places.double().unbind(-1), axes, strict=True):
        frequencies = MAX_PERIOD ** (-torch.arange(0, part, 2, dtype=torch.float64) / part)
        angles.append(place[:, None] * frequencies)
    phases = F.pad(torch.cat(angles, dim=1), (0, 0, num_before, 0))
    return torch.stack([phases.cos(), phases.sin()]).float()


def turn(x: Tensor, rotation: Tensor) -> Tensor:
    """Queries or keys (B, heads, N, D), neighbours turned together by (2, N, D / 2)."""
    cos, sin = rotation.to(x.dtype)
    first, second = x.view(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1).flatten(-2)


def _norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=EPSILON), 1 + scale)


class _Layer(nn.Module):
    """What both kinds of layers have: scales, shifts and gates, and queries, keys and values."""

    def __init__(self, config: Config, num_parts: int) -> None:
        super().__init__()
        width, self.num_heads, self.num_parts = config.width, config.num_heads, num_parts
        self.modulation = Linear(width, num_parts * width)
        self.qkv = Linear(width, 3 * width)  # rows: queries, keys, values
        self.q_norm = RmsNorm(sum(config.axes), EPSILON)
        self.k_norm = RmsNorm(sum(config.axes), EPSILON)
        self.first = Linear(width, MLP_RATIO * width)

    def modulate(self, time: Tensor) -> tuple[Tensor, ...]:
        """The parts (B, 1, width) of an activated embedding (B, width)."""
        return self.modulation(time)[:, None].chunk(self.num_parts, dim=-1)  # type: ignore[no-any-return]

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, heads, N, D) of (B, N, width)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.q_norm(q), self.k_norm(k), v


def _attend(q: Tensor, k: Tensor, v: Tensor, rotation: Tensor) -> Tensor:
    """(B, N, width)."""
    return F.scaled_dot_product_attention(turn(q, rotation), turn(k, rotation), v).transpose(1, 2).flatten(2)


class _Stream(_Layer):
    """Text or cells in a layer of two streams."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, 6)
        self.out = Linear(config.width, config.width)
        self.second = Linear(MLP_RATIO * config.width, config.width)

    def begin(self, x: Tensor, parts: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values."""
        return self.heads(_norm(x, parts[1], parts[0]))

    def end(self, x: Tensor, seen: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        """What comes out, of what attention has seen."""
        x = x + parts[2] * self.out(seen)
        hidden = linear_gelu(_norm(x, parts[4], parts[3]), self.first.weight, self.first.bias)
        return x + parts[5] * self.second(hidden)  # type: ignore[no-any-return]


class _Double(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.text = _Stream(config)
        self.cells = _Stream(config)

    def forward(self, text: Tensor, cells: Tensor, time: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
        of_text, of_cells = self.text.modulate(time), self.cells.modulate(time)
        heads = zip(self.text.begin(text, of_text), self.cells.begin(cells, of_cells), strict=True)
        q, k, v = (torch.cat(pair, dim=2) for pair in heads)
        seen = torch.split(_attend(q, k, v, rotation), [text.shape[1], cells.shape[1]], dim=1)
        return self.text.end(text, seen[0], of_text), self.cells.end(cells, seen[1], of_cells)


class _Single(_Layer):
    def __init__(self, config: Config) -> None:
        super().__init__(config, 3)
        self.out = Linear((1 + MLP_RATIO) * config.width, config.width)

    def forward(self, x: Tensor, time: Tensor, rotation: Tensor) -> Tensor:
        shift, scale, gate = self.modulate(time)
        normed = _norm(x, scale, shift)
        hidden = linear_gelu(normed, self.first.weight, self.first.bias)
        return x + gate * self.out(torch.cat([_attend(*self.heads(normed), rotation), hidden], dim=-1))  # type: ignore[no-any-return]


def _mlp(inner: int, width: int, *, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(Linear(inner, width, bias=bias), nn.SiLU(), Linear(width, width, bias=bias))


class Network(TextNetwork):
    """The network."""

    counts_calls = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.tokens = nn.Embedding(config.codebook_size + 1, width)  # the last row is the mask
        self.token_norm = RmsNorm(width, EPSILON)
        self.token_out = Linear(width, width, bias=False)
        self.text = Linear(config.text_width, width)
        self.text_norm = RmsNorm(width, EPSILON)
        numbers = SINUSOIDS * len(config.micro_conditions)
        self.picture = _mlp(config.pooled_width + numbers, width, bias=False)
        self.time = _mlp(SINUSOIDS, width)
        self.conditioning = _mlp(width, width)
        self.halving = Resample(width, EPSILON, doubles=False) if config.halves else None
        self.into_norm = RmsNorm(width, EPSILON)
        self.into = Linear(width, width, bias=False)
        self.two_streams = nn.ModuleList(_Double(config) for _ in range(config.num_double))
        self.one_stream = nn.ModuleList(_Single(config) for _ in range(config.num_single))
        self.back_norm = RmsNorm(width, EPSILON)
        self.back = Linear(width, width, bias=False)
        self.doubling = Resample(width, EPSILON, doubles=True) if config.halves else None
        self.head_in = Linear(width, width, bias=False)
        self.head_norm = RmsNorm(width, EPSILON)
        self.head_out = Linear(width, config.codebook_size, bias=False)

    def encode_condition(self, condition: Tensor, micro: Tensor | None = None) -> EncodedCondition:
        """The rows of a text, and what a picture is to be.

        Args:
            condition: (B, L + 1, at least text_width) states of texts, the last row their pooled text.
            micro: (B, n) numbers of the pictures; None for those of the config.

        Raises:
            ValueError: the condition is of another shape.
        """
        states, picture = self.split(condition, micro, SINUSOIDS)
        return EncodedCondition(self.picture(picture), self.text_norm(self.text(states)))

    def embed(self, t: Tensor, conditioning: Tensor) -> Tensor:
        """(B, width), of (B,) times in [1, T] and what `encode_condition` made."""
        time = micro_embedding(CALL * (t[:, None] - 1), SINUSOIDS).to(conditioning.dtype)
        return self.time(time) + self.conditioning(conditioning)  # type: ignore[no-any-return]

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Tensor | EncodedCondition | None = None, cells: Tensor | None = None
    ) -> Tensor:
        """Logits (B, H, W, K), or (B, n, K) at the wanted cells: see `Denoiser.forward`."""
        conditioning, text = self.read(x_t, condition)
        time = F.silu(self.embed(t, conditioning))
        x = self.token_out(self.token_norm(self.tokens(x_t)))  # (B, H, W, D)
        x = x if self.halving is None else self.halving(x)
        size, num_text = x.shape, text.shape[1]
        rotation = rotations((size[1], size[2]), self.config.axes, num_text).to(x.device)
        rows = self.into(self.into_norm(x)).flatten(1, 2)
        for double in self.two_streams:
            text, rows = double(text, rows, time, rotation)
        rows = torch.cat([text, rows], dim=1)
        for single in self.one_stream:
            rows = single(rows, time, rotation)
        x = self.back(self.back_norm(rows[:, num_text:])).view(size)
        x = x if self.doubling is None else self.doubling(x)
        x = x if cells is None else pick(x.flatten(1, 2), cells)
        return self.head_out(self.head_norm(self.head_in(x)))  # type: ignore[no-any-return]
