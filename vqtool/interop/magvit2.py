"""SEED-Voken's Open-MAGVIT2 tokenizers (Lightning, .ckpt): tokens are signs of latents, channel 0 the lowest bit.

As IBQ's, their program always uses the averaged weights. The quantiser has no tensors in the file.
Source: github.com/TencentARC/SEED-Voken, src/Open_MAGVIT2/models/lfqgan.py, and improved_model.py there.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vqtool.errors import FormatError
from vqtool.interop import _vqgan
from vqtool.interop._contract import Imported, Options
from vqtool.interop._sources import Source, listed, tensors_in
from vqtool.interop._vqgan import Codes, Names
from vqtool.interop.ibq import LEFT_OUT, choose_weights
from vqtool.tokenizers.magvit2 import Magvit2Config

MAX_BITS = 24
NAMES = Names([])


def recognise(source: Source) -> bool:
    """Whether it holds the layers of such a network, under their names."""
    return any(name.startswith("decoder.adaptive.") for name in _state(source))


def _state(source: Source) -> dict[str, Tensor]:
    content = source.content if isinstance(source.content, Mapping) else {}
    return tensors_in(content.get("state_dict")) or tensors_in(content)


def load(source: Source, options: Options) -> Imported:
    """The tokenizer of a checkpoint.

    Raises:
        FormatError: it is incomplete, or its settings contradict it.
    """
    notes: list[str] = []
    tensors = choose_weights(_vqgan.drop(_state(source), LEFT_OUT, notes), source, options, notes)
    levels = _vqgan.count(tensors, r"encoder\.down\.(\d+)\.")
    needed = ["encoder.conv_out.weight", "encoder.conv_in.weight"]
    needed += [f"encoder.down.{i}.block.0.conv1.weight" for i in range(max(1, levels))]
    if missing := [name for name in needed if name not in tensors]:
        raise FormatError(f"{source.path}: {len(missing)} tensors are missing: {listed(missing)}")
    bits = len(tensors[needed[0]])
    if bits > MAX_BITS:
        raise FormatError(f"{source.path}: tokens of {bits} bits are more than any tokenizer has")
    config = Magvit2Config(
        codebook_size=1 << bits,
        code_dim=bits,
        stem_channels=len(tensors[needed[1]]),
        channels=tuple(len(tensors[name]) for name in needed[2:]),
        num_blocks=_vqgan.count(tensors, r"encoder\.down\.\d+\.block\.(\d+)\."),
    )
    _compare(config, source)
    codes = Codes((torch.arange(1 << bits)[:, None] >> torch.arange(bits) & 1) * 2.0 - 1)
    tokenizer = _vqgan.build_tokenizer(config, tensors, codes, source, NAMES)
    return Imported(
        tokenizer=tokenizer, notes=[*notes, "tokens are the signs of the latents", _vqgan.describe(tokenizer)]
    )


def _compare(config: Magvit2Config, source: Source) -> None:
    said: Any = source.config or {}
    for part in ("model", "init_args"):
        said = said.get(part) if isinstance(said, Mapping) else None
    said = said if isinstance(said, Mapping) else {}
    inner = said.get("ddconfig")
    inner = inner if isinstance(inner, Mapping) else {}
    _vqgan.compare(
        {
            "n_embed": (said.get("n_embed"), config.codebook_size),
            "z_channels": (inner.get("z_channels"), config.code_dim),
            "ch": (inner.get("ch"), config.stem_channels),
            "ch_mult": (inner.get("ch_mult"), [width / config.stem_channels for width in config.channels]),
            "num_res_blocks": (inner.get("num_res_blocks"), config.num_blocks),
        },
        source,
    )
