"""Quantizers: latents -> codes and tokens, with gradients and with whatever of the codes is learned.

A quantizer is a file here, called as it is, with

    Options      a frozen dataclass of what it can be told: see `QuantizerOptions`
    Quantizer    made from (codebook_size, code_dim, options): see the contract of that name

and a name in NAMES: that is the registration. What is trained ends as a tokenizer's codebook and lookup:
`effective_codebook()` and `lookup`.
"""

from collections.abc import Mapping
from dataclasses import fields
from types import ModuleType
from typing import Any

from vqtool.errors import VqtoolError
from vqtool.registry import find_module
from vqtool.tokenizers.quantizers._contract import Quantized, Quantizer, QuantizerOptions
from vqtool.tokenizers.quantizers._lookup import highest, nearest

NAMES = ("ema", "vq", "cosine", "simvq", "fsq", "lfq")
DEFAULT = "ema"

__all__ = ["DEFAULT", "NAMES", "Quantized", "Quantizer", "QuantizerOptions", "build", "find", "highest", "nearest"]


def find(name: str) -> ModuleType:
    """The file of a quantizer.

    Raises:
        VqtoolError: an unknown name.
    """
    return find_module("vqtool.tokenizers.quantizers", "quantizer", name, NAMES)


def option_names(name: str) -> set[str]:
    """What a quantizer can be told."""
    return {field.name for field in fields(find(name).Options)}


def all_option_names() -> set[str]:
    """What any quantizer can be told."""
    return set[str]().union(*map(option_names, NAMES))


def choose_options(name: str, given: Mapping[str, Any]) -> QuantizerOptions:
    """The options of a quantizer, made of those that are given.

    Raises:
        VqtoolError: the name is unknown, the quantizer does not have an option, or a value is not possible.
    """
    for option in given:
        if option not in option_names(name):
            others = ", ".join(other for other in NAMES if option in option_names(other)) or "none"
            raise VqtoolError(f"`{option}` is for `quantizer` {others}, not for {name}: leave it out")
    options: QuantizerOptions = find(name).Options(**given)
    return options


def build(name: str, codebook_size: int, code_dim: int, /, **given: Any) -> Quantizer:
    """A quantizer without content.

    Args:
        name: one of NAMES.
        codebook_size: K.
        code_dim: D.
        **given: its options.

    Raises:
        VqtoolError: the name or an option is unknown, or a value is not possible.
        ValueError: the quantizer has no codebook of that shape.
    """
    quantizer: Quantizer = find(name).Quantizer(codebook_size, code_dim, choose_options(name, given))
    return quantizer
