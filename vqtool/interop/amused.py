"""diffusers' AmusedPipeline: a folder of a text prior (UVit2DModel), tokenizer, text encoder and vocabulary.

The vocabulary of the network is larger than its codes: row `mask_token_id` of the embedding is the mask, the others
beyond the codes are never used. Sampling as published: 12 steps, guidance 10, a choice temperature from 2 to 0.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vqtool.conditions.clip import ClipCondition
from vqtool.conditions.text_encoders import TextEncoder
from vqtool.denoisers.amused import Config
from vqtool.errors import FormatError, VqtoolError, size_text
from vqtool.interop import diffusers
from vqtool.interop._contract import Imported, Options
from vqtool.interop._pipelines import AROUND, SCORE, load_pipeline, sampling
from vqtool.interop._renaming import renamed
from vqtool.interop._sources import Source
from vqtool.priors import Prior
from vqtool.tokenizers import Tokenizer

PIPELINE, NETWORK = "AmusedPipeline", "UVit2DModel"
STEPS, SCALE = 12, 10.0  # of the published pipeline
NUM_MICRO = 5
EXPECTED = {"use_bias": False, "ln_elementwise_affine": True}
SETTINGS = {  # a field of Config -> its name in config.json
    "codebook_size": "codebook_size",
    "num_layers": "num_hidden_layers",
    "width": "hidden_size",
    "num_heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "token_width": "in_channels",
    "outer_width": "block_out_channels",
    "num_outer_blocks": "num_res_blocks",
    "num_outer_heads": "block_num_heads",
    "text_width": "encoder_hidden_size",
    "pooled_width": "cond_embed_dim",
    "micro_width": "micro_cond_encode_dim",
    "epsilon": "layer_norm_eps",
}
NAMES = (  # pattern of ours -> theirs, in this order
    *AROUND,
    (r"^text\.", "encoder_proj."),
    (r"^text_norm\.", "encoder_proj_layer_norm."),
    (r"^condition_in\.", "cond_embed.linear_1."),
    (r"^condition_out\.", "cond_embed.linear_2."),
    (r"^(down|up)\.(\d+)\.residual\.first\.", r"\1_block.res_blocks.\2.channelwise_linear_1."),
    (r"^(down|up)\.(\d+)\.residual\.second\.", r"\1_block.res_blocks.\2.channelwise_linear_2."),
    (r"^(down|up)\.(\d+)\.residual\.(gamma|beta)$", r"\1_block.res_blocks.\2.channelwise_norm.\3"),
    (r"^(down|up)\.(\d+)\.residual\.modulation\.", r"\1_block.res_blocks.\2.cond_embeds_mapper."),
    (r"^(down|up)\.(\d+)\.residual\.", r"\1_block.res_blocks.\2."),
    (r"^(down|up)\.(\d+)\.text\.", r"\1_block.attention_blocks.\2.kv_mapper."),
    (r"^(down|up)\.(\d+)\.", r"\1_block.attention_blocks.\2."),
    (r"^layers\.(\d+)\.first\.", r"transformer_layers.\1.ff.net.0.proj."),
    (r"^layers\.(\d+)\.second\.", r"transformer_layers.\1.ff.net.2."),
    (r"^layers\.(\d+)\.(norm\d)\.modulation\.", r"transformer_layers.\1.\2.linear."),
    (r"^layers\.", "transformer_layers."),
    (r"\.(attn\d)\.(q|k|v)\.", r".\1.to_\2."),
    (r"\.(attn\d)\.out\.", r".\1.to_out.0."),
)


def recognise(source: Source) -> bool:
    """Whether it is the folder of such a pipeline."""
    return source.is_pipeline(PIPELINE)


def load(source: Source, options: Options) -> Imported:
    """The prior of a pipeline with its tokenizer and text encoder.

    Raises:
        FormatError: it is incomplete, or of another kind of network.
        MismatchError: its parts do not fit together.
    """
    found = load_pipeline(source, options, "amused", NAMES, _config, lambda config: sampling(STEPS, SCALE, config))
    return replace(found, notes=[*found.notes, "null condition: the empty caption"])


def export(prior: Prior, tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Write the folder of a pipeline, which diffusers' `AmusedPipeline.from_pretrained` reads.

    Args:
        prior: with this network.
        tokenizer: what its tokens decode with.
        folder: made if it is not there; files of these names are replaced.

    Returns:
        What the user should know.

    Raises:
        VqtoolError: a pipeline cannot hold this prior or tokenizer; says why.
        MismatchError: they do not fit together.
    """
    config, conditioner, encoder = prior.denoiser.config, prior.conditioner, prior.text_encoder
    if not isinstance(config, Config) or not isinstance(conditioner, ClipCondition) or encoder is None:
        raise VqtoolError("an AmusedPipeline holds captions that CLIP reads, and this prior comes without its encoder")
    if len(set(config.grid_size)) > 1:
        raise VqtoolError(f"an AmusedPipeline holds square grids, not {size_text(config.grid_size)}")
    diffusers.export_around(prior, config.codebook_size, tokenizer, conditioner, encoder, folder)
    tensors = {name: _as_published(name, tensor) for name, tensor in renamed(prior.denoiser, NAMES).items()}
    diffusers.write_part(folder / "transformer", _settings(config), diffusers.WEIGHTS, tensors)
    scheduler = {"_class_name": "AmusedScheduler", "mask_token_id": config.codebook_size, "masking_schedule": "cosine"}
    diffusers.write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    diffusers.write_json(folder / "model_index.json", _INDEX)
    return diffusers.export_notes(conditioner)


_INDEX = {
    "_class_name": PIPELINE,
    "scheduler": ["diffusers", "AmusedScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "transformer": ["diffusers", NETWORK],
    "vqvae": ["diffusers", "VQModel"],
}


def _as_published(name: str, tensor: Tensor) -> Tensor:
    """A tensor in the shape that it has there: linear maps of cells are convolutions, and grn's weights have 4 axes."""
    if re.fullmatch(r"embed\.conv\.weight|mlm_layer\.conv\d\.weight", name):
        return tensor[..., None, None]
    return tensor[None, None, None] if name.endswith(("gamma", "beta")) else tensor


def _settings(config: Config) -> dict[str, Any]:
    named = {theirs: getattr(config, ours) for ours, theirs in SETTINGS.items()}
    return {
        "_class_name": NETWORK,
        **EXPECTED,
        **named,
        "downsample": config.halves,
        "upsample": config.halves,
        "sample_size": config.grid_size[0],
        "micro_cond_embed_dim": NUM_MICRO * config.micro_width,
        "vocab_size": config.codebook_size + 1,
    }


def _config(settings: Mapping[str, Any], source: Source, encoder: TextEncoder, tokenizer: Tokenizer) -> Config:
    where = f"{source.path}/transformer"
    if settings.get("_class_name", NETWORK) != NETWORK:
        raise FormatError(f"{where}: _class_name is {settings['_class_name']!r}: {NETWORK} is expected")
    for name, expected in EXPECTED.items():
        if settings.get(name, expected) != expected:
            raise FormatError(f"{where}: {name} is {settings[name]!r}: only {expected!r} is understood")
    if settings.get("downsample", False) != settings.get("upsample", False):
        raise FormatError(f"{where}: downsample and upsample differ: both or none is understood")
    try:
        side = settings["sample_size"]
        height, width = map(float, tokenizer.image_size((side, side)))
        if settings["micro_cond_embed_dim"] != NUM_MICRO * settings["micro_cond_encode_dim"]:
            raise FormatError(
                f"{where}: micro_cond_embed_dim {settings['micro_cond_embed_dim']} is not {NUM_MICRO} times "
                f"micro_cond_encode_dim {settings['micro_cond_encode_dim']}: the network could not run"
            )
        return Config(
            grid_size=(side, side),
            num_steps=side * side,
            **{ours: settings[theirs] for ours, theirs in SETTINGS.items()},
            micro_conditions=(width, height, 0.0, 0.0, SCORE),
            halves=settings.get("downsample", False),
        )
    except KeyError as error:
        raise FormatError(f"{where}: its config.json says nothing of {error.args[0]}") from error
    except (TypeError, ValueError) as error:
        raise FormatError(f"{where}: its config.json is not that of a {NETWORK}: {error}") from error
