"""The transformers of VQ-Diffusion, and the time-free one of Unleashing Transformers, as published.

When to use it: for their checkpoints, and for comparisons with them; `transformer` is the better start for new priors.
A cell is its token's embedding plus one for its row and one for its column (or one of its own, `positions="flat"`).
A block is

    x += attention(norm1(x, t));  x += cross(norm2(x, t), text);  x += mlp(norm3(x))

where norm(x, t) is LayerNorm(x) * (1 + scale(t)) + shift(t), with a table of T rows (or sinusoids) of its own. Without
a text the cross-attention is left out; with classes norm3 depends on the class as norm1 does on t; without time norm1
is a plain LayerNorm. The MLP has two layers a cell, or two 3 x 3 convolutions over the grid.
The published ImageNet and FFHQ networks have position tables for 32 x 32 cells but grids of 16 x 16: they use the first
256 positions in row order, so that cell 17 gets row 0, column 17 (`table_size`). On grids of another size than those
trained on, positions are interpolated.
The keys and values of a text and the scales and shifts of a class are computed once a sample. The null condition is a
learned one (`learned_null`: the class after the last, or a text of zeros), else the mean of the classes, or the
features that the caller computes for an empty text.
Cost: (24 to 30) * num_layers * width^2 * H * W floating-point operations a call, and attention.
Source: Gu et al. 2022 (arXiv:2111.14822); Tang et al. 2022 (arXiv:2205.16007); Bond-Taylor et al. 2022
(arXiv:2111.12701). Weights start as in VQ-Diffusion's code, N(0, .02^2); Unleashing Transformers defines the same and
never applies it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool.denoisers import Denoiser, EncodedCondition, add_classes
from vqtool.denoisers._blocks import (
    TIME_SCALE,
    AdaptiveNorm,
    ConvolutionalMlp,
    CrossAttention,
    LinearMlp,
    SelfAttention,
    normalise,
    pick,
    resized_places,
    sinusoids,
)
from vqtool.denoisers._cache import Cache, enter, leave
from vqtool.errors import MismatchError, size_text
from vqtool.products import Keep, Linear

_CONVOLUTIONAL = {"width": 512, "num_heads": 16, "mlp": "conv"}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"num_layers": 4, "width": 128, "num_heads": 4},
    "small": {"num_layers": 6, "width": 256, "num_heads": 8},
    "s": {"num_layers": 18, "width": 192, "num_heads": 16, "mlp": "conv", "mlp_ratio": 2},  # VQ-Diffusion-S
    "b": {"num_layers": 19, "width": 1024, "num_heads": 16},  # VQ-Diffusion-B: COCO, CUB-200
    "l": {"num_layers": 36, "width": 1408, "num_heads": 16},  # ITHQ
    "imagenet": {"num_layers": 24, **_CONVOLUTIONAL},
    "ffhq": {"num_layers": 20, **_CONVOLUTIONAL},
    "unleashing": {
        "num_layers": 24,
        "width": 512,
        "num_heads": 8,
        "time": "none",
        "positions": "flat",
        "activation": "gelu",
        "head_bias": False,
    },
}
LEARNING_RATES = {
    "tiny": 1e-3,
    "small": 6e-4,
    "s": 4.5e-4,
    "b": 2e-4,
    "l": 1e-4,
    "imagenet": 4.5e-4,
    "ffhq": 4.5e-4,
    "unleashing": 2e-4,
}
CONDITIONS = ("none", "class")
TAKES_FEATURES = True  # of captions, by a text encoder
PARAMETERISATION = "direct"
LOSS = {"loss": "bound", "times": "importance"}  # 4.0 bits a token of digits after 1,200 steps; the usual one left 5.5
INITIAL_SCALE = 0.02  # std of fresh weights
FULL_LENGTH = 16  # numbers in a vector of AVX-512: attention to 77 keys takes 1.7 times as long as to 80
_CHOICES = {
    "mlp": ("linear", "conv"),
    "activation": ("gelu2", "gelu"),
    "time": ("learned", "sinusoidal", "none"),
    "positions": ("axial", "flat"),
}


@dataclass(frozen=True)
class Config:
    """What a network is built from."""

    codebook_size: int
    grid_size: tuple[int, int]  # (H, W) cells of the training grids
    num_steps: int  # T
    num_layers: int
    width: int
    num_heads: int
    mlp: str = "linear"  # or "conv"
    mlp_ratio: int = 4
    activation: str = "gelu2"  # x * sigmoid(1.702 x), or "gelu"
    time: str = "learned"  # "sinusoidal", or "none"
    positions: str = "axial"  # or "flat"
    table_size: tuple[int, int] | None = None  # (rows, columns) of the position tables; None: grid_size
    head_bias: bool = True
    num_classes: int = 0  # 0: no class condition
    text_width: int = 0  # of the features of a text; 0: no text condition
    text_length: int = 0  # of the learned null text
    learned_null: bool = True  # whether the null condition has weights of its own

    def __post_init__(self) -> None:
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} must be one of {', '.join(choices)}, is {getattr(self, field)!r}")
        if not self.num_heads or self.width % self.num_heads:
            raise ValueError(f"a width of {self.width} cannot be shared by {self.num_heads} heads")
        if self.num_classes and self.text_width:
            raise ValueError("the condition is a class or a text, not both")
        rows, columns = self.tables
        if rows * columns < self.grid_size[0] * self.grid_size[1]:
            raise ValueError(f"tables for {rows}x{columns} positions are too small for grids of {self.grid_size}")

    @property
    def tables(self) -> tuple[int, int]:
        """(rows, columns) of the position tables."""
        return self.table_size or self.grid_size


def _timed_norm(config: Config) -> nn.Module:
    if config.time == "none":
        return nn.LayerNorm(config.width)
    return AdaptiveNorm(config.width, config.num_steps if config.time == "learned" else 0)


class _Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width, heads = config.width, config.num_heads
        self.attention_norm = _timed_norm(config)
        self.attention = SelfAttention(width, heads)
        self.cross_norm = _timed_norm(config) if config.text_width else None
        self.cross = CrossAttention(width, config.text_width, heads) if config.text_width else None
        rows = config.num_classes + config.learned_null
        self.mlp_norm = AdaptiveNorm(width, rows) if config.num_classes else nn.LayerNorm(width)
        mlp = ConvolutionalMlp if config.mlp == "conv" else LinearMlp
        self.mlp = mlp(width, config.mlp_ratio, config.activation)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        modulation: Tensor | None,
        keys_values: Tensor | None,
        mask: Tensor | None,
        *,
        grid_size: tuple[int, int],
        cells: Tensor | None = None,
        keep: Keep | None = None,
    ) -> Tensor:
        """The next (B, N, D); with `cells` (B, n) only those of it, (B, n, D)."""
        answers = self.attention(normalise(self.attention_norm, x, time), cells, keep)
        x = answers + (x if cells is None else pick(x, cells))
        if self.cross is not None:
            x = x + self.cross(normalise(self.cross_norm, x, time), keys_values, mask)
        normed = self.mlp_norm(x) if modulation is None else self.mlp_norm(x, modulation)
        return x + self.mlp(normed, grid_size)  # type: ignore[no-any-return]


class Network(Denoiser):
    """The network."""

    called_apart = ("cross.keys_values", "mlp_norm.modulate_class")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width = config.width
        rows, columns = config.tables
        self.tokens = nn.Embedding(config.codebook_size + 1, width)  # the last row is the mask
        if config.positions == "flat":
            self.positions = nn.Parameter(torch.zeros(rows * columns, width))
        else:
            self.rows = nn.Parameter(torch.zeros(rows, width))
            self.columns = nn.Parameter(torch.zeros(columns, width))
        has_null_text = config.text_width > 0 and config.learned_null
        self.null_text = nn.Parameter(torch.randn(config.text_length, config.text_width)) if has_null_text else None
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width)
        self.head = Linear(width, config.codebook_size, bias=config.head_bias)
        self._initialise()

    def _initialise(self) -> None:
        for part in self.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                nn.init.normal_(part.weight, std=INITIAL_SCALE)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)
        for table in [self.positions] if self.config.positions == "flat" else [self.rows, self.columns]:
            nn.init.normal_(table, std=INITIAL_SCALE)

    @property
    def caches(self) -> bool:  # type: ignore[override]
        """Whether cells can be computed without their neighbours: not by convolutions."""
        return bool(self.config.mlp == "linear")

    @property
    def has_learned_null(self) -> bool:
        """Whether a text of zeros stands for a null text with weights of its own."""
        return self.null_text is not None

    @property
    def null_weights(self) -> tuple[tuple[str, int | None], ...]:
        """The null text, or the last row of every block's classes."""
        if self.null_text is not None:
            return (("null_text", None),)
        if not self.config.num_classes or not self.config.learned_null:
            return ()
        return tuple((f"blocks.{number}.mlp_norm.table.weight", -1) for number in range(len(self.blocks)))

    def _silence(self, name: str, tensor: Tensor) -> None:
        if name.endswith("mlp_norm.linear.weight"):  # scales and shifts begin as those of the plain LayerNorm
            tensor.zero_()

    @torch.no_grad()
    def take_over(self, old: Denoiser) -> None:
        """Take the weights of another network: see `Denoiser.take_over`."""
        was, now = (size_text(network.config.grid_size) for network in (old, self))
        if was != now:
            raise MismatchError(
                f"the grids are {now}, but this prior's denoiser, vq-diffusion, knows the positions of {was} only: "
                "encode images at that size"
            )
        super().take_over(old)
        for mine, theirs in zip(self.blocks, old.get_submodule("blocks").children(), strict=True):
            norm, plain = mine.get_submodule("mlp_norm"), theirs.get_submodule("mlp_norm")
            if isinstance(norm, AdaptiveNorm) and isinstance(plain, nn.LayerNorm):
                norm.linear.bias.copy_(torch.cat([plain.weight - 1, plain.bias]))

    def _fit(self, name: str, theirs: Tensor, mine: Tensor, old: Denoiser) -> Tensor:
        if name.endswith("mlp_norm.table.weight") and theirs.shape != mine.shape:
            learned = old.config.learned_null
            known = theirs[:-1] if learned else theirs
            return add_classes(known, theirs[-1] if learned else theirs.mean(0), len(mine))
        return super()._fit(name, theirs, mine, old)

    def encode_condition(self, condition: Tensor) -> EncodedCondition:
        """The part of the computation that depends on the condition alone.

        Args:
            condition: (B,) int64 numbers of classes, num_classes for none; (B, L, text_width) features of texts, zeros
                for none; or (B, 0) nothing.

        Raises:
            ValueError: it is not what the network was made for.
        """
        if self.config.num_classes:
            norms = (block.mlp_norm for block in self.blocks)
            made = [norm.modulate_class(condition) for norm in norms if isinstance(norm, AdaptiveNorm)]
            return EncodedCondition(torch.cat(made, dim=1))
        if not self.config.text_width:
            return EncodedCondition()
        if condition.ndim != 3 or condition.shape[-1] != self.config.text_width:
            raise ValueError(f"features (B, L, {self.config.text_width}) are needed, not {tuple(condition.shape)}")
        condition = condition.to(self.head.weight.dtype)
        if self.null_text is not None:
            absent = (condition == 0).flatten(1).all(1)
            condition = torch.where(absent[:, None, None], self.null_text, condition)
        parts = (block.cross for block in self.blocks)
        made = [cross.keys_values(condition) for cross in parts if isinstance(cross, CrossAttention)]
        return EncodedCondition(None, *_fill_up(torch.stack(made, dim=1)))

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Tensor | EncodedCondition | None = None,
        cells: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits (B, H, W, K), or (B, n, K) at the wanted cells: see `Denoiser.forward` and `Denoiser.caches`."""
        if isinstance(condition, Tensor):
            condition = self.encode_condition(condition)
        embedding, keys_values, mask = condition or EncodedCondition()
        if (self.config.num_classes and embedding is None) or (self.config.text_width and keys_values is None):
            raise ValueError("this network was made for a condition, and none is given")
        size = (x_t.shape[1], x_t.shape[2])
        time = self._embed_time(t)
        x = self.tokens(x_t.flatten(1)) + self._places(size)  # (B, H * W, D)
        x, keep = enter(x, cache)
        last = len(self.blocks) - 1
        few = cells is not None and self.config.mlp == "linear" and (cache is None or cache.computes_all)
        for number, block in enumerate(self.blocks):
            wanted = cells if few and number == last else None  # nothing attends to the others now
            x = block(
                x,
                time,
                None if embedding is None else embedding.view(x.shape[0], last + 1, -1)[:, number],
                None if keys_values is None else keys_values[:, number],
                mask,
                grid_size=size,
                cells=wanted,
                keep=keep,
            )
        if cells is not None and not few:
            x = leave(x, cells, cache)
        logits: Tensor = self.head(self.norm(x))
        return logits if cells is not None else logits.view(len(x_t), *size, -1)

    def _embed_time(self, t: Tensor) -> Tensor:
        """(B,) rows of the tables, or (B, D) sinusoids."""
        if self.config.time == "sinusoidal":
            waves = sinusoids((t.double() - 1) / self.config.num_steps * TIME_SCALE, self.config.width)
            return waves.to(self.head.weight.dtype)
        return (t.ceil() if t.is_floating_point() else t).long() - 1

    def _places(self, size: tuple[int, int]) -> Tensor:
        """(H * W, D): where each cell is."""
        height, width = self.config.grid_size
        if self.config.positions == "flat":
            places = self.positions[: height * width]
        else:
            numbers = torch.arange(height * width, device=self.rows.device)
            columns = len(self.columns)
            places = self.rows[numbers // columns] + self.columns[numbers % columns]
        return resized_places(places, (height, width), size)


def _fill_up(keys_values: Tensor) -> tuple[Tensor, Tensor | None]:
    """(..., L, D) padded with zeros to a length at which CPUs attend fast, and the (B, L) mask of real keys."""
    length = keys_values.shape[-2]
    missing = -length % FULL_LENGTH
    if keys_values.device.type != "cpu" or not missing:
        return keys_values, None
    seen = torch.arange(length + missing) < length
    return F.pad(keys_values, (0, 0, 0, missing)), seen.expand(len(keys_values), -1)
