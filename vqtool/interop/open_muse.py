"""open-muse's tokenizers: MaskGitVQGAN and VQGANModel, a folder of `config.json` and weights, or its file of weights.

Both are fed images in [0, 1]. The settings are read from the weights and compared with `config.json`.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vqtool.errors import FormatError
from vqtool.interop import _vqgan, taming
from vqtool.interop._contract import Imported, Options
from vqtool.interop._sources import Source, listed, tensors_in
from vqtool.interop._vqgan import Codes, Names
from vqtool.tokenizers import NetworkConfig
from vqtool.tokenizers.maskgit import MaskgitConfig

CLASSES = ("MaskGitVQGAN", "VQGANModel")
NAMES = Names([("decoder.up.{i}.upsample_conv.", "decoder.up.{i}.upsample.conv.")])

IDLE = {"attention that open-muse does not run, since it follows a single block": r"encoder\.down\.\d+\.attn\."}


def recognise(source: Source) -> bool:
    """Whether its settings name such a network, or there are none and its weights can be of one.

    A bare state dict with taming's names can be one of either project: the user has to say.
    """
    tensors = tensors_in(source.content)
    bare = not _config(source) and _vqgan.has_taming_names(tensors)
    return _config(source).get("_class_name") in CLASSES or _is_maskgit(tensors) or bare


def load(source: Source, options: Options) -> Imported:
    """The tokenizer of a folder or of a file of weights.

    Raises:
        FormatError: it is incomplete, or its settings contradict it.
    """
    tensors = source.tensors() if source.content is None else tensors_in(source.content)
    codes = _vqgan.codes_of(tensors, source, options.code_map)
    notes = ["images are in [0, 1] inside, as open-muse feeds them"]
    if _vqgan.count(tensors, r"encoder\.down\.\d+\.block\.(\d+)\.") == 1:
        tensors = _vqgan.drop(tensors, IDLE, notes)
    network = {name: value for name, value in tensors.items() if name != "quantize.embedding.weight"}
    names = NAMES if _is_maskgit(tensors) else taming.NAMES
    network = {names.ours(name): value for name, value in network.items()}
    config: NetworkConfig
    if _is_maskgit(tensors):
        config = _maskgit_config(network, codes, source)
        blocks: Any = config.num_blocks
    else:
        config = _vqgan.infer_config(network, codes, source, names, pixel_range=(0.0, 1.0))
        blocks = config.encoder_blocks
    said = _config(source)
    _vqgan.compare(
        {
            "num_embeddings": (said.get("num_embeddings"), len(codes.codebook)),
            "quantized_embed_dim": (said.get("quantized_embed_dim"), config.code_dim),
            "hidden_channels": (said.get("hidden_channels"), config.stem_channels),
            "channel_mult": (said.get("channel_mult"), [width / config.stem_channels for width in config.channels]),
            "num_res_blocks": (said.get("num_res_blocks"), blocks),
        },
        source,
    )
    tokenizer = _vqgan.build_tokenizer(config, network, codes, source, names)
    return Imported(tokenizer=tokenizer, notes=[*notes, _vqgan.describe(tokenizer)])


def _config(source: Source) -> Mapping[str, Any]:
    if source.config is not None:
        return source.config
    there = source.content is None and (source.path / "config.json").is_file()
    return source.json("config.json") if there else {}


def _is_maskgit(tensors: Mapping[str, Tensor]) -> bool:
    """Whether blocks stand in the middle in a plain list, and there is no convolution to and from D."""
    return any(name.startswith(("encoder.mid.0.", "decoder.mid.0.")) for name in tensors) and not any(
        name.startswith(("quant_conv.", "encoder.conv_blocks.")) for name in tensors
    )


def _maskgit_config(tensors: Mapping[str, Tensor], codes: Codes, source: Source) -> MaskgitConfig:
    levels = _vqgan.count(tensors, r"encoder\.down\.(\d+)\.")
    needed = ["encoder.conv_in.weight", *(f"encoder.down.{i}.block.0.conv1.weight" for i in range(max(1, levels)))]
    if missing := [name for name in needed if name not in tensors]:
        raise FormatError(f"{source.path}: {len(missing)} tensors are missing: {listed(missing)}")
    return MaskgitConfig(
        codebook_size=_vqgan.num_tokens(codes),
        code_dim=codes.codebook.shape[1],
        stem_channels=len(tensors["encoder.conv_in.weight"]),
        channels=tuple(len(tensors[name]) for name in needed[1:]),
        num_blocks=_vqgan.count(tensors, r"encoder\.down\.\d+\.block\.(\d+)\."),
    )
