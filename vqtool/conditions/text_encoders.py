"""Text encoders: caption tokens -> features that a denoiser attends to. The frozen text tower of CLIP.

Priors that were trained on CLIP's features carry the name and fingerprint of a text encoder, as they do of a tokenizer:
it is an artifact of its own, since several priors share one. A tower is a causal transformer of pre-norm blocks

    x += attention(norm(x));  x += mlp(norm(x)),  mlp with x * sigmoid(1.702 x)

whose normalised output of every token, padding too, is brought to length 1; CLIP's projection is not used.
Cost: once a sample, not once a step.
Source: Radford et al. 2021 (arXiv:2103.00020); its use Gu et al. 2022 (arXiv:2111.14822), section 4.2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool import artifacts
from vqtool.artifacts import Header
from vqtool.errors import FormatError, MismatchError, VqtoolError

KIND = "text-encoder"
HEAD_WIDTH = 64  # of CLIP's towers, whose files do not say it
ACTIVATION, EPSILON = "quick_gelu", 1e-5  # of all of OpenAI's
_LISTED = 12  # tensors named in an error


@dataclass(frozen=True)
class Config:
    """What a text encoder is built from."""

    vocabulary_size: int
    max_length: int  # tokens of a caption, with start and end
    width: int  # of the features
    num_layers: int
    num_heads: int
    mlp_width: int


class _Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
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
        return x + self.mlp_out(hidden * torch.sigmoid(1.702 * hidden))  # type: ignore[no-any-return]


class TextEncoder(nn.Module):
    """The text tower of CLIP, in float32."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary_size, config.width)
        self.positions = nn.Parameter(torch.zeros(config.max_length, config.width))
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width)
        self.fingerprint = ""  # of its artifact; empty before it is saved
        self.location = ""  # the path of that
        self.history: tuple[dict[str, Any], ...] = ()  # of that artifact

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        """Features of captions.

        Args:
            ids: (B, L) int64 tokens, L at most max_length; start, words, end, padding.

        Returns:
            (B, L, width) float32, each token's features of length 1.
        """
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
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
    header = artifacts.save(
        path,
        kind=KIND,
        config=asdict(encoder.config),
        tensors=tensors,
        parents=parents,
        history=history,
        force=force,
    )
    encoder.fingerprint, encoder.location, encoder.history = header.fingerprint, str(path), header.history
    return header


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
    try:
        encoder = TextEncoder(Config(**header.config))
        encoder.load_state_dict(tensors)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FormatError(f"{path}: its tensors do not fit its config: {error}") from error
    encoder.fingerprint, encoder.location, encoder.history = header.fingerprint, str(path), header.history
    return _frozen(encoder)


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


def from_openai(tensors: Mapping[str, Tensor], where: str) -> TextEncoder:
    """The text tower of one of OpenAI's CLIP models, as VQ-Diffusion's checkpoints hold it.

    Args:
        tensors: `token_embedding.weight`, `positional_embedding`, `transformer.resblocks.N....`, `ln_final....`;
            others (`text_projection`, the image tower) are not looked at.
        where: what to call the source in messages.

    Raises:
        FormatError: tensors are missing or do not fit.
    """
    _require(["token_embedding.weight", "positional_embedding"], tensors, where)
    size, width = tensors["token_embedding.weight"].shape
    num_layers = _count("transformer.resblocks.", tensors)
    mlp = "transformer.resblocks.0.mlp.c_fc.weight"
    _require([mlp], tensors, where)
    length = len(tensors["positional_embedding"])
    config = Config(size, length, width, num_layers, max(1, width // HEAD_WIDTH), len(tensors[mlp]))
    return _filled(config, _names(config, _OPENAI, _OPENAI_BLOCK, "transformer.resblocks."), tensors, where)


def from_transformers(tensors: Mapping[str, Tensor], settings: Mapping[str, Any], where: str) -> TextEncoder:
    """The tower of a folder of transformers' CLIPTextModel.

    Args:
        tensors: of the folder, with or without `text_model.` before each name.
        settings: of its config.json.
        where: what to call the source in messages.

    Raises:
        FormatError: the settings are not CLIP's, or tensors are missing or do not fit.
    """
    settings = settings.get("text_config") or settings
    activation, epsilon = settings.get("hidden_act", ACTIVATION), settings.get("layer_norm_eps", EPSILON)
    if activation != ACTIVATION or epsilon != EPSILON:
        raise FormatError(
            f"{where}: hidden_act {activation} and layer_norm_eps {epsilon} are not those of OpenAI's text towers, "
            f"{ACTIVATION} and {EPSILON}, the only ones understood"
        )
    try:
        config = Config(
            vocabulary_size=settings["vocab_size"],
            max_length=settings["max_position_embeddings"],
            width=settings["hidden_size"],
            num_layers=settings["num_hidden_layers"],
            num_heads=settings["num_attention_heads"],
            mlp_width=settings["intermediate_size"],
        )
    except KeyError as error:
        raise FormatError(f"{where}: its config.json says nothing of {error.args[0]}") from error
    prefix = "text_model." if any(name.startswith("text_model.") for name in tensors) else ""
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return _filled(config, _names(config, _TRANSFORMERS, _TRANSFORMERS_BLOCK, "encoder.layers."), bare, where)


def to_transformers(encoder: TextEncoder) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and settings of transformers' CLIPTextModel: what `from_transformers` reads."""
    config = encoder.config
    names = _names(config, _TRANSFORMERS, _TRANSFORMERS_BLOCK, "encoder.layers.")
    tensors = {}
    for name, tensor in encoder.state_dict().items():
        for theirs, part in zip(names[name], tensor.chunk(len(names[name])), strict=True):
            tensors[f"text_model.{theirs}"] = part.contiguous()
    settings = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_act": ACTIVATION,
        "layer_norm_eps": EPSILON,
        "vocab_size": config.vocabulary_size,
        "max_position_embeddings": config.max_length,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
    }
    return tensors, settings


# Our name -> those of the source; several are stacked.
_Names = dict[str, tuple[str, ...]]
_OPENAI: _Names = {
    "tokens.weight": ("token_embedding.weight",),
    "positions": ("positional_embedding",),
    "norm.weight": ("ln_final.weight",),
    "norm.bias": ("ln_final.bias",),
}
_OPENAI_BLOCK: _Names = {
    "qkv.weight": ("attn.in_proj_weight",),
    "qkv.bias": ("attn.in_proj_bias",),
    **{
        f"{ours}.{part}": (f"{theirs}.{part}",)
        for ours, theirs in {
            "attention_norm": "ln_1",
            "out": "attn.out_proj",
            "mlp_norm": "ln_2",
            "mlp_in": "mlp.c_fc",
            "mlp_out": "mlp.c_proj",
        }.items()
        for part in ("weight", "bias")
    },
}
_TRANSFORMERS: _Names = {
    "tokens.weight": ("embeddings.token_embedding.weight",),
    "positions": ("embeddings.position_embedding.weight",),
    "norm.weight": ("final_layer_norm.weight",),
    "norm.bias": ("final_layer_norm.bias",),
}
_TRANSFORMERS_BLOCK: _Names = {
    f"{ours}.{part}": tuple(f"{name}.{part}" for name in theirs)
    for ours, theirs in {
        "attention_norm": ("layer_norm1",),
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "out": ("self_attn.out_proj",),
        "mlp_norm": ("layer_norm2",),
        "mlp_in": ("mlp.fc1",),
        "mlp_out": ("mlp.fc2",),
    }.items()
    for part in ("weight", "bias")
}


def _names(config: Config, top: _Names, block: _Names, prefix: str) -> _Names:
    blocks = {
        f"blocks.{number}.{ours}": tuple(f"{prefix}{number}.{name}" for name in theirs)
        for number in range(config.num_layers)
        for ours, theirs in block.items()
    }
    return {**top, **blocks}


def _count(prefix: str, tensors: Mapping[str, Tensor]) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def _require(names: Sequence[str], tensors: Mapping[str, Tensor], where: str) -> None:
    missing = [name for name in names if name not in tensors]
    if missing:
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        listed = ", ".join(missing[:_LISTED])
        raise FormatError(f"{where}: {len(missing)} tensors of the text tower are missing: {listed}{more}")


def _filled(config: Config, names: _Names, tensors: Mapping[str, Tensor], where: str) -> TextEncoder:
    _require([name for theirs in names.values() for name in theirs], tensors, where)
    encoder = TextEncoder(config)
    found = {ours: torch.cat([tensors[name] for name in theirs]) for ours, theirs in names.items()}
    for ours, wanted in encoder.state_dict().items():
        if found[ours].shape != wanted.shape:
            raise FormatError(
                f"{where}: {' + '.join(names[ours])} has shape {tuple(found[ours].shape)} instead of "
                f"{tuple(wanted.shape)}: it does not fit the rest of the text tower"
            )
    encoder.load_state_dict(found)
    return _frozen(encoder)


def _frozen(encoder: TextEncoder) -> TextEncoder:
    return encoder.eval().requires_grad_(False)
