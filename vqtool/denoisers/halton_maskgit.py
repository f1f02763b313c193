"""The transformer of Halton-MaskGIT, as published: masked grids of one class, and no time.

When to use it: for its checkpoints, and to go on training them; `transformer` is the better start for new priors.
A cell is its token's embedding plus one of its own; registers without a position follow, and are dropped in the end.
With (b1, s1, g1, b2, s2, g2) linear in silu(class) a block is

    x += g1 * attention(rms(x) * (1 + s1) + b1);  x += g2 * mlp(rms(x) * (1 + s2) + b2),  mlp(x) = w2(silu(w1 x) * w3 x)

Queries and keys are normalised over all heads together, before they are split; a width that the heads do not divide
loses the rest (512 -> 6 heads of 85). The head has the weights of the token embedding and predicts K + 1 tokens.
Differs from the original: that one draws the mask token too, with the little probability it has, and leaves such a
cell unfinished; here the K tokens alone are drawn.
Cost: 24 * num_layers * width^2 * H * W floating-point operations a call, and attention.
Source: Besnier et al. 2025 (arXiv:2503.17076) and its code, github.com/valeoai/Halton-MaskGIT.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool.denoisers import Denoiser, EncodedCondition
from vqtool.denoisers._blocks import resized_places
from vqtool.denoisers._cache import Cache, enter, leave
from vqtool.denoisers._classes import INITIAL_SCALE, ClassConfig
from vqtool.products import Keep, Linear, attend, linear

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"num_layers": 6, "width": 384, "num_heads": 6, "mlp_width": 1024},
    "small": {"num_layers": 12, "width": 512, "num_heads": 6, "mlp_width": 1536},
    "base": {"num_layers": 12, "width": 768, "num_heads": 12, "mlp_width": 2048},
    "large": {"num_layers": 24, "width": 1024, "num_heads": 16, "mlp_width": 2816},
}
LEARNING_RATES = {"tiny": 6e-4, "small": 3e-4, "base": 2e-4, "large": 1e-4}
CONDITIONS = ("none", "class")
PARAMETERISATION = "direct"
EPSILON = 1e-5


@dataclass(frozen=True)
class Config(ClassConfig):
    """What a network is built from."""

    num_registers: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.num_heads <= self.width:
            raise ValueError(f"a width of {self.width} cannot be shared by {self.num_heads} heads")


def _rms(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=EPSILON)


class _Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        inner = config.width // config.num_heads * config.num_heads
        self.q = Linear(config.width, inner, bias=False)
        self.k = Linear(config.width, inner, bias=False)
        self.v = Linear(config.width, inner, bias=False)
        self.out = Linear(inner, config.width, bias=False)

    def forward(self, x: Tensor, keep: Keep | None = None) -> Tensor:
        batch, num, _ = x.shape
        parts = (_rms(self.q(x)), _rms(self.k(x)), self.v(x))
        q, k, v = (part.view(batch, num, self.num_heads, -1).transpose(1, 2) for part in parts)
        if keep is not None:
            k, v = keep(k, v)
        return self.out(attend(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _Mlp(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.w1 = Linear(config.width, config.mlp_width, bias=False)
        self.w2 = Linear(config.mlp_width, config.width, bias=False)
        self.w3 = Linear(config.width, config.mlp_width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.modulation = Linear(config.width, 6 * config.width)
        self.attention_norm = nn.RMSNorm(config.width, eps=EPSILON)
        self.attention = _Attention(config)
        self.mlp_norm = nn.RMSNorm(config.width, eps=EPSILON)
        self.mlp = _Mlp(config)

    def forward(self, x: Tensor, modulation: Tensor, keep: Keep | None = None) -> Tensor:
        b1, s1, g1, b2, s2, g2 = modulation[:, None].chunk(6, dim=-1)
        x = x + g1 * self.attention(torch.addcmul(b1, self.attention_norm(x), 1 + s1), keep)
        return x + g2 * self.mlp(torch.addcmul(b2, self.mlp_norm(x), 1 + s2))  # type: ignore[no-any-return]


class Network(Denoiser):
    """The network."""

    sees_time = False
    caches = True
    stretches = True
    called_apart = ("modulation.forward",)
    code_tables = ("tokens.weight", "head_bias")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.classes = nn.Embedding(config.num_classes + 1, width)  # the last row is the null class
        self.tokens = nn.Embedding(config.codebook_size + 1, width)  # the last row is the mask
        self.positions = nn.Parameter(torch.zeros(config.grid_size[0] * config.grid_size[1], width))
        self.registers = nn.Parameter(torch.zeros(config.num_registers, width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm_scale = nn.Parameter(torch.ones(width))
        self.norm_shift = nn.Parameter(torch.zeros(width))
        self.modulation = Linear(width, 2 * width)
        self.head_bias = nn.Parameter(torch.zeros(config.codebook_size + 1))
        self._initialise()

    def _initialise(self) -> None:
        for part in self.modules():
            if isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight, std=INITIAL_SCALE)
        for table in (self.positions, self.registers):
            nn.init.normal_(table, std=INITIAL_SCALE)
        for layer in (self.modulation, *(block.get_submodule("modulation") for block in self.blocks)):
            nn.init.zeros_(layer.get_parameter("weight"))
            nn.init.zeros_(layer.get_parameter("bias"))

    @torch.no_grad()
    def set_frequencies(self, frequencies: Tensor) -> None:
        """Make a fresh network predict these shares of the tokens, (K,): see `Denoiser.set_frequencies`."""
        self.head_bias[:-1] = frequencies.log()

    @property
    def null_weights(self) -> tuple[tuple[str, int | None], ...]:
        """The last row of the classes."""
        return (("classes.weight", -1),) if self.config.num_classes else ()

    def _fit(self, name: str, theirs: Tensor, mine: Tensor, old: Denoiser) -> Tensor:
        if name == "positions":
            return resized_places(theirs, old.config.grid_size, self.config.grid_size)
        return super()._fit(name, theirs, mine, old)

    def encode_condition(self, condition: Tensor) -> EncodedCondition:
        """The scales, shifts and gates of (B,) classes, num_classes for none; or of (B, 0) nothing."""
        if condition.ndim == 2:
            condition = condition.new_zeros(len(condition))
        embedding = F.silu(self.classes(condition))
        layers = (*(block.get_submodule("modulation") for block in self.blocks), self.modulation)
        return EncodedCondition(torch.cat([layer(embedding) for layer in layers], dim=1))

    def forward(
        self,
        x_t: Tensor,
        t: Tensor,
        condition: Tensor | EncodedCondition | None = None,
        cells: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits (B, H, W, K), or (B, n, K) at the wanted cells: see `Denoiser.forward`; t is not looked at."""
        return self.predict_all(x_t, condition, cells, cache)[..., :-1]

    def predict_all(
        self,
        x_t: Tensor,
        condition: Tensor | EncodedCondition | None = None,
        cells: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits of the K tokens and of the mask, which the head was trained with: (..., K + 1)."""
        if condition is None:
            condition = x_t.new_full((x_t.shape[0],), self.config.num_classes)
        if isinstance(condition, Tensor):
            condition = self.encode_condition(condition)
        if condition.embedding is None:
            raise ValueError("this network was made for a class, and none is given")
        size, num = (x_t.shape[1], x_t.shape[2]), x_t[0].numel()
        sizes = [6 * self.config.width] * len(self.blocks) + [2 * self.config.width]
        parts = torch.split(condition.embedding, sizes, dim=1)
        x = self.tokens(x_t.flatten(1)) + resized_places(self.positions, self.config.grid_size, size)
        x = torch.cat([x, self.registers.expand(x.shape[0], -1, -1)], dim=1)
        x, keep = enter(x, cache, num_cells=num)
        for block, modulation in zip(self.blocks, parts[:-1], strict=True):
            x = block(x, modulation, keep)
        x = x[:, :num] if cells is None else leave(x, cells, cache)
        shift, scale = parts[-1][:, None].chunk(2, dim=-1)
        x = torch.addcmul(shift, torch.addcmul(self.norm_shift, _rms(x), self.norm_scale), 1 + scale)
        logits = linear(x, self.tokens.weight, self.head_bias)
        return logits if cells is not None else logits.view(len(x_t), *size, -1)
