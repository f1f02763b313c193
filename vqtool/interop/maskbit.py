"""MaskBit's tokenizers (.bin): MaskGIT's network, strided; tokens are the signs of the latents, or codes.

A bare state dict. The tokenizer of bits has its 2^b rows of -1 and 1 in the file, channel 0 being the least significant
bit; VQGAN+ has a codebook. The levels of the decoder stand in the order in which they run.
Source: github.com/markweberdev/maskbit, modeling/conv_vqgan.py and modeling/quantizer.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vqtool.errors import FormatError
from vqtool.interop import _vqgan
from vqtool.interop._contract import Imported, Options
from vqtool.interop._sources import Source, listed, tensors_in
from vqtool.interop._vqgan import Codes, Names
from vqtool.tokenizers.maskgit import MaskgitConfig

BITS, CODES = "quantize.codebook", "quantize.embedding.weight"
MAX_BITS = 24


def _names(tensors: Mapping[str, Tensor]) -> Names:
    level = (
        "{r}" if "decoder.up.0.upsample_conv.weight" in tensors else "{i}"
    )  # the legacy decoder counts from the finest
    middle = [(f"{part}.mid.res_blocks.{{j}}.", f"{part}.mid.{{j}}.") for part in ("encoder", "decoder")]
    return Names(
        [
            ("encoder.down.{i}.res_blocks.{j}.", "encoder.down.{i}.block.{j}."),
            ("encoder.down.{i}.down_conv.", "encoder.down.{i}.downsample.conv."),
            (f"decoder.up.{level}.res_blocks.{{j}}.", "decoder.up.{i}.block.{j}."),
            (f"decoder.up.{level}.upsample_conv.", "decoder.up.{i}.upsample.conv."),
            *middle,
        ],
        _vqgan.count(tensors, r"encoder\.down\.(\d+)\."),
    )


def recognise(source: Source) -> bool:
    """Whether it holds the layers of such a network, under their names."""
    names = tensors_in(source.content)
    return _vqgan.count(names, r"(?:encoder\.down|decoder\.up)\.(\d+)\.res_blocks\.") > 0


def load(source: Source, options: Options) -> Imported:
    """The tokenizer of a file.

    Raises:
        FormatError: it is incomplete, or its settings contradict it.
    """
    notes: list[str] = []
    tensors = _vqgan.drop(tensors_in(source.content), {"bookkeeping": r"quantize\.bits_to_indices$"}, notes)
    said = _settings(source.config)
    codes = _codes(tensors, said, source)
    names = _names(tensors)
    network = {names.ours(name): value for name, value in tensors.items() if name not in (BITS, CODES)}
    levels = _vqgan.count(network, r"encoder\.down\.(\d+)\.")
    needed = ["encoder.conv_in.weight", *(f"encoder.down.{i}.block.0.conv1.weight" for i in range(max(1, levels)))]
    if missing := [names.theirs(name) for name in needed if name not in network]:
        raise FormatError(f"{source.path}: {len(missing)} tensors are missing: {listed(missing)}")
    config = MaskgitConfig(
        codebook_size=_vqgan.num_tokens(codes),
        code_dim=codes.codebook.shape[1],
        stem_channels=len(network["encoder.conv_in.weight"]),
        channels=tuple(len(network[name]) for name in needed[1:]),
        num_blocks=_vqgan.count(network, r"encoder\.down\.\d+\.block\.(\d+)\."),
        strided=any(".downsample." in name for name in network),
    )
    _vqgan.compare(
        {
            "token_size": (said.get("token_size"), config.code_dim),
            "hidden_channels": (said.get("hidden_channels"), config.stem_channels),
            "channel_mult": (said.get("channel_mult"), [width / config.stem_channels for width in config.channels]),
            "num_res_blocks": (said.get("num_res_blocks"), config.num_blocks),
            "sample_with_conv": (said.get("sample_with_conv") if levels > 1 else None, config.strided),
        },
        source,
    )
    tokenizer = _vqgan.build_tokenizer(config, network, codes, source, names)
    found = "the signs of the latents" if BITS in tensors else "the nearest codes"
    return Imported(
        tokenizer=tokenizer,
        notes=[*notes, f"tokens are {found}; images are in [0, 1] inside", _vqgan.describe(tokenizer)],
    )


def _settings(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    model = (config or {}).get("model")
    found = model.get("vq_model") if isinstance(model, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _codes(tensors: Mapping[str, Tensor], said: Mapping[str, Any], source: Source) -> Codes:
    """A codebook, or all rows of signs: the nearest of these has the signs of a latent, 0 counting as -1."""
    if CODES in tensors:
        return Codes(tensors[CODES].float(), "cosine" if said.get("use_l2_normalisation") else "nearest")
    if BITS not in tensors:
        raise FormatError(f"{source.path}: its codebook is missing: {BITS} or {CODES}")
    codebook = tensors[BITS].float()
    if codebook.ndim != 2 or codebook.shape[1] > MAX_BITS or len(codebook) != 1 << codebook.shape[1]:
        raise FormatError(f"{source.path}: {BITS} has shape {tuple(codebook.shape)}: 2^b rows of b bits are expected")
    if not _vqgan.has_signs(codebook, first_is_highest=False):
        raise FormatError(f"{source.path}: {BITS} is not made of -1 and 1 in the order of their numbers")
    return Codes(codebook, name=BITS)
