"""Quantizers: latents -> codes and tokens, with gradients and with whatever of the codes is learned.

A quantizer is a file here and a row in QUANTIZERS; Quantizer is the contract. What is trained ends as a tokenizer's
codebook and lookup: `effective_codebook()` and `lookup`.
"""

from typing import Any

from vqtool import registry
from vqtool.tokenizers.quantizers._contract import Quantized, Quantizer
from vqtool.tokenizers.quantizers._gradients import GRADIENTS
from vqtool.tokenizers.quantizers._lookup import highest, nearest
from vqtool.tokenizers.quantizers.cosine import CosineQuantizer
from vqtool.tokenizers.quantizers.ema import EmaQuantizer
from vqtool.tokenizers.quantizers.fsq import FsqQuantizer
from vqtool.tokenizers.quantizers.lfq import LfqQuantizer
from vqtool.tokenizers.quantizers.simvq import SimVqQuantizer
from vqtool.tokenizers.quantizers.vq import VqQuantizer

__all__ = ["GRADIENTS", "QUANTIZERS", "Quantized", "Quantizer", "build", "highest", "nearest"]

QUANTIZERS: dict[str, type[Quantizer]] = {
    "ema": EmaQuantizer,
    "vq": VqQuantizer,
    "cosine": CosineQuantizer,
    "simvq": SimVqQuantizer,
    "fsq": FsqQuantizer,
    "lfq": LfqQuantizer,
}


def build(name: str, codebook_size: int, code_dim: int, **given: Any) -> Quantizer:
    """A quantizer without content.

    Args:
        name: one of QUANTIZERS.
        codebook_size: K.
        code_dim: D.
        **given: its options.

    Raises:
        VqtoolError: the name is unknown.
        ValueError: sizes or options do not suit it.
    """
    quantizer = registry.find("quantizer", name, QUANTIZERS)
    if unknown := sorted(given.keys() - quantizer.options):
        raise ValueError(f"{name} does not take {unknown}, only {quantizer.options}")
    return quantizer(codebook_size, code_dim, **given)
