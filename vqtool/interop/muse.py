"""open-muse's MaskGitTransformer of classes: a folder of `config.json` and weights, its file of weights, or a pipeline.

A pipeline is a folder with `transformer` and `vae`. One table of the network holds codes, classes, rows without use and
the mask, in this order; nothing says which class drops the class, so that guidance compares with the mean of all.
Captions are read with T5 there, which is not understood.
Source: github.com/huggingface/open-muse, muse/modeling_transformer.py (`generate2`) and pipeline_muse.py.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vqtool.conditions import numbered_classes
from vqtool.denoisers import muse
from vqtool.denoisers.muse import Config
from vqtool.errors import FormatError
from vqtool.interop import open_muse
from vqtool.interop._contract import Imported, Options
from vqtool.interop._masked import build_prior
from vqtool.interop._renaming import fill_renamed
from vqtool.interop._sources import Source, listed, tensors_in
from vqtool.interop._vqgan import compare, count

NETWORK = "MaskGitTransformer"
TABLE, PLACES, HEAD = "embed.word_embeddings.weight", "embed.position_embeddings.weight", "mlm_layer.to_logits.weight"
GATE = "transformer_layers.0.ffn.wi_1.weight"
STEPS, TEMPERATURE = 18, 1.0  # of `generate2`; there the temperature is multiplied by 1 - i / S in every call i
EXPECTED = {  # what the published networks of classes are; settings that are left out count as these
    "norm_type": "layernorm",
    "use_bias": False,
    "use_normformer": True,
    "use_encoder_layernorm": True,
    "use_mlm_layer": True,
    "use_mlm_layernorm": True,
    "use_conv_in_out": False,
    "patch_size": 1,
}
EPSILON = 1e-5  # where the settings do not say
NAMES = (
    (r"^norm\.", "encoder_layer_norm."),
    (r"^last\.", "mlm_layer.mlm_dense."),
    (r"^last_norm\.", "mlm_layer.mlm_ln."),
    (r"^head\.", "mlm_layer.to_logits."),
    (r"^blocks\.", "transformer_layers."),
    (r"\.attention_norm\.", ".attn_layer_norm."),
    (r"\.qkv\.", ".attention.{query,key,value}."),
    (r"\.out\.", ".attention.out."),
    (r"\.out_norm\.", ".post_attn_layer_norm."),
    (r"\.mlp_norm\.", ".ffn.pre_mlp_layer_norm."),
    (r"\.w1\.", ".ffn.wi_0."),
    (r"\.w3\.", ".ffn.wi_1."),
    (r"\.inner_norm\.", ".ffn.mid_mlp_layer_norm."),
    (r"\.w2\.", ".ffn.wo."),
)


def recognise(source: Source) -> bool:
    """Whether its settings name such a network, or its weights have their names."""
    marked = {TABLE, GATE} <= tensors_in(source.content).keys()
    return marked or _settings(source).get("_class_name") == NETWORK


def _folder(source: Source) -> str:
    """The subfolder of a pipeline in which the network is; empty if it is no pipeline."""
    return "transformer" if (source.path / "transformer" / "config.json").is_file() else ""


def _settings(source: Source) -> Mapping[str, Any]:
    if source.config is not None:
        return source.config
    file = source.path / _folder(source) / "config.json"
    return source.json(str(file.relative_to(source.path))) if source.content is None and file.is_file() else {}


def load(source: Source, options: Options) -> Imported:
    """The prior; of a pipeline with its tokenizer.

    Raises:
        FormatError: tensors are missing, left over or do not fit, or it is another kind of network.
    """
    whole, notes = source.content is None, list[str]()
    tensors = source.tensors(_folder(source)) if whole else tensors_in(source.content)
    said = _settings(source)
    config = _config(tensors, said, source, options)
    denoiser = fill_renamed(lambda: muse.Network(config), NAMES, _split_table(tensors, config), source)
    conditioner, note = numbered_classes(config.num_classes)
    notes += [note, "null condition: the mean of the classes, which the network was not trained with"]
    prior = build_prior(denoiser, "muse", conditioner, _sampling(config))
    if not (whole and (source.path / "vae").is_dir()):
        return Imported(prior=prior, notes=notes)
    images = open_muse.load(Source(source.path / "vae", copies=source.copies), options)
    return Imported(tokenizer=images.tokenizer, prior=prior, notes=[*notes, *images.notes])


def _config(tensors: Mapping[str, Tensor], said: Mapping[str, Any], source: Source, options: Options) -> Config:
    if said.get("add_cross_attention") or any(".crossattention." in name for name in tensors):
        raise FormatError(f"{source.path}: a network of captions that T5 reads, which is not understood: classes are")
    for name, expected in EXPECTED.items():
        if said.get(name, expected) != expected:
            raise FormatError(f"{source.path}: {name} is {said[name]!r}: only {expected!r} is understood")
    if missing := [name for name in (TABLE, PLACES, HEAD, GATE) if name not in tensors or tensors[name].ndim != 2]:
        raise FormatError(f"{source.path}: {len(missing)} tensors are missing: {listed(missing)}")
    heads = options.num_heads if options.num_heads is not None else said.get("num_attention_heads")
    codes, num_classes = said.get("codebook_size"), said.get("num_classes")
    if not (isinstance(heads, int) and isinstance(codes, int) and isinstance(num_classes, int)):
        raise FormatError(
            f"{source.path}: no settings say how many codes, classes and heads it has: name its config.json with "
            "`config`"
        )
    rows, (num_places, width) = len(tensors[TABLE]), tensors[PLACES].shape
    size = options.grid_size or (math.isqrt(said.get("num_vq_tokens", num_places - 1)),) * 2
    if min(codes, num_classes) < 1 or codes + num_classes >= rows or math.prod(size) >= num_places:
        raise FormatError(
            f"{source.path}: {rows} rows and {num_places} positions are not those of {codes} codes, {num_classes} "
            f"classes and a mask on {size[0]}x{size[1]} cells"
        )
    config = Config(
        codebook_size=codes,
        grid_size=size,
        num_steps=math.prod(size),
        num_layers=count(tensors, r"transformer_layers\.(\d+)\."),
        width=width,
        num_heads=heads,
        mlp_width=len(tensors[GATE]),
        num_classes=num_classes,
        epsilon=said.get("layer_norm_eps", EPSILON),
    )
    compare(
        {
            "vocab_size": (said.get("vocab_size"), rows),
            "mask_token_id": (said.get("mask_token_id"), rows - 1),
            "num_vq_tokens": (said.get("num_vq_tokens"), config.num_steps),
            "hidden_size": (said.get("hidden_size"), width),
            "num_hidden_layers": (said.get("num_hidden_layers"), config.num_layers),
            "intermediate_size": (said.get("intermediate_size"), config.mlp_width),
        },
        source,
    )
    return config


def _split_table(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The tensors, with rows of codes, classes and mask apart and those without use left out."""
    found, codes = dict(tensors), config.codebook_size
    table, places = found.pop(TABLE), found.pop(PLACES)
    classes = table[codes : codes + config.num_classes]
    return {
        **found,
        "tokens.weight": torch.cat([table[:codes], table[-1:]]),
        "classes.weight": torch.cat([classes, classes.mean(0, keepdim=True)]),
        "positions": places[: config.num_steps + 1],
        HEAD: found[HEAD][:codes],
    }


def _sampling(config: Config) -> dict[str, Any]:
    """What `generate2` does if nothing else is said."""
    steps = min(STEPS, config.num_steps)
    shares = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    temperatures = TEMPERATURE * (1 - shares).cumprod(0)
    return {"sampler": "confidence", "steps": steps, "choice_temperature": temperatures.tolist()}
