"""Denoisers: networks that predict the clean tokens of a noisy grid, p(x_0 | x_t, t, y).

The contract is `Denoiser`: a module that maps (x_t, t, condition) to logits over the K tokens. The list of names below
is the registration: a denoiser is a file of that name with `Config`, `Network` (made from a `Config`), `SIZES`,
`LEARNING_RATES`, `CONDITIONS` (that it can be trained with) and its `PARAMETERISATION`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vqtool.registry import find_module
from vqtool.trust import parse_record

NAMES = ("transformer", "vq-diffusion", "unet", "guided-unet")


class EncodedCondition(NamedTuple):
    """A condition as a denoiser uses it: computed once a sample, used in every call. Unused parts are None."""

    embedding: Tensor | None = None  # (B, D): added to that of the time, or the scales and shifts of norms
    keys_values: Tensor | None = None  # (B, num_layers, 2, num_heads, L, D / num_heads) of the cross-attention
    mask: Tensor | None = None  # (B, L) bool, True where there is text


class Denoiser(nn.Module, ABC):
    """A network over token grids."""

    config: Any  # the frozen dataclass that it was built from
    stretches: bool = False  # whether it takes grids of other sizes, with its position embeddings interpolated

    @property
    def has_learned_null(self) -> bool:
        """Whether the null text is a learned one; features of zeros select it."""
        return False

    @abstractmethod
    def encode_condition(self, condition: Tensor) -> EncodedCondition:
        """The part of the computation that depends on the condition alone.

        Args:
            condition: (B, ...) int64, from `conditions.Conditioner.encode`; or (B, L, D) features of texts.
        """

    @torch.no_grad()
    def set_frequencies(self, frequencies: Tensor) -> None:
        """Make a fresh network predict these shares of the tokens, (K,), instead of all alike, by its head's bias."""
        bias = self.get_submodule("head").bias
        if isinstance(bias, Tensor):
            bias.copy_(frequencies.log())

    @abstractmethod
    def forward(
        self, x_t: Tensor, t: Tensor, condition: Tensor | EncodedCondition | None = None, cells: Tensor | None = None
    ) -> Tensor:
        """Logits over the tokens.

        Args:
            x_t: (B, H, W) int64 tokens or mask_id.
            t: (B,) int64 in [0, T].
            condition: (B, ...) int64, or what `encode_condition` made of it; None where there is no condition.
            cells: (B, n) int64 in [0, H * W): the only cells whose logits are wanted.

        Returns:
            (B, H, W, K), or (B, n, K) with `cells`.
        """


def module(name: str) -> ModuleType:
    """The file of a denoiser.

    Raises:
        VqtoolError: an unknown name.
    """
    return find_module("vqtool.denoisers", "denoiser", name, NAMES)


def build(name: str, config: Mapping[str, Any]) -> Denoiser:
    """A denoiser with fresh weights, drawn from torch's default generator.

    Args:
        name: one of NAMES.
        config: fields of the denoiser's `Config`, as they stand in a prior's header.

    Raises:
        VqtoolError: an unknown name, or a field that is missing, unknown or of another type.
    """
    file = module(name)
    denoiser: Denoiser = file.Network(parse_record(file.Config, config, f"denoiser {name}"))
    return denoiser
