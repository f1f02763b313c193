"""Text encoders: caption tokens -> features that a denoiser attends to. The frozen text tower of CLIP.

Priors that were trained on CLIP's features carry the name and fingerprint of a text encoder, as they do of a tokenizer:
it is an artifact of its own, since several priors share one. A tower is a causal transformer of pre-norm blocks

    x += attention(norm(x));  x += mlp(norm(x)),  mlp with x * sigmoid(1.702 x)

whose normalised output of every token, padding too, is brought to length 1; CLIP's projection is not used. Towers of
aMUSEd and Meissonic give the states before the last block instead, and a pooled text.
Cost: once a sample, not once a step.
Source: Radford et al. 2021 (arXiv:2103.00020); its use Gu et al. 2022 (arXiv:2111.14822), section 4.2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool import artifacts, conditions
from vqtool.artifacts import Header
from vqtool.conditions import Conditioner
from vqtool.errors import MismatchError, VqtoolError
from vqtool.trust import build_network, parse_record

KIND = "text-encoder"
FEATURES = ("unit", "penultimate")


@dataclass(frozen=True)
class Config:
    """What a text encoder is built from."""

    vocabulary_size: int
    max_length: int  # tokens of a caption, with start and end
    width: int  # of the features
    num_layers: int
    num_heads: int
    mlp_width: int
    features: str = "unit"  # or "penultimate": see `TextEncoder.forward`
    pooled_width: int = 0  # of the pooled text; 0 where there is none
    end_token: int | None = None  # whose state is pooled; None for the largest
    activation: str = "gelu2"  # x * sigmoid(1.702 x), or "gelu"

    def __post_init__(self) -> None:
        if not self.num_heads or self.width % self.num_heads:
            raise ValueError(f"a width of {self.width} cannot be shared by {self.num_heads} heads")
        if self.features not in FEATURES or self.activation not in ("gelu", "gelu2"):
            raise ValueError(f"features {self.features} and activation {self.activation} are not understood")
        if (self.features == "penultimate") != bool(self.pooled_width):
            raise ValueError("a pooled text goes with features penultimate, and these with it")


class _Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.activation = config.activation
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, config.mlp_width)
        self.mlp_out = nn.Linear(config.mlp_width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        hidden = self.mlp_in(self.mlp_norm(x))
        hidden = F.gelu(hidden) if self.activation == "gelu" else hidden * torch.sigmoid(1.702 * hidden)
        return x + self.mlp_out(hidden)  # type: ignore[no-any-return]


class TextEncoder(nn.Module):
    """The text tower of CLIP, in float32."""

    has_read = False  # whether it looks features up, on the CPU, instead of making them

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary_size, config.width)
        self.positions = nn.Parameter(torch.zeros(config.max_length, config.width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)
        self.pooled = nn.Linear(config.width, config.pooled_width, bias=False) if config.pooled_width else None
        self.fingerprint = ""  # of its artifact; empty before it is saved
        self.location = ""  # the path of that
        self.history: tuple[dict[str, Any], ...] = ()  # of that artifact
        self.captions: Conditioner | None = None  # what reads captions for it, if it came on its own

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        """Features of captions.

        Args:
            ids: (B, L) int64 tokens, L at most max_length; start, words, end, padding.

        Returns:
            (B, L, width) float32, each token's features of length 1. With the features "penultimate" those before the
            last block, as they are, and as one more row, L + 1, the pooled text: the state of the end after the last
            block and the norm, times a projection; the shorter of both filled up with zeros.
        """
        x = before = self.tokens(ids) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            before, x = x, block(x)
        x = self.norm(x)
        if self.pooled is not None:
            end = self.config.end_token
            places = ids.argmax(1) if end is None else (ids == end).int().argmax(1)
            pooled = self.pooled(x[torch.arange(len(x), device=x.device), places])[:, None]
            width = max(pooled.shape[-1], before.shape[-1])
            return torch.cat([F.pad(part, (0, width - part.shape[-1])) for part in (before, pooled)], dim=1)
        return x / x.norm(dim=-1, keepdim=True)  # type: ignore[no-any-return]


def save_text_encoder(
    path: str | Path,
    encoder: TextEncoder,
    *,
    parents: Mapping[str, str] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    force: bool = False,
) -> Header:
    """Write a text encoder to one file; it takes the file's fingerprint and location, which priors name it by.

    Tensors that are float16 numbers, as most of the published ones are, are stored as such: at half the size.

    Args:
        path: of the file.
        encoder: what to save.
        parents: role -> fingerprint of what it was made from.
        history: of the steps that made it.
        force: overwrite.
    """
    tensors = {name: _shortest(tensor) for name, tensor in encoder.state_dict().items()}
    config = {name: value for name, value in asdict(encoder.config).items() if value != _OMITTED.get(name, ...)}
    if encoder.captions is not None:
        config[_CAPTIONS] = encoder.captions.config()
        tensors |= {f"{_CAPTIONS}.{name}": tensor for name, tensor in encoder.captions.tensors().items()}
    header = artifacts.save(
        path,
        kind=KIND,
        config=config,
        tensors=tensors,
        parents=parents,
        history=history,
        force=force,
    )
    encoder.fingerprint, encoder.location, encoder.history = header.fingerprint, str(path), header.history
    return header


_CAPTIONS = "captions"  # in the config, and before the names of their tensors
_OMITTED = {field.name: field.default for field in fields(Config) if field.default is not MISSING}


def _shortest(tensor: Tensor) -> Tensor:
    half = tensor.half()
    return half if torch.equal(half.to(tensor.dtype), tensor) else tensor


def load_text_encoder(path: str | Path, *, fingerprint: str | None = None) -> TextEncoder:
    """Load a text encoder, in eval mode on the CPU.

    Args:
        path: of the file.
        fingerprint: what it has to have; None takes any.

    Raises:
        FormatError: not a text encoder, or damaged.
        MismatchError: another fingerprint.
    """
    header, tensors = artifacts.load(path, KIND)
    if fingerprint is not None and header.fingerprint != fingerprint:
        raise MismatchError(
            f"{path}: text encoder {header.fingerprint} is not the text encoder {fingerprint} that the prior was "
            "trained with: put the file of that one beside the prior"
        )
    where = f"{path}: its tensors do not fit its config"
    fields_of, prefix = dict(header.config), f"{_CAPTIONS}."
    captions = fields_of.pop(_CAPTIONS, None)
    config = parse_record(Config, fields_of, where)
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    encoder = build_network(lambda: TextEncoder(config), own, where)
    if captions is not None:
        read = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name not in own}
        encoder.captions = conditions.load(captions, read)
    encoder.fingerprint, encoder.location, encoder.history = header.fingerprint, str(path), header.history
    return encoder.eval().requires_grad_(False)


def find_named_text_encoder(fingerprint: str, location: str, *, near: Path | None = None) -> TextEncoder:
    """The text encoder that a prior was trained with.

    Args:
        fingerprint: it must have.
        location: where it was when the prior was made.
        near: folder of the prior; looked in if the path itself leads nowhere.

    Raises:
        MismatchError: what is there is another text encoder.
        VqtoolError: nothing is there.
    """
    path = artifacts.find_named(fingerprint, location, near=near)
    if path is None:
        raise VqtoolError(
            f"the text encoder {fingerprint} that the prior was trained with is not at {location}: "
            f"put its file, {Path(location).name}, beside the prior"
        )
    return load_text_encoder(path, fingerprint=fingerprint)
