"""MaskBit's generator, as published: tokens of several parts, read as bits, of one class, and no time.

When to use it: for its checkpoints, and for new priors of large codebooks: with K = 2^14 in 2 parts it has two heads of
128 codes where others have one of 16,384, and no table of codes at all.
A cell is a linear map of its tokens' bits, -1 and 1, least significant first, 0 in a masked part, plus an embedding of
its place; the class is one more row at the end. Layers are those of BERT, norms behind the sums, one before the first.
Cost: 24 * num_layers * width^2 * (cells + 1) floating-point operations a call, and attention.
Source: Weber et al. 2024 (arXiv:2409.16211) and its code, github.com/markweberdev/maskbit, which is golden.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool.denoisers import EncodedCondition
from vqtool.denoisers._blocks import pick
from vqtool.denoisers._classes import ClassConfig, ClassNetwork
from vqtool.products import Linear
from vqtool.tokenizers.titok import Block

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"num_layers": 4, "width": 128, "num_heads": 4, "mlp_width": 512},
    "small": {"num_layers": 6, "width": 192, "num_heads": 6, "mlp_width": 768},
    "base": {"num_layers": 8, "width": 256, "num_heads": 8, "mlp_width": 1024},
    "large": {"num_layers": 24, "width": 1024, "num_heads": 16, "mlp_width": 4096},
}
LEARNING_RATES = {"tiny": 1e-3, "small": 6e-4, "base": 4e-4, "large": 1e-4}
CONDITIONS = ("none", "class")
PARAMETERISATION = "direct"
EPSILON = 1e-12  # of all norms


@dataclass(frozen=True)
class Config(ClassConfig):
    """What a network is built from: `codebook_size` is K' of a part, a power of 2, and grids have G W columns."""

    num_parts: int = 2  # G, of a token

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.codebook_size < 2 or self.codebook_size & (self.codebook_size - 1):
            raise ValueError(f"{self.codebook_size} codes of a part are no power of 2")
        if self.num_parts < 1 or self.grid_size[1] % self.num_parts:
            raise ValueError(f"rows of {self.grid_size[1]} parts are not made of {self.num_parts} each")

    @property
    def num_bits(self) -> int:
        """Of a part."""
        return self.codebook_size.bit_length() - 1

    @property
    def num_cells(self) -> int:
        """Tokens of a grid."""
        return self.grid_size[0] * self.grid_size[1] // self.num_parts


class Network(ClassNetwork):
    """The network."""

    code_tables = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.bits = Linear(config.num_parts * config.num_bits, width)
        self.classes = nn.Embedding(config.num_classes + 1, width)  # the last row is the null class
        self.positions = nn.Parameter(torch.zeros(config.num_cells + 1, width))  # the last row is the class's
        self.norm_in = nn.LayerNorm(width, EPSILON)
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads, config.mlp_width, epsilon=EPSILON, norm_last=True)
            for _ in range(config.num_layers)
        )
        self.last = Linear(width, width)
        self.norm_out = nn.LayerNorm(width, EPSILON)
        self.head = Linear(width, config.num_parts * config.codebook_size)
        self.initialise()

    @torch.no_grad()
    def set_frequencies(self, frequencies: Tensor) -> None:
        """Make a fresh network predict these shares of the codes of all parts, (K',): see `Denoiser`."""
        self.head.bias.copy_(frequencies.log().repeat(self.config.num_parts))

    def read_bits(self, x_t: Tensor) -> Tensor:
        """(B, N, G * bits) float: -1 and 1 of the bits of parts (B, H, G W), 0 where masked."""
        config = self.config
        places = torch.arange(config.num_bits, device=x_t.device)
        bits = ((x_t[..., None] >> places & 1) * 2 - 1).masked_fill((x_t == config.codebook_size)[..., None], 0)
        return bits.reshape(x_t.shape[0], -1, config.num_parts * config.num_bits).to(self.bits.weight.dtype)

    def forward(
        self, x_t: Tensor, t: Tensor, condition: Tensor | EncodedCondition | None = None, cells: Tensor | None = None
    ) -> Tensor:
        """Logits (B, H, G W, K'), or (B, n, K') at the wanted parts: see `Denoiser.forward`; t is not looked at."""
        x = torch.cat([self.bits(self.read_bits(x_t)), self.class_row(x_t, condition)], dim=1) + self.positions
        x = self.norm_in(x)
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm_out(F.gelu(self.last(x[:, :-1]))))  # (B, N, G K')
        logits = logits.view(x_t.shape[0], -1, self.config.codebook_size)
        return logits.view(*x_t.shape, -1) if cells is None else pick(logits, cells)
