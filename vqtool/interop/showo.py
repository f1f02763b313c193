"""Show-o's MAGVITv2 tokenizer: taming's network with blocks and widths of their own at each level; tokens are signs.

A folder of `config.json`, which names the class alone, and weights, or its file of weights. All sizes are read from the
weights. Channel 0 is the most significant bit.
Source: github.com/showlab/Show-o, models/modeling_magvitv2.py.
"""

from torch import Tensor

from vqtool.errors import FormatError
from vqtool.interop import _vqgan
from vqtool.interop._contract import Imported, Options
from vqtool.interop._sources import Source, tensors_in
from vqtool.interop._vqgan import Codes, Names

CODES = "quantize.embedding"
NAMES = Names([])
MARKS = {"encoder.quant_conv.weight", "decoder.post_quant_conv.weight", "encoder.mid.block_1.conv1.weight"}


def recognise(source: Source) -> bool:
    """Whether its settings name the class, or its weights have its names."""
    there = source.content is None and (source.path / "config.json").is_file()
    named = source.json("config.json").get("_class_name") if there else None
    return named == "MAGVITv2" or tensors_in(source.content).keys() >= MARKS


def load(source: Source, options: Options) -> Imported:
    """The tokenizer of a folder or of a file of weights.

    Raises:
        FormatError: it is incomplete.
    """
    notes: list[str] = []
    tensors: dict[str, Tensor] = source.tensors() if source.content is None else tensors_in(source.content)
    tensors = _vqgan.drop(tensors, {"bookkeeping": r"quantize\.power_vals$"}, notes)
    if CODES not in tensors:
        raise FormatError(f"{source.path}: its codebook is missing: {CODES}")
    codebook = tensors[CODES].float()
    if codebook.ndim != 2 or not _vqgan.has_signs(codebook, first_is_highest=True):
        raise FormatError(f"{source.path}: {CODES} is not made of -1 and 1 in the order of their numbers")
    codes = Codes(codebook, name=CODES)
    network = {name: value for name, value in tensors.items() if name != CODES}
    config = _vqgan.infer_config(network, codes, source, NAMES, uneven=True)
    tokenizer = _vqgan.build_tokenizer(config, network, codes, source, NAMES)
    return Imported(
        tokenizer=tokenizer, notes=[*notes, "tokens are the signs of the latents", _vqgan.describe(tokenizer)]
    )
