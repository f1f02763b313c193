"""Unleashing Transformers' VQGAN (.th): flat lists of blocks, told apart by what they hold; images in [0, 1].

Its decoder has as many blocks at each resolution as its encoder, latents are looked up as they leave the encoder, and
its last convolutions follow a normalisation without a swish.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from vqtool.errors import FormatError
from vqtool.interop import _vqgan
from vqtool.interop._contract import Imported, Options
from vqtool.interop._sources import Source, count_numbers, tensors_in
from vqtool.interop._vqgan import Names

LEFT_OUT = {
    "the discriminator": r"disc\.",
    "the perceptual loss": r"perceptual\.",
    "the decoder's second head, for likelihoods": r"ae\.generator\.logsigma\.",
}
KINDS = {  # a block by the layers in it
    "residual": {"norm1", "conv1", "norm2", "conv2", "conv_out"},
    "attention": {"norm", "q", "k", "v", "proj_out"},
    "resampling": {"conv"},
    "layer": {"weight", "bias"},
}


def recognise(source: Source) -> bool:
    """Whether it holds the layers of such a network, under their names."""
    return _vqgan.count(tensors_in(source.content), r"ae\.(?:encoder|generator)\.blocks\.(\d+)\.") > 0


def load(source: Source, options: Options) -> Imported:
    """The tokenizer of a checkpoint.

    Raises:
        FormatError: it is incomplete, or its blocks do not make such a network.
    """
    notes: list[str] = []
    tensors = _vqgan.drop(tensors_in(source.content), LEFT_OUT, notes)
    tensors = _vqgan.drop(tensors, {"shortcuts that the network does not use": _unused(tensors)}, notes)
    tensors = {name.removeprefix("ae.") if ".quantize." in name else name: value for name, value in tensors.items()}
    codes = _vqgan.codes_of(tensors, source, options.code_map)
    encoder = _blocks(tensors, "encoder", source)
    decoder = _blocks(tensors, "generator", source)
    num_levels = 1 + encoder.count("resampling")
    names = Names([*_rules(encoder, "encoder", num_levels, source), *_rules(decoder, "generator", num_levels, source)])
    network = {names.ours(name): value for name, value in tensors.items() if name != "quantize.embedding.weight"}
    config = _vqgan.infer_config(network, codes, source, names, pixel_range=(0.0, 1.0), swish_out=False)
    tokenizer = _vqgan.build_tokenizer(config, network, codes, source, names)
    return Imported(tokenizer=tokenizer, notes=[*notes, _vqgan.describe(tokenizer)])


def _unused(tensors: Mapping[str, Tensor]) -> str:
    """A regular expression of the shortcuts of blocks that keep the width: they are there, but never run."""
    shortcuts = [name for name, value in tensors.items() if name.endswith(".conv_out.weight") and value.ndim == 4]
    same = [name for name in shortcuts if tensors[name].shape[0] == tensors[name].shape[1]]
    return "|".join(re.escape(name.removesuffix("weight")) for name in same) or "$."


def _blocks(tensors: Mapping[str, Tensor], part: str, source: Source) -> list[str]:
    """The kinds of the blocks of a part, in their order.

    Raises:
        FormatError: one is missing, or of no known kind.
    """
    held: dict[int, set[str]] = {}
    for name in tensors:
        if match := re.match(rf"ae\.{part}\.blocks\.(\d+)\.([^.]+)", name):
            held.setdefault(int(match[1]), set()).add(match[2])
    kinds = []
    for index in range(count_numbers(map(str, held))):
        fitting = [kind for kind, layers in KINDS.items() if held.get(index, {""}) <= layers]
        if not fitting:
            what = "is missing" if index not in held else "is of no known kind"
            raise FormatError(f"{source.path}: ae.{part}.blocks.{index} {what}")
        kinds.append(fitting[0])
    return kinds


def _rules(kinds: list[str], part: str, num_levels: int, source: Source) -> list[tuple[str, str]]:
    """Names of the blocks of a part: theirs, ours.

    Raises:
        FormatError: they do not stand in the order of such a network.
    """
    encoder = part == "encoder"
    ends = kinds[0:1] + kinds[-2:]
    body, middle = (kinds[1:-5], kinds[-5:-2]) if encoder else (kinds[4:-2], kinds[1:4])
    if ends != ["layer"] * 3 or middle != ["residual", "attention", "residual"] or "layer" in body:
        raise FormatError(f"{source.path}: the blocks of ae.{part} are not those of a VQGAN: {', '.join(kinds)}")
    levels, centre = _levels(body, num_levels, encoder=encoder), ["mid.block_1", "mid.attn_1", "mid.block_2"]
    names = ["conv_in", *(levels + centre if encoder else centre + levels), "norm_out", "conv_out"]
    rules = []
    for index, name in enumerate(names):
        theirs, ours = f"ae.{part}.blocks.{index}.", f"{'encoder' if encoder else 'decoder'}.{name}."
        rules += [(f"{theirs}conv_out.", f"{ours}nin_shortcut."), (theirs, ours)]
    return rules


def _levels(kinds: list[str], num_levels: int, *, encoder: bool) -> list[str]:
    """Our names of the blocks that are neither at an end nor in the middle."""
    level, step, side = (0, 1, "down") if encoder else (num_levels - 1, -1, "up")
    block, names = -1, []
    for kind in kinds:
        if kind == "resampling":
            names.append(f"{side}.{level}.{side}sample")
            level, block = level + step, -1
            continue
        block += kind == "residual"
        names.append(f"{side}.{level}.{'block' if kind == 'residual' else 'attn'}.{block}")
    return names
