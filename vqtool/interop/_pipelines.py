"""What folders of pipelines have in common: text and vocabulary; in aMUSEd's layout all parts of a masked prior.

The vocabulary of the network is larger than its codes: row `mask_token_id` of the embedding is the mask.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from vqtool import denoisers
from vqtool.conditions.clip import ClipCondition
from vqtool.conditions.text_encoders import TextEncoder
from vqtool.errors import FormatError, MismatchError
from vqtool.interop import diffusers_vqmodel, transformers
from vqtool.interop._contract import Imported, Options
from vqtool.interop._masked import build_prior
from vqtool.interop._renaming import Patterns, fill_renamed
from vqtool.interop._sources import Source, listed
from vqtool.samplers._published import COMPLETING
from vqtool.tokenizers import Tokenizer

TEMPERATURE, SCORE = 2.0, 6.0  # of the published pipelines
AROUND = (  # the layers, in Meissonic too: pattern of ours -> theirs
    (r"^tokens\.", "embed.embeddings."),
    (r"^token_norm\.", "embed.layer_norm."),
    (r"^token_out\.", "embed.conv."),
    (r"^halving\.", "down_block.downsample."),
    (r"^doubling\.", "up_block.upsample."),
    (r"^into_norm\.", "project_to_hidden_norm."),
    (r"^into\.", "project_to_hidden."),
    (r"^back_norm\.", "project_from_hidden_norm."),
    (r"^back\.", "project_from_hidden."),
    (r"^head_in\.", "mlm_layer.conv1."),
    (r"^head_norm\.", "mlm_layer.layer_norm."),
    (r"^head_out\.", "mlm_layer.conv2."),
)


def load_pipeline(
    source: Source,
    options: Options,
    name: str,
    patterns: Patterns,
    read_config: Callable[[Mapping[str, Any], Source, TextEncoder, Tokenizer], Any],
    settle: Callable[[Any], dict[str, Any]],
) -> Imported:
    """The prior of a pipeline with its tokenizer and text encoder.

    Args:
        source: its folder.
        options: what the user says.
        name: of the denoiser.
        patterns: our names of its weights -> theirs.
        read_config: the denoiser's Config, from `transformer/config.json`.
        settle: how it is sampled as published, from that Config.

    Raises:
        FormatError: it is incomplete, or of another kind of network.
        MismatchError: its parts do not fit together.
    """
    notes: list[str] = []
    encoder, conditioner = read_text(source, options, pooled=True)
    tokenizer = diffusers_vqmodel.read_vqmodel(source, "vqvae", options=options, notes=notes)
    settings = source.json("transformer/config.json")
    config = read_config(settings, source, encoder, tokenizer)
    _compare_parts(config.codebook_size, config.text_width, config.pooled_width, tokenizer, encoder, source)
    mask_id = _read_mask_id(source, settings)
    tensors = _take_tokens(source.tensors("transformer"), mask_id, config, source)
    denoiser = fill_renamed(lambda: denoisers.module(name).Network(config), patterns, tensors, source)
    return Imported(
        tokenizer=tokenizer,
        prior=build_prior(denoiser, name, conditioner, settle(config), text_encoder=encoder),
        text_encoder=encoder,
        notes=[*notes, f"micro-conditions: {listed(f'{number:g}' for number in config.micro_conditions)}"],
    )


def read_text(source: Source, options: Options, *, pooled: bool) -> tuple[TextEncoder, ClipCondition]:
    """The text encoder of a pipeline, and its vocabulary."""
    folder = Source(source.path / "text_encoder")
    encoder = transformers.read_text_encoder(folder.tensors(), folder.json("config.json"), folder, pooled=pooled)
    length = encoder.config.max_length
    conditioner = transformers.read_vocabulary(options.vocabulary or source.path / "tokenizer", length)
    if conditioner.vocabulary_size > encoder.config.vocabulary_size:
        raise MismatchError(
            f"{source.path}: the vocabulary has {conditioner.vocabulary_size} tokens, the text encoder "
            f"{encoder.config.vocabulary_size}: name the right one with `vocabulary`"
        )
    return encoder, conditioner


def _compare_parts(
    codes: int, text_width: int, pooled_width: int, tokenizer: Tokenizer, encoder: TextEncoder, source: Source
) -> None:
    """Raise MismatchError unless the parts of a pipeline fit together."""
    for what, prior, other in (
        ("codes of the transformer and the tokenizer", codes, tokenizer.codebook_size),
        ("widths of the transformer's text and the text encoder", text_width, encoder.config.width),
        ("widths of the transformer's pooled text and the text encoder's", pooled_width, encoder.config.pooled_width),
    ):
        if prior != other:
            raise MismatchError(f"{source.path}: its parts do not fit together: {what} are {prior} and {other}")


def _read_mask_id(source: Source, settings: Mapping[str, Any]) -> int:
    """The row of the mask in the embedding: the scheduler's, which has to be beyond the codes."""
    mask_id, size = source.json("scheduler/scheduler_config.json").get("mask_token_id"), settings.get("vocab_size", 0)
    if not isinstance(mask_id, int) or not settings.get("codebook_size", 0) <= mask_id < size:
        raise FormatError(f"{source.path}/scheduler: mask_token_id {mask_id!r} is no row of a mask among {size}")
    return mask_id


def _take_tokens(tensors: Mapping[str, Tensor], mask_id: int, config: Any, source: Source) -> dict[str, Tensor]:
    """The tensors, with the rows of the codes and of the mask alone in the embedding of tokens."""
    name, codes = "embed.embeddings.weight", config.codebook_size
    if name not in tensors or tensors[name].ndim != 2 or len(tensors[name]) <= max(mask_id, codes):
        raise FormatError(f"{source.path}: {name} is missing, or has no row of the mask {mask_id}")
    return {**tensors, name: torch.cat([tensors[name][:codes], tensors[name][mask_id : mask_id + 1]])}


def sampling(steps: int, scale: float, config: Any) -> dict[str, Any]:
    """The published settings; their temperature falls by i / (S - 1), ours by (i + 1) / S, times a factor."""
    steps = min(steps, config.grid_size[0] * config.grid_size[1])
    return {
        "sampler": "confidence",
        "steps": steps,
        "choice_temperature": TEMPERATURE * steps / max(1, steps - 1),
        "cfg_scale": scale,
        COMPLETING: {"plan": "linear"},
    }
