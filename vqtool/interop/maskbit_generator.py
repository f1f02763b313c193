"""MaskBit's generators (.bin), with their YAML file beside them: bare state dicts of an `LFQBert`.

Its tokens are those of the tokenizer of as many bits. Published files call the first layer `token_emb`, the code
`input_proj`.
Source: github.com/markweberdev/maskbit, modeling/bert.py and its sampling script.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vqtool.conditions import numbered_classes
from vqtool.denoisers import maskbit
from vqtool.denoisers.maskbit import Config
from vqtool.errors import FormatError
from vqtool.interop._contract import Imported, Options
from vqtool.interop._masked import build_prior
from vqtool.interop._renaming import fill_renamed
from vqtool.interop._sources import Source, count_numbers, listed, tensors_in
from vqtool.interop._vqgan import compare
from vqtool.samplers._settings import Guidance

LAYER = "transformer.layers."
INDICES = "bits_to_indices"
MARKS = {"class_emb.weight", "prediction_layer.weight", INDICES}
PUBLISHED_HEADS = {1024: 16}  # width -> heads
SCHEDULES = {"cosine": "power-cosine", "linear": "linear", "none": "constant"}  # theirs -> ours
PUBLISHED = {  # bits -> steps, guidance, its power, temperature of the choice, with the best score
    10: (64, 6.4, 2.5, 10.5),
    12: (64, 7.1, 3.0, 8.2),
    14: (256, 5.8, 3.0, 10.3),
    16: (64, 6.5, 2.5, 7.5),
    18: (64, 5.7, 2.5, 8.5),
}
NAMES = (
    (r"^bits\.", "input_proj."),
    (r"^classes\.", "class_emb."),
    (r"^positions$", "pos_emb"),
    (r"^norm_in\.", "first_layer.0."),
    (r"^last\.", "last_layer.0."),
    (r"^norm_out\.", "last_layer.2."),
    (r"^head\.", "prediction_layer."),
    (r"^blocks\.(\d+)\.qkv\.", r"transformer.layers.\1.0.mha.in_proj_"),
    (r"^blocks\.(\d+)\.out\.", r"transformer.layers.\1.0.mha.out_proj."),
    (r"^blocks\.(\d+)\.norm1\.", r"transformer.layers.\1.0.norm."),
    (r"^blocks\.(\d+)\.first\.", r"transformer.layers.\1.1.net.0."),
    (r"^blocks\.(\d+)\.second\.", r"transformer.layers.\1.1.net.2."),
    (r"^blocks\.(\d+)\.norm2\.", r"transformer.layers.\1.1.norm."),
)


def recognise(source: Source) -> bool:
    """Whether it holds the layers of such a network, under their names."""
    return tensors_in(source.content).keys() >= MARKS


def load(source: Source, options: Options) -> Imported:
    """The prior; its tokenizer is a file of its own.

    Raises:
        FormatError: tensors are missing, left over or do not fit, or the number of heads is not known.
    """
    notes: list[str] = []
    tensors = {name.replace("token_emb.", "input_proj."): value for name, value in tensors_in(source.content).items()}
    indices = tensors.pop(INDICES)
    said = _settings(source)
    config = _config(tensors, said, source, options, notes)
    if not torch.equal(indices.long().cpu(), 2 ** torch.arange(config.num_bits)):
        raise FormatError(f"{source.path}: {INDICES} does not count bits from the least significant one")
    denoiser = fill_renamed(lambda: maskbit.Network(config), NAMES, tensors, source)
    conditioner, note = numbered_classes(config.num_classes)
    notes += [f"generator: tokens of {config.num_parts} parts of {config.num_bits} bits", note]
    settings = _sampling(said, config, notes)
    return Imported(prior=build_prior(denoiser, "maskbit", conditioner, settings), notes=notes)


def _settings(source: Source) -> Mapping[str, Any]:
    model = (source.config or {}).get("model")
    found = model.get("mlm_model") if isinstance(model, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _config(
    tensors: Mapping[str, Tensor], said: Mapping[str, Any], source: Source, options: Options, notes: list[str]
) -> Config:
    mlp = f"{LAYER}0.1.net.0.weight"
    if missing := [name for name in ("input_proj.weight", "pos_emb", mlp) if name not in tensors]:
        raise FormatError(f"{source.path}: {len(missing)} tensors are missing: {listed(missing)}")
    if any(name.startswith("norm_after_transformer.") for name in tensors):
        raise FormatError(f"{source.path}: a network with norms before its layers, none of which is published")
    width, bits = tensors["input_proj.weight"].shape
    heads = options.num_heads if options.num_heads is not None else said.get("heads", PUBLISHED_HEADS.get(width))
    if heads is not None and not (options.num_heads or "heads" in said):
        notes.append(f"attention heads: {heads}, as in the published models of this width (`num_heads`)")
    if not isinstance(heads, int):
        raise FormatError(f"{source.path}: no settings say how many heads it has: say it with `num_heads`")
    num_parts = _num_parts(bits, len(tensors["prediction_layer.weight"]), source)
    num_cells = tensors["pos_emb"].shape[-2] - 1
    side = math.isqrt(num_cells)
    rows, columns = options.grid_size or (side, side)
    if rows * columns != num_cells:
        raise FormatError(f"{source.path}: has {num_cells} positions: give their layout, `grid_size`")
    config = Config(
        codebook_size=1 << bits // num_parts,
        grid_size=(rows, columns * num_parts),
        num_steps=num_cells * num_parts,
        num_layers=count_numbers(name.split(".")[2] for name in tensors if name.startswith(LAYER)),
        width=width,
        num_heads=heads,
        mlp_width=len(tensors[mlp]),
        num_classes=len(tensors["class_emb.weight"]) - 1,
        num_parts=num_parts,
    )
    compare(
        {
            "codebook_splits": (said.get("codebook_splits"), num_parts),
            "hidden_dim": (said.get("hidden_dim"), width),
            "depth": (said.get("depth"), config.num_layers),
            "use_prenorm": (said.get("use_prenorm"), False),
        },
        source,
    )
    return config


def _num_parts(bits: int, num_outputs: int, source: Source) -> int:
    """G, from G * 2^(bits / G) outputs."""
    for count in range(1, bits + 1):
        if bits % count == 0 and count << bits // count == num_outputs:
            return count
    raise FormatError(f"{source.path}: {num_outputs} outputs are no heads of tokens of {bits} bits")


def _sampling(said: Mapping[str, Any], config: Config, notes: list[str]) -> dict[str, Any]:
    """As the settings beside it say, else as the best published score of a model of so many bits was measured."""
    bits, num_cells = config.num_bits * config.num_parts, config.num_cells * config.num_parts
    steps, scale, power, choice = PUBLISHED.get(bits, PUBLISHED[14])
    if not said:
        notes.append("its settings are not there: it is sampled as the published model of so many bits")
    steps = min(said.get("num_steps", steps), num_cells)
    decay = SCHEDULES.get(said.get("guidance_annealing", "cosine"), "constant")
    guidance: dict[str, Any] = {"cfg_scale": 1 + said.get("guidance_scale", scale), "cfg_schedule": decay}
    if decay == "power-cosine":
        guidance["cfg_power"] = said.get("scale_pow", power)
    temperature: Any = said.get("softmax_temperature", 1.0)
    if said.get("use_sampling_annealing"):
        temperature = [1.3 - 0.8 / steps, 0.5] if steps > 1 else [0.5]
    return {
        "sampler": "confidence",
        "steps": steps,
        "plan": said.get("gen_mask_schedule_strategy", "arccos"),
        "choice_temperature": said.get("randomize_temperature", choice),
        **({"temperature": temperature} if temperature != 1.0 else {}),
        **(guidance if guidance["cfg_scale"] != Guidance().cfg_scale else {}),
    }
