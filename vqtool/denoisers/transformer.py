"""Transformer denoiser: every cell attends to every other; conditioned on time, class and caption.

When to use it: grids up to some 32 x 32 cells. A cell is its token's embedding plus one learned embedding for its row
and one for its column; on a grid of another size than the one trained on, the two tables are interpolated linearly, so
that the picture keeps its layout. Time and class enter by AdaLN-Zero, captions by cross-attention too: a block is

    x += g1 * attention(norm(x) * (1 + s1) + b1);  x += cross(norm(x), caption);  x += g2 * mlp(norm(x) * (1 + s2) + b2)

with (s, b, g) linear in an embedding of time + class (+ the mean of the caption), and zero at the start, so that a
fresh network predicts all tokens with equal probability. Captions pass a small encoder once a sample; null conditions
are learned rows of the same tables.

With `num_parts` G a token is G parts, each masked on its own: a cell's embedding is the sum of those of its parts, and
each part has a head of its own. A codebook of 2^14 codes then has two heads and tables of 128, not of 16,384.

The size "light" is for small files: of the 22 * width^2 weights of a block with captions it keeps 15. One linear map
makes (s, b, g) for all blocks, and each adds numbers of its own; embedding and head share one table of `token_width`
numbers a token, with a map into the network and one out of it; the text encoder is `caption_width` wide.
Cost: 24 * num_layers * width^2 * H * W floating-point operations a call, and attention.
Source: Peebles and Xie 2023 (arXiv:2212.09748, AdaLN-Zero); Chen et al. 2023 (arXiv:2310.00426, adaLN-single); Gu et
al. 2022 (arXiv:2111.14822).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool.denoisers import Denoiser, EncodedCondition
from vqtool.denoisers._cache import Cache, enter, leave
from vqtool.products import Keep, Linear, attend, linear, linear_gelu

# Size -> fields of Config; widths are multiples of 64, which matrix units like. For the light one, tried on emoji: with
# 128 numbers a token, or a second layer of text, a network of two layers took up to twice the steps to the same bound.
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"num_layers": 4, "width": 128, "num_heads": 4},
    "small": {"num_layers": 6, "width": 192, "num_heads": 6},
    "base": {"num_layers": 8, "width": 256, "num_heads": 8},
    "large": {"num_layers": 12, "width": 512, "num_heads": 8},
    "huge": {"num_layers": 16, "width": 1024, "num_heads": 16},
    "light": {
        "num_layers": 6, "width": 256, "num_heads": 4, "token_width": 256, "caption_width": 96,
        "shared_modulation": True,
    },
}  # fmt: skip
# Size -> highest learning rate. Wider networks need smaller steps.
LEARNING_RATES = {"tiny": 1.5e-3, "small": 1e-3, "base": 6e-4, "large": 3e-4, "huge": 2e-4, "light": 1e-3}
CONDITIONS = ("none", "class", "caption")
PARAMETERISATION = "evidence"
TIME_SCALE = 1000.0  # t / T times this is what the sinusoids see
EMBEDDING_SCALE = 0.02  # std at the start; with 0.3 a run on emoji (K = 1024) needs a quarter more steps
CLASS_SCALE = 0.3  # std at the start, beside an embedded time of about 1; with a smaller one classes are learned late
PAD, NULL = 0, 1  # the caption tokens that is not attended to, and that stands for no caption: those of conditions


@dataclass(frozen=True)
class Config:
    """What a transformer denoiser is built from."""

    codebook_size: int  # of a part
    grid_size: tuple[int, int]  # (H, G W) parts of the training grids
    num_steps: int  # T
    num_layers: int
    width: int
    num_heads: int
    mlp_ratio: int = 4
    num_classes: int = 0  # 0: no class condition
    vocabulary_size: int = 0  # 0: no caption condition
    max_length: int = 0  # tokens of a caption
    text_layers: int = 1
    token_width: int = 0  # numbers a token in the one table of embedding and head; 0: two tables as wide as the network
    caption_width: int = 0  # of the text encoder; 0: that of the network
    shared_modulation: bool = False  # whether one linear map makes scales, shifts and gates for all blocks
    num_latents: int = 0  # of a student as version 0.2 made them: rows of a table, of which a call draws one
    latent_size: int = 0  # of a student: numbers of its latent, see training.distilling
    dropout: float = 0.0  # share of what a block adds that is left out in training
    num_parts: int = 1  # G, of a token

    def __post_init__(self) -> None:
        if self.num_parts < 1 or self.grid_size[1] % self.num_parts:
            raise ValueError(f"rows of {self.grid_size[1]} parts are not made of {self.num_parts} each")
        for width in (self.width, self.caption_width):
            if not self.num_heads or width % self.num_heads:
                raise ValueError(f"a width of {width} cannot be shared by {self.num_heads} heads")


class _Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None, keep: Keep | None = None) -> Tensor:
        batch, cells, width = x.shape
        q, k, v = self.qkv(x).view(batch, cells, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if keep is not None:
            k, v = keep(k, v)
        x = attend(q, k, v) if mask is None else F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(x.transpose(1, 2).reshape(batch, cells, width))  # type: ignore[no-any-return]


class _Mlp(nn.Sequential):
    def __init__(self, width: int, ratio: int) -> None:
        super().__init__(Linear(width, ratio * width), nn.GELU(approximate="tanh"), Linear(ratio * width, width))

    def forward(self, x: Tensor) -> Tensor:
        first: nn.Linear = self[0]  # type: ignore[assignment]
        return self[2](linear_gelu(x, first.weight, first.bias))  # type: ignore[no-any-return]


class _Cross(nn.Module):
    """Attention to the caption, whose keys and values are made once a sample."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.q = Linear(width, width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, keys_values: Tensor, mask: Tensor) -> Tensor:
        batch, cells, width = x.shape
        q = self.q(self.norm(x)).view(batch, cells, self.num_heads, -1).transpose(1, 2)
        k, v = keys_values.unbind(1)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        return self.out(x.transpose(1, 2).reshape(batch, cells, width))  # type: ignore[no-any-return]


def _modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift[:, None], x, 1 + scale[:, None])


class _Bias(nn.Module):
    """What a layer of its own adds to numbers that it shares: of as many as it has, the first ones are taken."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, shared: Tensor) -> Tensor:
        return shared[..., : len(self.bias)] + self.bias


def _modulation(config: Config, parts: int) -> nn.Module:
    size = parts * config.width
    return _Bias(size) if config.shared_modulation else Linear(config.width, size)


class _Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.attention_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = _Attention(width, config.num_heads)
        self.cross = _Cross(width, config.num_heads) if config.vocabulary_size else None
        self.mlp_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = _Mlp(width, config.mlp_ratio)
        self.modulation = _modulation(config, 6)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        conditioning: Tensor,
        keys_values: Tensor | None,
        mask: Tensor | None,
        keep: Keep | None = None,
    ) -> Tensor:
        s1, b1, g1, s2, b2, g2 = self.modulation(conditioning).chunk(6, dim=-1)
        normed = _modulate(self.attention_norm(x), s1, b1)
        x = x + g1[:, None] * self.dropout(self.attention(normed, keep=keep))
        if self.cross is not None and keys_values is not None and mask is not None:
            x = x + self.dropout(self.cross(x, keys_values, mask))
        return x + g2[:, None] * self.dropout(self.mlp(_modulate(self.mlp_norm(x), s2, b2)))  # type: ignore[no-any-return]


class _TextBlock(nn.Module):
    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = _Attention(width, config.num_heads)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = _Mlp(width, config.mlp_ratio)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), mask[:, None, None, :]))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))  # type: ignore[no-any-return]


class _TextEncoder(nn.Module):
    """Caption tokens -> the keys and values of every block's cross-attention, and one embedding for AdaLN."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.caption_width or config.width
        self.shape = (config.num_layers, 2, config.num_heads, config.width // config.num_heads)
        self.tokens = nn.Embedding(config.vocabulary_size, width)
        self.positions = nn.Parameter(torch.zeros(config.max_length, width))
        self.blocks = nn.ModuleList(_TextBlock(width, config) for _ in range(config.text_layers))
        self.norm = nn.LayerNorm(width)
        self.keys_values = Linear(width, 2 * config.num_layers * config.width)
        self.pooled = Linear(width, config.width)

    def forward(self, condition: Tensor) -> EncodedCondition:
        batch, length = condition.shape
        mask = condition != PAD  # (B, L)
        x = self.tokens(condition) + self.positions[:length]
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        mean: Tensor = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        keys_values = self.keys_values(x).view(batch, length, *self.shape).permute(0, 2, 3, 4, 1, 5)
        return EncodedCondition(self.pooled(mean), keys_values, mask)


class Network(Denoiser):
    """The network."""

    stretches = True
    caches = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width, token_width, parts = config.width, config.token_width, config.num_parts
        self.tokens = nn.Embedding(parts * (config.codebook_size + 1), token_width or width)  # the last row is the mask
        self.enter = Linear(token_width, width) if token_width else None
        self.rows = nn.Parameter(torch.zeros(config.grid_size[0], width))
        self.columns = nn.Parameter(torch.zeros(config.grid_size[1] // parts, width))
        self.time = nn.Sequential(Linear(width, width), nn.SiLU(), Linear(width, width))
        self.classes = nn.Embedding(config.num_classes + 1, width) if config.num_classes else None
        self.latents = nn.Embedding(config.num_latents, width) if config.num_latents else None
        self.latent = Linear(config.latent_size, width) if config.latent_size else None
        self.text = _TextEncoder(config) if config.vocabulary_size else None
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.shared_modulation = Linear(width, 6 * width) if config.shared_modulation else None
        self.modulation = _modulation(config, 2)
        self.leave = Linear(width, token_width) if token_width else None
        num_logits = parts * config.codebook_size
        self.head = _Bias(num_logits) if token_width else Linear(width, num_logits)
        self._initialise()

    def _initialise(self) -> None:
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
            elif isinstance(part, nn.Embedding):
                nn.init.normal_(part.weight, std=EMBEDDING_SCALE)
        for table in (self.rows, self.columns, *([self.text.positions] if self.text else [])):
            nn.init.normal_(table, std=EMBEDDING_SCALE)
        if self.classes is not None:
            nn.init.normal_(self.classes.weight, std=CLASS_SCALE)
        if self.latents is not None:
            nn.init.normal_(self.latents.weight, std=CLASS_SCALE)
        if self.latent is not None:
            nn.init.normal_(self.latent.weight, std=CLASS_SCALE / self.config.latent_size**0.5)
        zeroed: list[nn.Module | None] = [self.head, self.leave, self.modulation, self.shared_modulation]
        for block in self.blocks:
            if isinstance(block, _Block):
                zeroed += [block.modulation, *([block.cross.out] if block.cross else [])]
        for layer in zeroed:
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.weight)

    @torch.no_grad()
    def set_frequencies(self, frequencies: Tensor) -> None:
        """Make a fresh network predict these shares of the codes of all parts, (K,): see `Denoiser`."""
        self.head.bias.copy_(frequencies.log().repeat(self.config.num_parts))

    @property
    def null_weights(self) -> tuple[tuple[str, int | None], ...]:
        """The null condition's row among the classes, or its token's among those of captions."""
        if self.text is not None:
            return (("text.tokens.weight", NULL),)
        return () if self.classes is None else (("classes.weight", -1),)

    def _silence(self, name: str, tensor: Tensor) -> None:
        if name.startswith("text.pooled."):  # cross-attention is silent at the start
            tensor.zero_()
        super()._silence(name, tensor)

    def _fit(self, name: str, theirs: Tensor, mine: Tensor, old: Denoiser) -> Tensor:
        if name in ("rows", "columns"):
            return _resized(theirs, len(mine))
        if name == "text.positions":
            return torch.cat([theirs, mine[len(theirs) :]])
        return super()._fit(name, theirs, mine, old)

    def encode_condition(self, condition: Tensor) -> EncodedCondition:
        """What depends on the condition alone: (B,) class numbers, (B, L) caption tokens, or (B, 0) nothing."""
        if self.text is not None:
            return self.text(condition)  # type: ignore[no-any-return]
        if self.classes is not None:
            return EncodedCondition(self.classes(condition))
        if self.latent_size:
            return EncodedCondition(self.rows.new_zeros(len(condition), self.config.width))
        return EncodedCondition()

    def mix(self, condition: EncodedCondition, latent: Tensor) -> EncodedCondition:
        """Add a latent to each embedding: see `Denoiser.mix`."""
        if condition.embedding is None:
            return condition
        if self.latent is not None:
            condition = condition._replace(embedding=condition.embedding + self.latent(latent.to(self.rows)))
        elif self.latents is not None:
            count = self.config.num_latents
            row = (torch.special.ndtr(latent[:, 0]) * count).long().clamp(max=count - 1)
            condition = condition._replace(embedding=condition.embedding + self.latents(row))
        return condition

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
        conditioning = self._embed_time(t)
        if embedding is not None:
            conditioning = conditioning + embedding
        conditioning = F.silu(conditioning)
        if self.shared_modulation is not None:
            conditioning = self.shared_modulation(conditioning)
        parts = self.config.num_parts
        x, keep = enter(self.embed(x_t), cache)
        for number, block in enumerate(self.blocks):
            x = block(x, conditioning, None if keys_values is None else keys_values[:, number], mask, keep)
        if cells is not None:
            x = leave(x, cells // parts, cache)
        scale, shift = self.modulation(conditioning).chunk(2, dim=-1)
        logits = self._find_logits(_modulate(self.norm(x), scale, shift))  # (B, H * W or n, G K)
        if cells is None:
            return logits.view(*x_t.shape, -1)
        if parts == 1:
            return logits
        own = (cells % parts)[..., None, None].expand(-1, -1, 1, self.config.codebook_size)
        return logits.view(*cells.shape, parts, -1).gather(2, own)[:, :, 0]

    def embed(self, x_t: Tensor) -> Tensor:
        """Tokens where they are, (B, H * W, D): what the first block sees."""
        x = self._embed_tokens(x_t)
        x = x + _resized(self.rows, x.shape[1])[:, None] + _resized(self.columns, x.shape[2])
        return x.flatten(1, 2)

    def _embed_tokens(self, x_t: Tensor) -> Tensor:
        """(B, H, W, D), of (B, H, G W) parts."""
        parts = self.config.num_parts
        if parts == 1:
            x = self.tokens(x_t)
        else:
            first = torch.arange(parts, device=x_t.device) * (self.config.codebook_size + 1)  # row of each part's table
            x = self.tokens(x_t.reshape(*x_t.shape[:2], -1, parts) + first).sum(-2)
        return x if self.enter is None else self.enter(x)  # type: ignore[no-any-return]

    def _find_logits(self, x: Tensor) -> Tensor:
        if self.leave is None:
            return self.head(x)  # type: ignore[no-any-return]
        table = self.tokens.weight
        tables = table.view(self.config.num_parts, -1, table.shape[-1])[:, :-1]  # without the masks
        return linear(self.leave(x), tables.flatten(0, 1), self.head.bias)

    def _embed_time(self, t: Tensor) -> Tensor:
        half = self.config.width // 2
        frequencies = torch.exp(-math.log(1e4) * torch.arange(half, device=t.device) / half)
        phases = (t / self.config.num_steps * TIME_SCALE)[:, None] * frequencies
        return self.time(torch.cat([phases.sin(), phases.cos()], dim=-1))  # type: ignore[no-any-return]


def _resized(table: Tensor, length: int) -> Tensor:
    """A position table (n, D) as (length, D): itself, or interpolated linearly between its ends."""
    if len(table) == length:
        return table
    return F.interpolate(table.T[None], size=length, mode="linear", align_corners=True)[0].T
