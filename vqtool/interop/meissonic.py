"""Meissonic's and Monetico's pipelines: a folder of a text prior, tokenizer, text encoder and vocabulary.

The class names of the folder are those of other networks too, so it is told by the settings of its transformer.
Sampling as in the project's scripts: 64 steps at 1,024 pixels and 48 at 512, guidance 9 away from a negative prompt, a
choice temperature from 2 to 0.
Source: github.com/viiika/Meissonic, whose scripts give Meissonic another text encoder,
laion/CLIP-ViT-H-14-laion2B-s32B-b79K: here it is the one in the folder.
"""

from collections.abc import Mapping
from typing import Any

from vqtool.conditions.text_encoders import TextEncoder
from vqtool.denoisers.meissonic import Config
from vqtool.errors import FormatError
from vqtool.interop._contract import Imported, Options
from vqtool.interop._pipelines import AROUND, SCORE, load_pipeline, sampling
from vqtool.interop._sources import Source
from vqtool.tokenizers import Tokenizer

PIPELINE, MARKS = "Pipeline", {"axes_dims_rope", "joint_attention_dim"}
SCALE, CALLS = 9.0, 64  # T of the kernel, too: the most calls that its makers make
STEPS = {True: CALLS, False: 48}  # of a network that halves its grid, and of one that does not
PIXELS = {True: 1024, False: 512}
NEGATIVE = (
    "worst quality, low quality, low res, blurry, distortion, watermark, logo, signature, text, jpeg artifacts, "
    "signature, sketch, duplicate, ugly, identifying mark"
)
NAMES = (  # pattern of ours -> theirs, in this order
    *AROUND,
    (r"^text\.", "context_embedder."),
    (r"^text_norm\.", "encoder_proj_layer_norm."),
    (r"^picture\.0\.", "cond_embed.linear_1."),
    (r"^picture\.2\.", "cond_embed.linear_2."),
    (r"^time\.0\.", "time_text_embed.timestep_embedder.linear_1."),
    (r"^time\.2\.", "time_text_embed.timestep_embedder.linear_2."),
    (r"^conditioning\.0\.", "time_text_embed.text_embedder.linear_1."),
    (r"^conditioning\.2\.", "time_text_embed.text_embedder.linear_2."),
    (r"^two_streams\.(\d+)\.text\.modulation\.", r"transformer_blocks.\1.norm1_context.linear."),
    (r"^two_streams\.(\d+)\.text\.qkv\.", r"transformer_blocks.\1.attn.add_{q,k,v}_proj."),
    (r"^two_streams\.(\d+)\.text\.(q|k)_norm\.", r"transformer_blocks.\1.attn.norm_added_\2."),
    (r"^two_streams\.(\d+)\.text\.out\.", r"transformer_blocks.\1.attn.to_add_out."),
    (r"^two_streams\.(\d+)\.text\.first\.", r"transformer_blocks.\1.ff_context.net.0.proj."),
    (r"^two_streams\.(\d+)\.text\.second\.", r"transformer_blocks.\1.ff_context.net.2."),
    (r"^two_streams\.(\d+)\.cells\.modulation\.", r"transformer_blocks.\1.norm1.linear."),
    (r"^two_streams\.(\d+)\.cells\.out\.", r"transformer_blocks.\1.attn.to_out.0."),
    (r"^two_streams\.(\d+)\.cells\.first\.", r"transformer_blocks.\1.ff.net.0.proj."),
    (r"^two_streams\.(\d+)\.cells\.second\.", r"transformer_blocks.\1.ff.net.2."),
    (r"^two_streams\.(\d+)\.cells\.", r"transformer_blocks.\1."),
    (r"^one_stream\.(\d+)\.modulation\.", r"single_transformer_blocks.\1.norm.linear."),
    (r"^one_stream\.(\d+)\.out\.", r"single_transformer_blocks.\1.proj_out."),
    (r"^one_stream\.(\d+)\.first\.", r"single_transformer_blocks.\1.proj_mlp."),
    (r"^one_stream\.", "single_transformer_blocks."),
    (r"(\d+)\.qkv\.", r"\1.attn.to_{q,k,v}."),
    (r"(\d+)\.(q|k)_norm\.", r"\1.attn.norm_\2."),
)


def recognise(source: Source) -> bool:
    """Whether it is the folder of such a pipeline."""
    path = source.path / "transformer" / "config.json"
    there = source.is_pipeline(PIPELINE) and path.is_file()
    return there and source.json("transformer/config.json").keys() >= MARKS


def load(source: Source, options: Options) -> Imported:
    """The prior of a pipeline with its tokenizer and text encoder.

    Raises:
        FormatError: it is incomplete, or of another kind of network.
        MismatchError: its parts do not fit together.
    """
    return load_pipeline(source, options, "meissonic", NAMES, _config, _sampling)


def _sampling(config: Config) -> dict[str, Any]:
    return {**sampling(STEPS[config.halves], SCALE, config), "negative": NEGATIVE}


def _config(settings: Mapping[str, Any], source: Source, encoder: TextEncoder, tokenizer: Tokenizer) -> Config:
    where = f"{source.path}/transformer"
    halves = settings.get("downsample", False)
    if halves != settings.get("upsample", False):
        raise FormatError(f"{where}: downsample and upsample differ: both or none is understood")
    if settings.get("guidance_embeds"):
        raise FormatError(f"{where}: guidance_embeds is on: only a network that is not told the guidance is understood")
    pixels = PIXELS[bool(halves)]
    try:
        grid_size = tokenizer.grid_size((pixels, pixels))
        config = Config(
            codebook_size=settings["codebook_size"],
            grid_size=grid_size,
            num_steps=CALLS,
            num_double=settings["num_layers"],
            num_single=settings["num_single_layers"],
            width=settings["num_attention_heads"] * settings["attention_head_dim"],
            num_heads=settings["num_attention_heads"],
            axes=tuple(settings["axes_dims_rope"]),
            text_width=settings["joint_attention_dim"],
            pooled_width=encoder.config.pooled_width,
            micro_conditions=(float(pixels), float(pixels), 0.0, 0.0, SCORE),
            halves=bool(halves),
        )
        pooled = settings["pooled_projection_dim"]
    except KeyError as error:
        raise FormatError(f"{where}: its config.json says nothing of {error.args[0]}") from error
    except (TypeError, ValueError) as error:
        raise FormatError(f"{where}: its config.json is not that of Meissonic's network: {error}") from error
    if pooled != config.width:
        raise FormatError(f"{where}: pooled_projection_dim {pooled} is not the width of the network, {config.width}")
    return config
