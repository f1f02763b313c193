"""transformers' CLIPTextModel and CLIPTokenizer: the folders of a text encoder and of its vocabulary."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vqtool.conditions.clip import END, END_OF_WORD, MAX_LENGTH, START, ClipCondition, ClipVocabulary, Words
from vqtool.conditions.text_encoders import Config, TextEncoder
from vqtool.errors import FormatError
from vqtool.interop._sources import Source
from vqtool.interop._stacking import Names, block_names, fill_stacked
from vqtool.outputs import atomic_path
from vqtool.trust import parse_record, read_json, read_text

ACTIVATION, EPSILON = "quick_gelu", 1e-5  # of all of OpenAI's
PREFIX = "text_model."  # of each name; left out by some versions
TOP = {
    "tokens.weight": ("embeddings.token_embedding.weight",),
    "positions": ("embeddings.position_embedding.weight",),
    "norm.weight": ("final_layer_norm.weight",),
    "norm.bias": ("final_layer_norm.bias",),
}
BLOCK = {
    "attention_norm": ("layer_norm1",),
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.out_proj",),
    "mlp_norm": ("layer_norm2",),
    "mlp_in": ("mlp.fc1",),
    "mlp_out": ("mlp.fc2",),
}
SETTINGS = {  # a field of Config -> its name in config.json
    "vocabulary_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
}
OLD_END = 2  # an eos_token_id that stands for the largest token
_NO_LIMIT = 1 << 20  # a tokenizer's model_max_length from here on says nothing


def read_text_encoder(
    tensors: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    source: Source,
    *,
    pooled: bool = False,
    gelu: bool = False,
) -> TextEncoder:
    """The tower of a CLIPTextModel.

    Args:
        tensors: of its folder, with or without `text_model.` before each name.
        settings: of its config.json.
        source: for messages.
        pooled: whether it is a CLIPTextModelWithProjection, whose states before the last block and pooled text count.
        gelu: whether MLPs may have an exact GELU, which others than OpenAI's have.

    Raises:
        FormatError: the settings are not CLIP's, or tensors are missing or do not fit.
    """
    settings = settings.get("text_config") or settings
    activation, epsilon = settings.get("hidden_act", ACTIVATION), settings.get("layer_norm_eps", EPSILON)
    if activation not in ((ACTIVATION, "gelu") if pooled or gelu else (ACTIVATION,)) or epsilon != EPSILON:
        raise FormatError(
            f"{source.path}: hidden_act {activation} and layer_norm_eps {epsilon} are not those of OpenAI's text "
            f"towers, {ACTIVATION} and {EPSILON}, the only ones understood"
        )
    if missing := [name for name in SETTINGS.values() if name not in settings]:
        raise FormatError(f"{source.path}: its config.json says nothing of {missing[0]}")
    where = f"{source.path}: config.json"
    values = {ours: settings[theirs] for ours, theirs in SETTINGS.items()}
    values["activation"] = "gelu" if activation == "gelu" else "gelu2"
    if pooled:
        end = settings.get("eos_token_id", OLD_END)
        values |= {
            "features": "penultimate",
            "pooled_width": settings.get("projection_dim", 0),
            "end_token": None if end == OLD_END else end,
        }
    config = parse_record(Config, values, where)
    bare = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    return (
        fill_stacked(lambda: TextEncoder(config), _names(config), bare, source, ignored=[".*"])
        .eval()
        .requires_grad_(False)
    )


def export_text_encoder(encoder: TextEncoder) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and settings of a CLIPTextModel, with any projection: what `read_text_encoder` reads."""
    names, tensors = _names(encoder.config), {}
    for name, tensor in encoder.state_dict().items():
        for theirs, part in zip(names[name], tensor.chunk(len(names[name])), strict=True):
            prefix = "" if theirs.startswith("text_projection.") else PREFIX
            tensors[prefix + theirs] = part.contiguous()
    config, pooled = encoder.config, encoder.config.pooled_width
    settings = {
        "architectures": ["CLIPTextModelWithProjection" if pooled else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_act": ACTIVATION if config.activation == "gelu2" else config.activation,
        "layer_norm_eps": EPSILON,
        **({"projection_dim": pooled} if pooled else {}),
        **({"eos_token_id": OLD_END if config.end_token is None else config.end_token} if pooled else {}),
        **{theirs: getattr(encoder.config, ours) for ours, theirs in SETTINGS.items()},
    }
    return tensors, settings


def _names(config: Config) -> Names:
    pooled: Names = {"pooled.weight": ("text_projection.weight",)} if config.pooled_width else {}
    return {**TOP, **pooled, **block_names(BLOCK, "blocks.", "encoder.layers.", config.num_layers)}


def read_vocabulary(folder: Path, max_length: int = MAX_LENGTH) -> ClipCondition:
    """The conditioner of a folder that a CLIPTokenizer was saved to.

    Args:
        folder: with tokenizer.json, or vocab.json and merges.txt, and the settings beside them.
        max_length: tokens that the text encoder reads; the folder may say fewer.

    Raises:
        FormatError: files are missing or are not CLIP's.
    """
    files = [folder / name for name in ("special_tokens_map.json", "tokenizer_config.json")]
    settings = {name: value for file in files if file.is_file() for name, value in read_json(file).items()}
    start, end, pad = (
        _text(settings.get(f"{role}_token")) or word for role, word in (("bos", START), ("eos", END), ("pad", END))
    )
    words = _read_model(folder)
    tokens = words.tokens
    missing = [word for word in (start, end, pad) if word not in tokens]
    if missing:
        raise FormatError(f"{folder}: its vocabulary has no {', '.join(missing)}")
    limit = settings.get("model_max_length") or _NO_LIMIT
    if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit >= 2:
        raise FormatError(f"{folder}: its model_max_length {limit!r:.60} is no number of tokens")
    vocabulary = ClipVocabulary(tokens, words.merges, tuple(dict.fromkeys((start, end, pad))))
    vocabulary.check(f"{folder}: its vocabulary")
    length = max_length if limit >= _NO_LIMIT else min(max_length, int(limit))
    return ClipCondition(vocabulary, max_length=length, pad=tokens[pad])


def write_vocabulary(conditioner: ClipCondition, folder: Path) -> None:
    """Write the folder that CLIPTokenizer.from_pretrained reads; made if it is not there."""
    vocabulary = conditioner.vocabulary
    words = {number: word for word, number in vocabulary.tokens.items()}
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": vocabulary.special[0],
        "eos_token": vocabulary.special[1],
        "pad_token": words[conditioner.pad],
        "unk_token": vocabulary.special[1],
        "model_max_length": conditioner.max_length,
    }
    merges = "\n".join(["#version: 0.2", *(f"{left} {right}" for left, right in vocabulary.merges)])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {
        "vocab.json": json.dumps(dict(vocabulary.tokens), ensure_ascii=False),
        "merges.txt": merges,
        "tokenizer_config.json": json.dumps(settings, indent=2),
    }.items():
        with atomic_path(folder / name, force=True) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def _read_model(folder: Path) -> Words:
    file = folder / "tokenizer.json"
    if not file.is_file():
        names = folder / "vocab.json", folder / "merges.txt"
        if not all(name.is_file() for name in names):
            raise FormatError(
                f"{folder}: no CLIP tokenizer: tokenizer.json, or vocab.json and merges.txt, are expected"
            )
        lines = read_text(names[1]).split("\n")
        found = read_json(names[0]), [line for line in lines if line and not line.startswith("#version")]
    else:
        model = read_json(file).get("model", {})
        if model.get("type", "BPE") != "BPE" or model.get("end_of_word_suffix") != END_OF_WORD:
            raise FormatError(f"{file}: not a tokenizer of CLIP: a BPE model with {END_OF_WORD} is expected")
        found = model.get("vocab", {}), model.get("merges", [])
    tokens, merges = found
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges] if isinstance(merges, list) else []
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise FormatError(f"{folder}: its merges are not pairs of tokens")
    return parse_record(Words, {"tokens": tokens, "merges": pairs}, f"{folder}: its vocabulary")


def _text(token: Any) -> str | None:
    """A special token as written: a text, or an object that holds it."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
