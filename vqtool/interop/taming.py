"""taming-transformers: VQModel and GumbelVQ checkpoints of Lightning (.ckpt), and what other projects made of them.

Also read: the same under `first_stage_model.` (Net2NetTransformer, latent diffusion), VQ-Diffusion's ITHQ codec
(`model`, a codebook without `.weight`), `quantize.used` of a remapped codebook.
The settings are read from the weights; a YAML file beside the checkpoint is compared with them.
"""

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from vqtool.errors import FormatError
from vqtool.interop import _vqgan
from vqtool.interop._contract import Imported, Options
from vqtool.interop._sources import Source, class_named, tensors_in, without
from vqtool.interop._vqgan import Codes, Names
from vqtool.outputs import atomic_path
from vqtool.tokenizers import Tokenizer
from vqtool.tokenizers.vqgan import VqganConfig

NAMES = Names([("quant_conv.", "encoder.quant_conv."), ("post_quant_conv.", "decoder.post_quant_conv.")])
PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
LEFT_OUT = {
    "training losses": r"(loss|perceptual_loss|discriminator)\.",  # ReFiT has them at the top
    "running means of the codebook": r"quantize\.(embedding\.)?(cluster_size|embedding_avg|embed_avg)$",
}
FOREIGN = ("MaskGitVQGAN", "VQGANModel", "MAGVITv2", "IBQ", "lfqgan")  # classes with layers of the same names
GUMBEL = (
    "tokens are the most probable codes of the Gumbel quantiser; the peers draw them at random around these, "
    "also for the training data of VQ-Diffusion's priors"
)


def recognise(source: Source) -> bool:
    """Whether it holds the layers of such a network, under their names."""
    named = class_named(source.config)
    return _vqgan.has_taming_names(_state(source.content)) and not any(foreign in named for foreign in FOREIGN)


def load(source: Source, options: Options) -> Imported:
    """The tokenizer of a checkpoint.

    Raises:
        FormatError: it is incomplete, or its settings contradict it.
    """
    notes: list[str] = []
    tokenizer = read_vqgan(_state(source.content), source.config, source, options, notes=notes)
    return Imported(tokenizer=tokenizer, notes=notes)


def _state(content: Any) -> dict[str, Tensor]:
    """The tensors of the autoencoder in a checkpoint, by taming's names; empty if there are none."""
    nested = content if isinstance(content, Mapping) else {}
    for tensors in map(tensors_in, (nested.get("state_dict"), nested.get("model"), content)):
        if inner := without("first_stage_model.", tensors):
            return inner
        if any(name.startswith(PARTS) for name in tensors):
            return tensors
    return {}


def read_vqgan(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any] | None,
    source: Source,
    options: Options,
    *,
    notes: list[str] | None = None,
    lookup: str = "nearest",
) -> Tokenizer:
    """A tokenizer from tensors in taming's names.

    Args:
        tensors: `encoder.`, `decoder.`, `quantize.`, `quant_conv.` and `post_quant_conv.`; others may stand beside.
        config: settings in taming's or VQ-Diffusion's layout; None, or without a tokenizer in them, if unknown.
        source: where they are from, for messages.
        options: what the user says; its code map is applied.
        notes: gets lines on what was found, chosen and left out.
        lookup: of a codebook without a projection.

    Raises:
        FormatError: tensors are missing, left over or of another shape, or contradict the settings.
        MismatchError: the code map does not fit.
    """
    notes = [] if notes is None else notes
    kept = _vqgan.drop(tensors, LEFT_OUT, notes)
    network = {NAMES.ours(name): value for name, value in kept.items() if not name.startswith("quantize.")}
    is_grey = network.get("encoder.conv_in.weight", torch.empty(0, 0)).shape[1:2] == (1,)
    network = _colour(network, notes) if is_grey else network
    codes, left = _read_codes(without("quantize.", kept), lookup, source, notes)
    inferred = _vqgan.infer_config(network, codes, source, NAMES)
    declared = _declared(config or {})
    if declared and is_grey:
        declared |= {"in_channels": 3, "out_ch": 3}
    _vqgan.compare(_settings(declared, inferred, num_codes=_num_codes(kept)), source)
    if not declared:
        notes.append("no settings of the tokenizer were given: all were read from its weights")
    code_map = _vqgan.check_code_map(options.code_map, len(codes.codebook), source)
    if code_map is not None:
        codes = replace(codes, code_map=code_map)
        inferred = replace(inferred, codebook_size=int(code_map.max()) + 1)
        notes.append(f"code map: {len(code_map)} codes -> {inferred.codebook_size} tokens")
    network |= {f"quantize.{name}": value for name, value in left.items()}
    tokenizer = _vqgan.build_tokenizer(inferred, network, codes, source, NAMES)
    notes.append(_vqgan.describe(tokenizer))
    return tokenizer


def _colour(network: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    """The network of images of one channel, which sees the mean of three and makes three alike."""
    first, last, bias = "encoder.conv_in.weight", "decoder.conv_out.weight", "decoder.conv_out.bias"
    if any(name not in network or len(network[name]) != 1 for name in (last, bias)):
        return network  # what is wrong with it is found below
    notes.append("images of one channel: the mean of red, green and blue goes in, grey comes out")
    found = {first: network[first].repeat(1, 3, 1, 1) / 3}
    return {**network, **found, last: network[last].repeat(3, 1, 1, 1), bias: network[bias].repeat(3)}


def _read_codes(
    found: dict[str, Tensor], lookup: str, source: Source, notes: list[str]
) -> tuple[Codes, dict[str, Tensor]]:
    """The quantiser, and what of it was not understood."""
    used = found.pop("used", None)
    if "proj.weight" in found or "embed.weight" in found:
        wanted = ("embed.weight", "proj.weight", "proj.bias")
        if missing := [f"quantize.{name}" for name in wanted if name not in found]:
            raise FormatError(f"{source.path}: {len(missing)} tensors are missing: {', '.join(missing)}")
        codebook, weight, bias = (found.pop(name).float() for name in wanted)
        codes = Codes(codebook, "projection", weight.flatten(1), bias, name="quantize.embed.weight")
        notes.append(GUMBEL)
    else:
        name = next((name for name in ("embedding.weight", "embedding") if name in found), None)
        if name is None:
            raise FormatError(f"{source.path}: its codebook is missing: quantize.embedding.weight")
        codes = Codes(found.pop(name).float(), lookup, name=f"quantize.{name}")
    if used is not None:
        rows = used.long()
        parts = (codes.codebook, codes.projection, codes.projection_bias)
        kept = [None if part is None else part[rows] for part in parts]
        codes = replace(codes, codebook=codes.codebook[rows], projection=kept[1], projection_bias=kept[2])
        notes.append(
            f"remapped: only the {len(rows)} codes in use are kept; a latent of another one gets the best of these, "
            "where taming draws one at random"
        )
    return codes, found


def _num_codes(tensors: Mapping[str, Tensor]) -> int:
    """Of the whole codebook, with the codes that are not in use."""
    names = ("quantize.embedding.weight", "quantize.embedding", "quantize.embed.weight")
    return next(len(tensors[name]) for name in names if name in tensors)


def _declared(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tokenizer's parameters in settings of taming or VQ-Diffusion; empty if there are none."""
    part: Any = config.get("model", config)
    params = part.get("params", part.get("init_args", part)) if isinstance(part, Mapping) else {}
    while isinstance(params, Mapping) and "first_stage_config" in params:
        params = params["first_stage_config"].get("params", {})
    if not isinstance(params, Mapping):
        return {}
    inner = params.get("ddconfig") or dict(params.get("encoder_config") or {}).get("params") or {}
    if not isinstance(inner, Mapping) or not inner:
        return {}
    return {**inner, **{name: params[name] for name in ("embed_dim", "n_embed") if name in params}}


def _settings(
    declared: Mapping[str, Any], config: VqganConfig, *, num_codes: int | None = None
) -> dict[str, tuple[Any, Any]]:
    """Name of a setting -> (what the file says, what the weights say)."""
    found = _as_ddconfig(config, _side(declared.get("resolution")))
    found |= {"embed_dim": config.code_dim, "n_embed": num_codes or config.codebook_size}
    said = {name: declared.get(name) for name in found}
    if said["attn_resolutions"] is not None:
        occurring = {found["resolution"] >> level for level in range(len(config.channels))}
        said["attn_resolutions"] = sorted({_side(side) for side in said["attn_resolutions"]} & occurring, reverse=True)
    said["resolution"] = None  # the network takes any
    return {name: (said[name], found[name]) for name in found}


def _side(size: Any) -> int:
    """Pixels a side: taming gives a number, VQ-Diffusion a list of one or two."""
    sides = size if isinstance(size, list | tuple) else [size]
    return int(sides[0]) if sides and isinstance(sides[0], int) else 0


def _as_ddconfig(config: VqganConfig, resolution: int) -> dict[str, Any]:
    """The settings of the network by taming's names."""
    resolution = resolution or 16 * config.factor
    levels = [i for i, present in enumerate(config.encoder_attention) if present]
    return {
        "double_z": False,
        "z_channels": config.latent_channels,
        "resolution": resolution,
        "in_channels": 3,
        "out_ch": 3,
        "ch": config.stem_channels,
        "ch_mult": [width / config.stem_channels for width in config.channels],
        "num_res_blocks": config.encoder_blocks,
        "attn_resolutions": [resolution >> level for level in levels],
    }


def export(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `model.ckpt` and `model.yaml` as taming-transformers reads them.

    Args:
        tokenizer: of the network "vqgan".
        folder: made if it is not there; files of these names are replaced.

    Raises:
        VqtoolError: taming-transformers has no such network; says why.
    """
    config = _vqgan.exportable(tokenizer, "taming-transformers", lookups=("nearest", "projection"))
    _vqgan.refuse_unless(
        {
            "attention is at the same resolutions in encoder and decoder": config.encoder_attention
            == config.decoder_attention,
            "there is attention in the middle": config.mid_attention,
            "normalisations have 32 groups": config.num_groups == 32,
            "widths are multiples of the first": all(width % config.stem_channels == 0 for width in config.channels),
        },
        "taming-transformers",
    )
    gumbel = tokenizer.lookup == "projection"
    state = {NAMES.theirs(name): value for name, value in tokenizer.state_dict().items()}
    codebook = state.pop("codebook")
    if gumbel:
        state["quantize.proj.weight"] = state.pop("projection")[..., None, None]
        state["quantize.proj.bias"] = state.pop("projection_bias")
    state["quantize.embed.weight" if gumbel else "quantize.embedding.weight"] = codebook
    ddconfig = _as_ddconfig(config, 0)
    ddconfig |= {"ch_mult": [width // config.stem_channels for width in config.channels], "dropout": 0.0}
    params: dict[str, Any] = {"embed_dim": config.code_dim, "n_embed": config.codebook_size, "ddconfig": ddconfig}
    params["lossconfig"] = {"target": "taming.modules.losses.DummyLoss"}
    if gumbel:
        cooling = {"warm_up_steps": 0, "max_decay_steps": 1000001, "lr_start": 0.9, "lr_max": 0.9, "lr_min": 1e-6}
        scheduler = {"target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler", "params": cooling}
        params |= {"kl_weight": 1e-8, "temperature_scheduler_config": scheduler}  # as published; for training only
    target = "taming.models.vqgan.GumbelVQ" if gumbel else "taming.models.vqgan.VQModel"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "model.ckpt", force=True) as temporary:
        pickled = io.BytesIO()  # torch does not say that a disk is full, Python does
        torch.save({"state_dict": {name: value.contiguous() for name, value in state.items()}}, pickled)
        temporary.write_bytes(pickled.getbuffer())
    with atomic_path(folder / "model.yaml", force=True) as temporary:
        temporary.write_text(yaml.safe_dump({"model": {"target": target, "params": params}}, sort_keys=False))
