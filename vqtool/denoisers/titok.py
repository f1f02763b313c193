"""TiTok's generators, as published: masked rows of tokens of one class, and no time.

When to use it: for its checkpoints, and to go on training them; and for any grid that has no places in the image.
A class is a row before the tokens; each has an embedding of its place. Layers are those of BERT, norms behind the sums
and one before the first; or with `skips` those of U-ViT, where a layer of the second half begins with a linear map of
what it is given and of what its counterpart in the first half made, and a norm stands behind the last.
Cost: 24 * num_layers * width^2 * (H * W + 1) floating-point operations a call, and attention.
Source: Yu et al. 2024 (arXiv:2406.07550) and its code, github.com/bytedance/1d-tokenizer, which is golden.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vqtool.denoisers import EncodedCondition
from vqtool.denoisers._cache import Cache, enter, leave
from vqtool.denoisers._classes import ClassConfig, ClassNetwork
from vqtool.products import Keep, Linear
from vqtool.tokenizers.titok import Block

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"num_layers": 4, "width": 128, "num_heads": 4, "mlp_width": 512, "skips": True},
    "base": {"num_layers": 24, "width": 768, "num_heads": 16, "mlp_width": 3072},
    "large": {"num_layers": 20, "width": 1024, "num_heads": 16, "mlp_width": 4096, "skips": True},
}
LEARNING_RATES = {"tiny": 1e-3, "base": 2e-4, "large": 2e-4}
CONDITIONS = ("none", "class")
PARAMETERISATION = "direct"
EPSILON = 1e-12  # of BERT's norms; those of U-ViT have 1e-5


@dataclass(frozen=True)
class Config(ClassConfig):
    """What a network is built from; with skips `num_layers` is of both halves, between which stands one more."""

    skips: bool = False  # whether it is a U-ViT, not a BERT

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.skips and self.num_layers % 2:
            raise ValueError(f"{self.num_layers} layers have no two halves")

    @property
    def num_blocks(self) -> int:
        """All layers."""
        return self.num_layers + self.skips


class Network(ClassNetwork):
    """The network."""

    caches = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width, skips = config.width, config.skips
        self.classes = nn.Embedding(config.num_classes + 1, width)  # the last row is the null class
        self.tokens = nn.Embedding(config.codebook_size + 1, width)  # the last row is the mask
        self.positions = nn.Parameter(torch.zeros(1 + config.grid_size[0] * config.grid_size[1], width))
        self.norm_in = None if skips else nn.LayerNorm(width, EPSILON)
        epsilon = 1e-5 if skips else EPSILON
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads, config.mlp_width, epsilon=epsilon, qkv_bias=not skips, norm_last=not skips)
            for _ in range(config.num_blocks)
        )
        self.skips = nn.ModuleList(Linear(2 * width, width) for _ in range(config.num_layers // 2 if skips else 0))
        self.norm_out = nn.LayerNorm(width) if skips else None
        self.head = Linear(width, config.codebook_size)
        self.initialise()

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Tensor | EncodedCondition | None = None,
        cells: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits (B, H, W, K), or (B, n, K) at the wanted cells: see `Denoiser.forward`; t is not looked at."""
        x = torch.cat([self.class_row(x_t, condition), self.tokens(x_t.flatten(1))], dim=1) + self.positions
        x, keep = enter(x if self.norm_in is None else self.norm_in(x), cache, 1)
        x = self._layers(x, keep)
        x = x[:, 1:] if cells is None else leave(x, cells + 1, cache)
        logits: Tensor = self.head(x if self.norm_out is None else self.norm_out(x))
        return logits if cells is not None else logits.view(*x_t.shape, -1)

    def _layers(self, x: Tensor, keep: Keep | None) -> Tensor:
        made: list[Tensor] = []
        half = len(self.skips)
        for number, block in enumerate(self.blocks):
            if number > half and self.skips:
                x = self.skips[number - half - 1](torch.cat([x, made.pop()], dim=-1))
            x = block(x, keep)
            if number < half:
                made.append(x)
        return x
