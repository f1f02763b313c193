"""open-muse's MaskGitTransformer of classes, as published: masked grids, and no time.

When to use it: for its checkpoints, and to go on training them.
A class is a row before the cells; each has an embedding of its place. A layer is that of NormFormer,

    x += norm(attention(norm(x)));  x += w2(norm(gelu(w1 y) * w3 y)),  y = norm(x)

behind the last one stand a norm, and a linear map, an exact GELU and a norm before the head. No layer has a bias.
Cost: (8 * width + 6 * mlp_width) * num_layers * width * (H * W + 1) floating-point operations a call, and attention.
Source: github.com/huggingface/open-muse, muse/modeling_transformer.py, which is golden; Shleifer et al. 2021
(arXiv:2110.09456).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool.denoisers import EncodedCondition
from vqtool.denoisers._cache import Cache, enter, leave
from vqtool.denoisers._classes import ClassConfig, ClassNetwork
from vqtool.products import Keep, Linear, attend

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"num_layers": 4, "width": 128, "num_heads": 4, "mlp_width": 512},
    "small": {"num_layers": 8, "width": 512, "num_heads": 8, "mlp_width": 2048},
    "base": {"num_layers": 24, "width": 768, "num_heads": 16, "mlp_width": 3072},
}
LEARNING_RATES = {"tiny": 1e-3, "small": 3e-4, "base": 1e-4}
CONDITIONS = ("none", "class")
PARAMETERISATION = "direct"


@dataclass(frozen=True)
class Config(ClassConfig):
    """What a network is built from."""

    epsilon: float = 1e-6  # of all norms


class _Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width, epsilon = config.width, config.epsilon
        self.num_heads = config.num_heads
        self.attention_norm = nn.LayerNorm(width, epsilon, bias=False)
        self.qkv = Linear(width, 3 * width, bias=False)  # rows: queries, keys, values
        self.out = Linear(width, width, bias=False)
        self.out_norm = nn.LayerNorm(width, epsilon, bias=False)
        self.mlp_norm = nn.LayerNorm(width, epsilon, bias=False)
        self.w1 = Linear(width, config.mlp_width, bias=False)
        self.w3 = Linear(width, config.mlp_width, bias=False)
        self.inner_norm = nn.LayerNorm(config.mlp_width, epsilon, bias=False)
        self.w2 = Linear(config.mlp_width, width, bias=False)

    def forward(self, x: Tensor, keep: Keep | None = None) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if keep is not None:
            k, v = keep(k, v)
        x = x + self.out_norm(self.out(attend(q, k, v).transpose(1, 2).flatten(2)))
        y = self.mlp_norm(x)
        return x + self.w2(self.inner_norm(F.gelu(self.w1(y)) * self.w3(y)))  # type: ignore[no-any-return]


class Network(ClassNetwork):
    """The network."""

    caches = True
    code_tables = ("tokens.weight", "head.weight")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width, epsilon = config.width, config.epsilon
        self.classes = nn.Embedding(config.num_classes + 1, width)  # the last row is the null class
        self.tokens = nn.Embedding(config.codebook_size + 1, width)  # the last row is the mask
        self.positions = nn.Parameter(torch.zeros(1 + config.grid_size[0] * config.grid_size[1], width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width, epsilon, bias=False)
        self.last = Linear(width, width, bias=False)
        self.last_norm = nn.LayerNorm(width, epsilon, bias=False)
        self.head = Linear(width, config.codebook_size, bias=False)
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
        x, keep = enter(x, cache, 1)
        for block in self.blocks:
            x = block(x, keep)
        x = x[:, 1:] if cells is None else leave(x, cells + 1, cache)
        logits: Tensor = self.head(self.last_norm(F.gelu(self.last(self.norm(x)))))
        return logits if cells is not None else logits.view(*x_t.shape, -1)
