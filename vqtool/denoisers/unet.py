"""UNet denoiser of VQ-DDM: convolutions and linear attention over embedded tokens, at several resolutions.

When to use it: to sample imported priors of VQ-DDM, and to train like them. It has no position embeddings, so it works
on grids of any size. Odd sides are rounded up on the way down, and cropped again on the way up. A level is two residual
blocks and one linear attention,

    h = conv(x) + linear(mish(time));  x = skip(x) + conv(h);  x += gain * attention(x),  conv = mish(norm(conv3x3))

with softmax(keys) over the cells. Every level but the first has a skip connection to the same level on the way up.
Differs from the paper: fresh networks also know the mask, and a class where asked; and they softmax the queries over
the channels (Shen et al.): without, attention squares its input, and a small run at learning rate 3e-3 ended in NaN.
The noise variant of VQ-DDM, and so imported priors, add x_t to the logits ("residual"). New priors add the evidence of
x_t in closed form instead: after 300 steps on 64 tokens their bound was 1.2 nats a cell, with the residual 2.9.
Cost: 1.1 billion multiplications a call on 16 x 16 cells at dim 128 (117.6 M weights at K = 1024).
Source: Hu et al. 2022 (arXiv:2112.01799); Ho et al. 2020 (arXiv:2006.11239); Shen et al. 2021 (arXiv:1812.01243).
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool.denoisers import Denoiser, EncodedCondition
from vqtool.denoisers._blocks import pick
from vqtool.products import Linear

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 32, "dim_mults": (1, 2)},
    "small": {"dim": 48, "dim_mults": (1, 2, 4)},
    "base": {"dim": 64, "dim_mults": (1, 2, 4, 8)},
    "large": {"dim": 128, "dim_mults": (1, 2, 4, 8)},  # the published one
}
LEARNING_RATES = {"tiny": 1e-3, "small": 8e-4, "base": 4e-4, "large": 1e-4}
CONDITIONS = ("none", "class")
PARAMETERISATION = "evidence"
NUM_GROUPS = 8
NUM_HEADS, HEAD_WIDTH = 4, 32
TIME_SCALE = 4000.0  # (t - 1) / T times this is what the sinusoids see
CLASS_SCALE = 0.3  # std of the classes at the start, beside an embedded time of about 1


@dataclass(frozen=True)
class Config:
    """What a UNet is built from."""

    codebook_size: int
    grid_size: tuple[int, int]  # (H, W) cells of the training grids; the network takes any
    num_steps: int  # T
    dim: int  # channels of the first level, a multiple of 8
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)  # channels of each level, in units of dim
    num_classes: int = 0  # 0: no class condition
    num_inputs: int = 0  # rows of the token table: K, or K + 1 with the mask; 0 is K + 1
    bounded_attention: bool = True  # softmax the queries too; off in VQ-DDM


class _Convolution(nn.Sequential):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__(nn.Conv2d(width_in, width, 3, padding=1), nn.GroupNorm(NUM_GROUPS, width), nn.Mish())


class _Block(nn.Module):
    """Two convolutions, the time between them, and a way past them."""

    def __init__(self, width_in: int, width: int, time_width: int) -> None:
        super().__init__()
        self.time = Linear(time_width, width)
        self.first = _Convolution(width_in, width)
        self.second = _Convolution(width, width)
        self.skip = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        h = self.first(x) + self.time(conditioning)[..., None, None]
        return self.skip(x) + self.second(h)  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Linear attention: its cost grows with the number of cells, not with its square."""

    def __init__(self, width: int, *, bounded: bool) -> None:
        super().__init__()
        self.bounded = bounded
        self.qkv = nn.Conv2d(width, 3 * NUM_HEADS * HEAD_WIDTH, 1, bias=False)
        self.out = nn.Conv2d(NUM_HEADS * HEAD_WIDTH, width, 1)
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        q, k, v = self.qkv(x).view(batch, 3, NUM_HEADS, HEAD_WIDTH, height * width).unbind(1)
        q = q.softmax(-2) if self.bounded else q
        seen = v @ k.softmax(-1).transpose(-1, -2)  # (B, heads, values, keys)
        return x + self.gain * self.out((seen @ q).reshape(batch, -1, height, width))  # type: ignore[no-any-return]


class _Level(nn.Module):
    """Gives its grid in the size of the next level, and in its own."""

    def __init__(self, width_in: int, width: int, config: Config, resize: nn.Module) -> None:
        super().__init__()
        self.first = _Block(width_in, width, config.dim)
        self.second = _Block(width, width, config.dim)
        self.attention = _Attention(width, bounded=config.bounded_attention)
        self.resize = resize

    def forward(self, x: Tensor, conditioning: Tensor) -> tuple[Tensor, Tensor]:
        x = self.attention(self.second(self.first(x, conditioning), conditioning))
        return self.resize(x), x


class _Middle(nn.Module):
    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.first = _Block(width, width, config.dim)
        self.attention = _Attention(width, bounded=config.bounded_attention)
        self.second = _Block(width, width, config.dim)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        return self.second(self.attention(self.first(x, conditioning)), conditioning)  # type: ignore[no-any-return]


class Network(Denoiser):
    """The network."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        widths = [dim, *(dim * factor for factor in config.dim_mults)]
        steps = list(pairwise(widths))
        self.tokens = nn.Embedding(config.num_inputs or config.codebook_size + 1, dim)  # row K is the mask
        self.time = nn.Sequential(Linear(dim, 4 * dim), nn.Mish(), Linear(4 * dim, dim))
        self.classes = nn.Embedding(config.num_classes + 1, dim) if config.num_classes else None
        self.down = nn.ModuleList(
            _Level(below, width, config, nn.Conv2d(width, width, 3, 2, 1) if number < len(steps) else nn.Identity())
            for number, (below, width) in enumerate(steps, start=1)
        )
        self.middle = _Middle(widths[-1], config)
        self.up = nn.ModuleList(
            _Level(2 * width, below, config, nn.ConvTranspose2d(below, below, 4, 2, 1))
            for below, width in reversed(steps[1:])
        )
        self.last = _Convolution(widths[1], dim)
        self.head = Linear(dim, config.codebook_size)
        nn.init.zeros_(self.head.bias)  # but not the weight: with a small one the first steps teach the rest little
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=CLASS_SCALE)
        # A fifth faster at dim 128 on a CPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def knows_mask(self) -> bool:
        """Whether the table of tokens has a row for the mask."""
        return bool(len(self.tokens.weight) > self.config.codebook_size)

    @property
    def null_weights(self) -> tuple[tuple[str, int | None], ...]:
        """The last row of the classes."""
        return () if self.classes is None else (("classes.weight", -1),)

    def encode_condition(self, condition: Tensor) -> EncodedCondition:
        """What depends on the condition alone: (B,) class numbers, or (B, 0) nothing."""
        return EncodedCondition() if self.classes is None else EncodedCondition(self.classes(condition))

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Tensor | EncodedCondition | None = None, cells: Tensor | None = None
    ) -> Tensor:
        """Logits (B, H, W, K), or (B, n, K) at the wanted cells: see `Denoiser.forward`."""
        if isinstance(condition, Tensor):
            condition = self.encode_condition(condition)
        conditioning = self._embed_time(t)
        if condition is not None and condition.embedding is not None:
            conditioning = conditioning + condition.embedding
        features = self._features(self.tokens(x_t).permute(0, 3, 1, 2), F.mish(conditioning))  # (B, D, H, W)
        features = features.permute(0, 2, 3, 1)
        if cells is not None:
            features = features.flatten(1, 2)
            features = pick(features, cells)
        return self.head(features)  # type: ignore[no-any-return]

    def _features(self, x: Tensor, conditioning: Tensor) -> Tensor:
        made: list[Tensor] = []
        for level in self.down:
            x, kept = level(x, conditioning)
            made.append(kept)
        x = self.middle(x, conditioning)
        for level in self.up:
            x, _ = level(torch.cat([x, made.pop()], dim=1), conditioning)
            x = x[..., : made[-1].shape[-2], : made[-1].shape[-1]]
        return self.last(x)  # type: ignore[no-any-return]

    def _embed_time(self, t: Tensor) -> Tensor:
        # In float64: phases reach 4000, where float32 is wrong by 1e-4.
        half = self.config.dim // 2
        frequencies = torch.exp(-math.log(1e4) / (half - 1) * torch.arange(half, dtype=torch.float64, device=t.device))
        phases = ((t.double() - 1) / self.config.num_steps * TIME_SCALE)[:, None] * frequencies
        embedded = torch.cat([phases.sin(), phases.cos()], dim=-1).to(self.head.weight.dtype)
        return self.time(embedded)  # type: ignore[no-any-return]
