"""diffusers' VQModel: a folder of `config.json` and weights, with the attention names of today or the older ones.

The settings are read from the weights and compared with `config.json`; of that file alone come the groups of the
normalisations and whether images are in [0, 1] (aMUSEd's models, which are marked by `lookup_from_codebook`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from vqtool.errors import FormatError
from vqtool.interop import _vqgan
from vqtool.interop._contract import Imported, Options
from vqtool.interop._sources import Source, tensors_in
from vqtool.interop._vqgan import Names
from vqtool.outputs import atomic_path
from vqtool.tokenizers import Tokenizer
from vqtool.tokenizers.vqgan import VqganConfig

PIXEL_RANGES = (-1.0, 1.0), (0.0, 1.0)  # the other one is that of aMUSEd's models
WEIGHTS = "diffusion_pytorch_model.safetensors"
ATTENTION = (  # theirs, ours; the first of ours is written
    ("group_norm.", "norm."),
    ("to_q.", "q."),
    ("to_k.", "k."),
    ("to_v.", "v."),
    ("to_out.0.", "proj_out."),
    ("query.", "q."),
    ("key.", "k."),
    ("value.", "v."),
    ("proj_attn.", "proj_out."),
)
RESIDUAL = (("conv_shortcut.", "nin_shortcut."), ("", ""))


def _names(num_levels: int) -> Names:
    residual = [
        ("encoder.down_blocks.{i}.resnets.{j}.", "encoder.down.{i}.block.{j}."),
        ("decoder.up_blocks.{r}.resnets.{j}.", "decoder.up.{i}.block.{j}."),
    ]
    attention = [
        ("encoder.down_blocks.{i}.attentions.{j}.", "encoder.down.{i}.attn.{j}."),
        ("decoder.up_blocks.{r}.attentions.{j}.", "decoder.up.{i}.attn.{j}."),
    ]
    for part in ("encoder", "decoder"):
        residual += [(f"{part}.mid_block.resnets.{j}.", f"{part}.mid.block_{j + 1}.") for j in (0, 1)]
        attention += [(f"{part}.mid_block.attentions.0.", f"{part}.mid.attn_1.")]
    layers = [
        ("encoder.down_blocks.{i}.downsamplers.0.", "encoder.down.{i}.downsample."),
        ("decoder.up_blocks.{r}.upsamplers.0.", "decoder.up.{i}.upsample."),
        ("encoder.conv_norm_out.", "encoder.norm_out."),
        ("decoder.conv_norm_out.", "decoder.norm_out."),
        ("quant_conv.", "encoder.quant_conv."),
        ("post_quant_conv.", "decoder.post_quant_conv."),
    ]
    for leaves, blocks in ((RESIDUAL, residual), (ATTENTION, attention)):
        layers += [(theirs + leaf, ours + our_leaf) for theirs, ours in blocks for leaf, our_leaf in leaves]
    return Names(layers, num_levels)


def recognise(source: Source) -> bool:
    """Whether it is a VQModel folder, or the weights of one."""
    if source.content is None:
        found = source.path / "config.json"
        return found.is_file() and source.json("config.json").get("_class_name") == "VQModel"
    names = tensors_in(source.content)
    return _vqgan.count(names, r"(?:encoder\.down|decoder\.up)_blocks\.(\d+)\.resnets\.") > 0


def load(source: Source, options: Options) -> Imported:
    """The tokenizer of a folder or of a file of weights.

    Raises:
        FormatError: it is incomplete, or its settings contradict it.
    """
    notes: list[str] = []
    if source.content is None:
        tokenizer = read_vqmodel(source, options=options, notes=notes)
    else:
        tokenizer = _read(tensors_in(source.content), source.config or {}, source, options, notes)
    return Imported(tokenizer=tokenizer, notes=notes)


def read_vqmodel(
    source: Source, subfolder: str = "", *, options: Options | None = None, notes: list[str] | None = None
) -> Tokenizer:
    """A tokenizer from a VQModel folder.

    Args:
        source: the folder, or the pipeline's folder that it is in.
        subfolder: of the pipeline: "vqvae".
        options: what the user says; its code map is applied.
        notes: gets lines on what was found, chosen and left out.

    Raises:
        FormatError: it is incomplete, or its settings contradict its weights.
        MismatchError: the code map does not fit.
    """
    config = source.json(f"{subfolder}/config.json" if subfolder else "config.json")
    notes = [] if notes is None else notes
    return _read(source.tensors(subfolder), config, source, options or Options(), notes)


def _read(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], source: Source, options: Options, notes: list[str]
) -> Tokenizer:
    if config.get("norm_type", "group") != "group":
        raise FormatError(f"{source.path}: norm_type {config['norm_type']!r} is not supported, only 'group'")
    names = _names(_vqgan.count(tensors, r"encoder\.down_blocks\.(\d+)\."))
    codes = _vqgan.codes_of(tensors, source, options.code_map)
    ours = {names.ours(name): value for name, value in tensors.items() if not name.startswith("quantize.")}
    ours = {name: value[..., None, None] if _is_linear(name, value) else value for name, value in ours.items()}
    unit = bool(config.get("lookup_from_codebook"))
    if unit:
        notes.append("lookup_from_codebook: images are in [0, 1], as in aMUSEd")
    if "norm_num_groups" not in config:
        notes.append("its settings do not say in how many groups it normalises: taken as 32")
    found = _vqgan.infer_config(
        ours,
        codes,
        source,
        names,
        num_groups=config.get("norm_num_groups", 32),
        pixel_range=(0.0, 1.0) if unit else (-1.0, 1.0),
    )
    _vqgan.compare(
        {
            "num_vq_embeddings": (config.get("num_vq_embeddings"), len(codes.codebook)),
            "vq_embed_dim": (config.get("vq_embed_dim"), found.code_dim),
            "latent_channels": (config.get("latent_channels"), found.latent_channels),
            "block_out_channels": (config.get("block_out_channels"), found.channels),
            "layers_per_block": (config.get("layers_per_block"), found.encoder_blocks),
        },
        source,
    )
    tokenizer = _vqgan.build_tokenizer(found, ours, codes, source, names)
    notes.append(_vqgan.describe(tokenizer))
    return tokenizer


def _is_linear(name: str, value: Tensor) -> bool:
    return value.ndim == 2 and name.endswith((".q.weight", ".k.weight", ".v.weight", ".proj_out.weight"))


def export(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `config.json` and weights as diffusers' VQModel.from_pretrained reads them.

    Args:
        tokenizer: of the network "vqgan".
        folder: made if it is not there; files of these names are replaced.

    Raises:
        VqtoolError: VQModel has no such network; says why.
    """
    config = _vqgan.exportable(tokenizer, "diffusers' VQModel", lookups=("nearest",), pixel_ranges=PIXEL_RANGES)
    same = config.stem_channels == config.channels[0]
    _vqgan.refuse_unless({"the first resolution is as wide as the first convolution": same}, "diffusers' VQModel")
    names = _names(len(config.channels))
    state = {names.theirs(name): value for name, value in tokenizer.state_dict().items()}
    state["quantize.embedding.weight"] = state.pop("codebook")
    for name, value in state.items():
        if ".attentions." in name and value.ndim == 4:
            state[name] = value.flatten(1)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / WEIGHTS, force=True) as temporary:
        whole = {name: value.contiguous() for name, value in state.items()}
        temporary.write_bytes(save(whole, {"format": "pt"}))  # by Python, whose errors say that a disk is full
    with atomic_path(folder / "config.json", force=True) as temporary:
        temporary.write_text(json.dumps(_as_json(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _as_json(config: VqganConfig) -> dict[str, Any]:
    down = ["AttnDownEncoderBlock2D" if there else "DownEncoderBlock2D" for there in config.encoder_attention]
    up = ["AttnUpDecoderBlock2D" if there else "UpDecoderBlock2D" for there in config.decoder_attention[::-1]]
    return {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "down_block_types": down,
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.encoder_blocks,
        "mid_block_add_attention": config.mid_attention,
        "norm_num_groups": config.num_groups,
        "num_vq_embeddings": config.codebook_size,
        "out_channels": 3,
        "sample_size": 16 * config.factor,  # pixels; any size works
        "up_block_types": up,
        "vq_embed_dim": config.code_dim,
        **({"lookup_from_codebook": True, "force_upcast": True} if config.pixel_range == PIXEL_RANGES[1] else {}),
    }
