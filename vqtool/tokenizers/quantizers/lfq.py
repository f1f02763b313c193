"""The signs of a latent's numbers: a codebook that is the corners of a cube.

What it does: K = 2^D codes without a table to search; an entropy term asks for sure choices that differ from latent to
latent, so that all codes are used.
When to use it: for very large codebooks.
Equation: code = sign(z), token = sum of 2^(D-1-d) [z_d > 0]. With p(c | z) proportional to exp(-|z - c|^2 / tau), tau
the temperature, the loss terms are entropy = mean H(p(. | z)) - H(mean p(. | z)), nats, and commitment mean
(z - sg[c])^2; the gradient passes straight through. The lookup is that of the nearest code.
Differs from the paper: beyond 10 dimensions the second entropy is the sum of those of groups of at most 10, which is
as large or larger.
Source: Yu et al. 2023, MAGVIT-v2 (arXiv:2310.05737), section 3.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vqtool import distributed
from vqtool.errors import VqtoolError
from vqtool.options import option
from vqtool.tokenizers.quantizers import _contract
from vqtool.tokenizers.quantizers._contract import Quantized
from vqtool.tokenizers.quantizers._gradients import pass_gradient

GROUP_DIMENSIONS = 10  # whose corners are enumerated together


@dataclass(frozen=True, kw_only=True)
class Options(_contract.QuantizerOptions):
    """What it can be told."""

    codebook_size: int | None = option(None, "How many codes.", shown="the network's", minimum=2, flag="-K")
    commitment: float = option(0.25, "Weight of the pull of latents to their codes.", minimum=0)
    entropy: float = option(0.1, "Weight of the entropy term.", minimum=0)
    entropy_temperature: float = option(
        1.0, "Of the probabilities in the entropy term; the smaller, the closer to 0 it looks.", above=0, advanced=True
    )

    def shape(self, codebook_size: int, code_dim: int) -> tuple[int, int]:
        """(K, D): D doublings make K codes."""
        size = self.codebook_size or codebook_size
        dim = size.bit_length() - 1
        if size != 2**dim:
            raise VqtoolError(f"`codebook_size` {size}: `quantizer` lfq needs a power of two, such as {2**dim}")
        return size, dim


class Quantizer(_contract.Quantizer):
    """Codes that are corners of a cube."""

    strides: Tensor  # (D,) int64: what a positive number in each dimension adds to the token

    def __init__(self, codebook_size: int, code_dim: int, options: Options) -> None:
        """See the contract."""
        super().__init__(codebook_size, code_dim, options)
        if codebook_size != 2**code_dim:
            raise ValueError(f"{codebook_size} codes are not the {2**code_dim} corners of {code_dim} dimensions")
        self.weights = {"commitment": options.commitment, "entropy": options.entropy}
        self._means: list[Tensor] | None = None  # of the step that is being quantised in parts
        self.register_buffer("strides", 2 ** torch.arange(code_dim).flip(0), persistent=False)

    def forward(self, latents: Tensor, picks: Tensor, *, restart: bool = True) -> Quantized:
        """See Quantizer: there is nothing to learn but by gradients."""
        return self.quantise(latents)

    def prepares(self, *, restart: bool) -> bool:
        """Always: the entropy of the codes of all is that of the whole batch."""
        return True

    def prepare(self, flat: Tensor, picks: Tensor, *, restart: bool) -> None:
        """Find the mean probabilities of codes in a step that is quantised in parts."""
        self._means = [_shared(_corners(group).mean(0)) for group in self._groups(flat)]

    def follow(self, flat: Tensor, tokens: Tensor, picks: Tensor, *, restart: bool) -> None:
        """Forget them."""
        self._means = None

    def quantise(self, latents: Tensor) -> Quantized:
        """See Quantizer; loss terms "commitment" and "entropy"."""
        codes = torch.where(latents.detach() > 0, 1.0, -1.0)
        tokens = ((codes > 0) * self.strides).sum(-1)
        commitment = (latents - codes).square().mean()
        losses = {"commitment": commitment, "entropy": self.entropy(latents.flatten(0, -2).float())}
        return Quantized(pass_gradient(latents, codes, "straight-through"), tokens, losses)

    def entropy(self, flat: Tensor) -> Tensor:
        """Mean entropy of the codes of one latent, less that of the codes of all: flat (N, D) -> ()."""
        groups = self._groups(flat)
        logits = torch.cat(groups, 1)
        one: Tensor = functional.softplus(logits) - logits * torch.sigmoid(logits)  # (N, D), of each sign
        # A code's probability is the product over its signs: entropies of one latent add up.
        known: Sequence[Tensor | None] = self._means or [None] * len(groups)
        means = [_mean(_corners(group), mean) for group, mean in zip(groups, known, strict=True)]
        return one.sum(-1).mean() - sum(map(_entropy, means), flat.new_zeros(()))

    def _groups(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Logits of a positive sign, (|z + 1|^2 - |z - 1|^2) / temperature: latents (N, D) -> groups of dimensions."""
        return torch.split(4 * flat / self.options.entropy_temperature, GROUP_DIMENSIONS, dim=1)

    def effective_codebook(self) -> Tensor:
        """(K, D)."""
        tokens = torch.arange(2 ** len(self.strides), device=self.strides.device)
        return torch.where(tokens[:, None] // self.strides % 2 > 0, 1.0, -1.0)


def _corners(logits: Tensor) -> Tensor:
    """Probabilities of all corners: (N, d) of a positive sign -> (N, 2^d)."""
    found = torch.ones_like(logits[:, :1])
    for column in torch.split(logits, 1, dim=1):
        found = torch.stack((found * torch.sigmoid(-column), found * torch.sigmoid(column)), -1).flatten(1)
    return found


def _mean(probabilities: Tensor, known: Tensor | None = None) -> Tensor:
    """Mean over the latents of all processes (N, C) -> (C,); its gradient is that of the latents here.

    Gradients are averaged over processes, and over parts of a step: each that counts its own latents alone makes that
    the right one.

    Args:
        probabilities: (N, C) of the latents here.
        known: (C,) the mean, where these are a part of a step.
    """
    own = probabilities.mean(0)
    return own + ((_shared(own.detach().clone()) if known is None else known) - own.detach())


def _shared(own: Tensor) -> Tensor:
    """The mean of what the processes have."""
    return distributed.total(own) / distributed.world_size()


def _entropy(probabilities: Tensor) -> Tensor:
    return -(probabilities * probabilities.clamp(min=1e-30).log()).sum()
