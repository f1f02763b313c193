"""Denoisers: networks that predict the clean tokens of a noisy grid, p(x_0 | x_t, t, y).

The contract is `Denoiser`: a module that maps (x_t, t, condition) to logits over the K tokens. The list of names below
is the registration: a denoiser is a file of that name with `Config`, `Network` (made from a `Config`), `SIZES`,
`LEARNING_RATES`, `CONDITIONS` (that it can be trained with), its `PARAMETERISATION`, and, where another than the usual
one serves it better, its `LOSS`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vqtool.registry import find_module
from vqtool.trust import parse_record

NAMES = (
    "transformer",
    "vq-diffusion",
    "unet",
    "guided-unet",
    "halton-maskgit",
    "titok",
    "maskbit",
    "muse",
    "amused",
    "meissonic",
)


class EncodedCondition(NamedTuple):
    """A condition as a denoiser uses it: computed once a sample, used in every call. Unused parts are None."""

    embedding: Tensor | None = None  # (B, D): added to that of the time, or the scales and shifts of norms
    keys_values: Tensor | None = None  # (B, num_layers, 2, num_heads, L, D / num_heads) of the cross-attention, or flat
    mask: Tensor | None = None  # (B, L) bool, True where there is text


class Denoiser(nn.Module, ABC):
    """A network over token grids."""

    config: Any  # the frozen dataclass that it was built from
    sees_time: bool = True  # whether t makes a difference; without, schedules of guidance go by the calls
    counts_calls: bool = False  # whether t tells how many calls are to come, with this one, and not the share of noise
    caches: bool = False  # whether `forward` takes a `_cache.Cache` too, and computes the cells alone that it names
    stretches: bool = False  # whether it takes grids of other sizes, with its position embeddings interpolated
    called_apart: tuple[str, ...] = ()  # methods of parts of its blocks that are called without the block: "cross.keys"
    code_tables: tuple[str, ...] = ("tokens.weight", "head.weight", "head.bias")  # a row a code; then that of the mask

    @property
    def knows_mask(self) -> bool:
        """Whether masked cells can be told to it."""
        return True

    @property
    def latent_size(self) -> int:
        """Numbers of the latent that a student draws for a sample in each call; 0 for all others."""
        config = getattr(self, "config", None)
        return int(getattr(config, "latent_size", 0) or getattr(config, "num_latents", 0) > 0)

    def mix(self, condition: EncodedCondition, latent: Tensor) -> EncodedCondition:
        """Conditions with a latent each, (B, `latent_size`), standard normal."""
        return condition

    @property
    def null_weights(self) -> tuple[tuple[str, int | None], ...]:
        """Where the learned null condition is: names of parameters, and the row of each; None for all rows."""
        return ()

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

    @torch.no_grad()
    def take_over(self, old: "Denoiser") -> None:
        """Take the weights of a network of the same kind, and so predict what it predicts.

        This one, with fresh weights, may have a condition that the other lacks, more classes, longer captions or, if
        its kind allows it, grids of another size. A class that the other does not know begins as its null condition.

        Raises:
            MismatchError: the other knows the positions of grids of its own size only.
            ValueError: it is of another kind.
        """
        mine, theirs = self.state_dict(), old.state_dict()
        for name in mine.keys() - theirs.keys():
            self._silence(name, mine[name])
        for name in mine.keys() & theirs.keys():
            mine[name].copy_(self._fit(name, theirs[name], mine[name], old))

    def _silence(self, name: str, tensor: Tensor) -> None:
        """Fill a tensor that the network taken over lacks, so that nothing that it predicts changes."""
        if name == "classes.weight":
            tensor.zero_()

    def _fit(self, name: str, theirs: Tensor, mine: Tensor, old: "Denoiser") -> Tensor:
        """A tensor of the network taken over, in the shape that it has here."""
        if theirs.shape == mine.shape:
            return theirs
        if name == "classes.weight":
            return add_classes(theirs[:-1], theirs[-1], len(mine))
        raise ValueError(f"{name} is {tuple(theirs.shape)}, {tuple(mine.shape)} is expected")

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


def add_classes(known: Tensor, null: Tensor, num_rows: int) -> Tensor:
    """A table of classes (n, D) with more rows, all of them the null condition (D,): (num_rows, D)."""
    return torch.cat([known, null.expand(num_rows - len(known), -1)])


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
