"""Halton-MaskGIT's priors (.pth): `model_state_dict` of a training checkpoint, in which no setting stands.

The number of heads is that of the published model of the same width; other widths need it said. Its tokens are those of
LlamaGen's tokenizer `vq_ds16_c2i.pt`.
Source: github.com/valeoai/Halton-MaskGIT, Network/transformer.py and Trainer/cls_trainer.py.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vqtool.conditions import numbered_classes
from vqtool.denoisers import halton_maskgit
from vqtool.denoisers.halton_maskgit import Config
from vqtool.errors import FormatError
from vqtool.interop._contract import Imported, Options
from vqtool.interop._masked import build_prior
from vqtool.interop._sources import Source, count_numbers, fill, listed, tensors_in
from vqtool.interop._vqgan import compare

PUBLISHED_HEADS = {384: 6, 512: 6, 768: 12, 1024: 16, 1152: 16}  # width -> heads
PUBLISHED_SCALES = {  # (width, cells a side) -> w of the published scores
    (384, 16): 1.5,
    (512, 16): 1.0,
    (768, 16): 0.7,
    (512, 24): 1.0,
    (768, 24): 0.7,
    (1024, 24): 0.5,
}
STEPS = 32
WARMUP = 2.0  # temperature of the first step, 1 in all others: the logits are halved there
TOP = {
    "classes.weight": "cls_emb.weight",
    "tokens.weight": "tok_emb.weight",
    "positions": "pos_emb.weight",
    "registers": "reg_tokens.weight",
    "norm_scale": "last_norm.norm_final.weight",
    "norm_shift": "last_norm.norm_final.bias",
    "modulation.weight": "last_norm.mlp.1.weight",
    "modulation.bias": "last_norm.mlp.1.bias",
    "head_bias": "head.bias",
}
BLOCK = {
    "modulation.weight": "mlp.1.weight",
    "modulation.bias": "mlp.1.bias",
    "attention_norm.weight": "ln1.weight",
    "attention.q.weight": "attn.wq.weight",
    "attention.k.weight": "attn.wk.weight",
    "attention.v.weight": "attn.wv.weight",
    "attention.out.weight": "attn.wo.weight",
    "mlp_norm.weight": "ln2.weight",
    "mlp.w1.weight": "ff.w1.weight",
    "mlp.w2.weight": "ff.w2.weight",
    "mlp.w3.weight": "ff.w3.weight",
}


def recognise(source: Source) -> bool:
    """Whether it holds the layers of such a network, under their names."""
    return {"cls_emb.weight", "tok_emb.weight", "transformer.layers.0.ff.w3.weight"} <= _state(source).keys()


def _state(source: Source) -> dict[str, Tensor]:
    """The weights, without what compiling and several GPUs put before their names."""
    content = source.content if isinstance(source.content, Mapping) else {}
    tensors = tensors_in(content.get("model_state_dict")) or tensors_in(content)
    return {re.sub(r"(module|_orig_mod)\.", "", name): value for name, value in tensors.items()}


def load(source: Source, options: Options) -> Imported:
    """The prior; its tokenizer is a file of its own.

    Raises:
        FormatError: tensors are missing, left over or do not fit, or the number of heads is not known.
    """
    notes: list[str] = []
    tensors = _state(source)
    config = _config(tensors, source, options, notes)
    head = tensors.pop("head.weight", None)
    if head is not None and not torch.equal(head, tensors["tok_emb.weight"]):
        raise FormatError(f"{source.path}: head.weight is not tok_emb.weight, as it is in all of these models")
    names = {**TOP, **{f"blocks.{n}.{ours}": f"transformer.layers.{n}.{theirs}" for n, ours, theirs in _blocks(config)}}
    if not config.num_registers:
        tensors["reg_tokens.weight"] = torch.zeros(0, config.width)
    found = {ours: tensors.pop(theirs) for ours, theirs in names.items() if theirs in tensors}
    denoiser = fill(lambda: halton_maskgit.Network(config), {**found, **tensors}, source, names=names)
    conditioner, note = numbered_classes(config.num_classes)
    settings = _sampling(config)
    notes += [note, "sampling as published: " + ", ".join(f"{name} {value}" for name, value in settings.items())]
    return Imported(prior=build_prior(denoiser, "halton-maskgit", conditioner, settings), notes=notes)


def _blocks(config: Config) -> list[tuple[int, str, str]]:
    return [(number, *names) for number in range(config.num_layers) for names in BLOCK.items()]


def _config(tensors: Mapping[str, Tensor], source: Source, options: Options, notes: list[str]) -> Config:
    if any(name.startswith(("in_proj.", "out_proj.")) for name in tensors):
        raise FormatError(
            f"{source.path}: a network on patches of cells (in_proj, out_proj), none of which is published"
        )
    needed = {"pos_emb.weight": 2, "last_norm.norm_final.weight": 1, "transformer.layers.0.ff.w1.weight": 2}
    if missing := [name for name, ndim in needed.items() if name not in tensors or tensors[name].ndim != ndim]:
        raise FormatError(f"{source.path}: {len(missing)} tensors are missing: {listed(missing)}")
    num_cells, width = tensors["pos_emb.weight"].shape
    grid = _grid_size(num_cells, source, options)
    try:
        config = Config(
            codebook_size=len(tensors["tok_emb.weight"]) - 1,
            grid_size=grid,
            num_steps=num_cells,
            num_layers=count_numbers(name.split(".")[2] for name in tensors if name.startswith("transformer.layers.")),
            width=width,
            num_heads=_num_heads(width, source, options, notes),
            mlp_width=len(tensors["transformer.layers.0.ff.w1.weight"]),
            num_classes=len(tensors["cls_emb.weight"]) - 1,
            num_registers=len(tensors.get("reg_tokens.weight", ())),
        )
    except ValueError as error:
        raise FormatError(f"{source.path}: {error}") from error
    said = source.config or {}
    side = said["img_size"] // said["f_factor"] if {"img_size", "f_factor"} <= said.keys() else None
    compare(
        {
            "codebook_size": (said.get("codebook_size"), config.codebook_size),
            "mask_value": (said.get("mask_value"), config.codebook_size),
            "register": (said.get("register"), config.num_registers),
            "nb_class": (said.get("nb_class"), config.num_classes),
            "img_size / f_factor": (side, grid[0]),
        },
        source,
    )
    return config


def _num_heads(width: int, source: Source, options: Options, notes: list[str]) -> int:
    if options.num_heads is not None:
        return options.num_heads
    if width not in PUBLISHED_HEADS:
        raise FormatError(
            f"{source.path}: neither weights nor settings say how many heads attention has, and {width} is not the "
            f"width of a published model ({listed(map(str, PUBLISHED_HEADS))}): say it with `num_heads`"
        )
    notes.append(f"attention heads: {PUBLISHED_HEADS[width]}, as in the published model of this width (`num_heads`)")
    return PUBLISHED_HEADS[width]


def _grid_size(num_cells: int, source: Source, options: Options) -> tuple[int, int]:
    side = math.isqrt(num_cells)
    size = options.grid_size or (side, side)
    if math.prod(size) != num_cells:
        what = f"a grid of {size[0]}x{size[1]} cells" if options.grid_size else "no square grid"
        raise FormatError(f"{source.path}: has {num_cells} positions, {what}: give their layout, `grid_size`")
    return size


def _sampling(config: Config) -> dict[str, Any]:
    """How the published scores were measured: Halton order, the first step warmer, guidance by the model's size."""
    scale = PUBLISHED_SCALES.get((config.width, config.grid_size[0]), 1.0)
    return {
        "sampler": "halton",
        "steps": min(STEPS, math.prod(config.grid_size)),
        "cfg_scale": 1 + scale,
        "temperature": [WARMUP, *[1.0] * (STEPS - 1)],
    }
