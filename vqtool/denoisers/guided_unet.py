"""UNet denoiser of VQ-DDM's "noise" variant: guided diffusion's network over token numbers as grey values.

When to use it: to sample imported priors of that variant, and to train like them. A token k enters as the number
k / (K - 1), so neighbours in the codebook are similar inputs: with a sorted codebook that may help, else `unet` or
`transformer` is the better choice. No position embeddings: grids of any size; odd sides are rounded up on the way down
and cropped again on the way up. A residual block and an attention block are

    h = conv(silu(norm(x))) + linear(silu(time));  x = skip(x) + conv(silu(norm(h)));  x += out(attention(norm(x)))

and every part on the way down has a skip connection to its counterpart on the way up.
Differs from the paper: fresh networks have a second input that is 1 at masked cells, and a class where asked.
Cost: 3.1 billion multiplications a call on 16 x 16 cells at the published size.
Source: Hu et al. 2022 (arXiv:2112.01799); Dhariwal and Nichol 2021 (arXiv:2105.05233).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool.denoisers import Denoiser, EncodedCondition
from vqtool.denoisers._blocks import pick
from vqtool.products import Linear

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 32, "dim_mults": (1, 2), "num_blocks": 1, "num_heads": 2, "attention_levels": (1,)},
    "small": {"dim": 64, "dim_mults": (1, 2), "num_blocks": 2, "num_heads": 4, "attention_levels": (1,)},
    "base": {"dim": 64, "dim_mults": (1, 2, 4), "num_blocks": 2, "num_heads": 4, "attention_levels": (1, 2)},
    "large": {"dim": 128, "dim_mults": (1, 2, 4, 8), "num_blocks": 2, "num_heads": 1, "attention_levels": (2,)},
}
LEARNING_RATES = {"tiny": 1e-3, "small": 6e-4, "base": 4e-4, "large": 1e-4}
CONDITIONS = ("none", "class")
PARAMETERISATION = "evidence"
NUM_GROUPS = 32
CLASS_SCALE = 0.3  # std of the classes at the start, beside an embedded time of about 1


@dataclass(frozen=True)
class Config:
    """What a guided UNet is built from."""

    codebook_size: int
    grid_size: tuple[int, int]  # (H, W) cells of the training grids; the network takes any
    num_steps: int  # T
    dim: int  # channels of the first level, a multiple of 32
    dim_mults: tuple[int, ...] = (1, 2, 4, 8)  # channels of each level, in units of dim
    num_blocks: int = 2  # residual blocks of a level on the way down; one more on the way up
    num_heads: int = 1
    attention_levels: tuple[int, ...] = (2,)  # levels, from 0, whose residual blocks are followed by attention
    num_classes: int = 0  # 0: no class condition
    sees_mask: bool = True  # whether there is the second input


class _Convolution(nn.Conv2d):
    """3x3; of stride 2 on the way down."""

    def __init__(self, width_in: int, width: int, stride: int = 1) -> None:
        super().__init__(width_in, width, 3, stride, padding=1)

    def forward(self, x: Tensor, conditioning: Tensor | None = None) -> Tensor:
        return super().forward(x)


class _Up(_Convolution):
    """Twice the size, then a convolution."""

    def forward(self, x: Tensor, conditioning: Tensor | None = None) -> Tensor:
        return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Block(nn.Module):
    def __init__(self, width_in: int, width: int, time_width: int) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(NUM_GROUPS, width_in)
        self.first = _Convolution(width_in, width)
        self.time = Linear(time_width, width)
        self.second_norm = nn.GroupNorm(NUM_GROUPS, width)
        self.second = _Convolution(width, width)
        self.skip = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        h = self.first(F.silu(self.first_norm(x))) + self.time(conditioning)[..., None, None]
        return self.skip(x) + self.second(F.silu(self.second_norm(h)))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """Every cell of a level attends to every other; rows of qkv are heads, then q, k, v, then channels."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or width % num_heads:
            raise ValueError(f"{num_heads} heads of attention do not divide {width} channels")
        self.num_heads = num_heads
        self.norm = nn.GroupNorm(NUM_GROUPS, width)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        rows = self.norm(x).flatten(2).transpose(1, 2)  # (B, H * W, D)
        qkv = self.qkv(rows).unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        seen = F.scaled_dot_product_attention(*qkv.unbind(0)).transpose(1, 2).flatten(2)
        return x + self.out(seen).transpose(1, 2).view(x.shape)  # type: ignore[no-any-return]


class _Stage(nn.ModuleList):
    """Parts one after the other; on the way down the result also goes to the counterpart on the way up."""

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        for part in self:
            x = part(x, conditioning)
        return x


class Network(Denoiser):
    """The network."""

    code_tables = ()  # tokens enter as numbers, which other codes would not have

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.time = nn.Sequential(Linear(dim, 4 * dim), nn.SiLU(), Linear(4 * dim, 4 * dim))
        self.classes = nn.Embedding(config.num_classes + 1, 4 * dim) if config.num_classes else None
        widths = [dim * factor for factor in config.dim_mults]
        kept = self._build_down(widths)
        attention = _Attention(widths[-1], config.num_heads)
        blocks = [_Block(widths[-1], widths[-1], 4 * dim) for _ in range(2)]
        self.middle = _Stage([blocks[0], attention, blocks[1]])
        self._build_up(widths, kept)
        self.norm = nn.GroupNorm(NUM_GROUPS, widths[0])
        self.head = nn.Conv2d(widths[0], config.codebook_size, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=CLASS_SCALE)

    def _stage(self, level: int, width_in: int, width: int) -> list[nn.Module]:
        config = self.config
        attention = [_Attention(width, config.num_heads)] if level in config.attention_levels else []
        return [_Block(width_in, width, 4 * config.dim), *attention]

    def _build_down(self, widths: list[int]) -> list[int]:
        """The way down; returns the channels of what each stage makes."""
        kept = [self.config.dim]
        self.down = nn.ModuleList([_Stage([_Convolution(1 + self.config.sees_mask, self.config.dim)])])
        for level, width in enumerate(widths):
            for _ in range(self.config.num_blocks):
                self.down.append(_Stage(self._stage(level, kept[-1], width)))
                kept.append(width)
            if level + 1 < len(widths):
                self.down.append(_Stage([_Convolution(width, width, stride=2)]))
                kept.append(width)
        return kept

    def _build_up(self, widths: list[int], kept: list[int]) -> None:
        self.up = nn.ModuleList()
        below = widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            for number in range(self.config.num_blocks + 1):
                stage = self._stage(level, below + kept.pop(), width)
                below = width
                if level and number == self.config.num_blocks:
                    stage.append(_Up(width, width))
                self.up.append(_Stage(stage))

    @property
    def knows_mask(self) -> bool:
        """Whether there is the second input."""
        return bool(self.config.sees_mask)

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
        features = F.silu(self.norm(self._features(self._inputs(x_t), F.silu(conditioning))))  # (B, D, H, W)
        if cells is None:
            return self.head(features).permute(0, 2, 3, 1)  # type: ignore[no-any-return]
        around = F.unfold(features, 3, padding=1).transpose(1, 2)  # (B, H * W, 9 * D)
        return F.linear(pick(around, cells), self.head.weight.flatten(1), self.head.bias)

    def _inputs(self, x_t: Tensor) -> Tensor:
        """(B, 1 or 2, H, W): tokens as numbers in [0, 1], and where the mask is."""
        numbers: Tensor = x_t.to(self.head.weight.dtype) / max(1, self.config.codebook_size - 1)
        if not self.config.sees_mask:
            return numbers.unsqueeze(1)
        mask = x_t == self.config.codebook_size
        return torch.stack([numbers.masked_fill(mask, 0.0), mask.to(numbers.dtype)], dim=1)

    def _features(self, x: Tensor, conditioning: Tensor) -> Tensor:
        made: list[Tensor] = []
        for stage in self.down:
            x = stage(x, conditioning)
            made.append(x)
        x = self.middle(x, conditioning)
        for stage in self.up:
            twin = made.pop()
            height, width = twin.shape[-2:]
            x = stage(torch.cat([x[..., :height, :width], twin], dim=1), conditioning)
        return x

    def _embed_time(self, t: Tensor) -> Tensor:
        half = self.config.dim // 2
        frequencies = torch.exp(-math.log(1e4) / half * torch.arange(half, dtype=torch.float64, device=t.device))
        phases = (t.double() - 1)[:, None] * frequencies
        embedded = torch.cat([phases.cos(), phases.sin()], dim=-1).to(self.head.weight.dtype)
        return self.time(embedded)  # type: ignore[no-any-return]
