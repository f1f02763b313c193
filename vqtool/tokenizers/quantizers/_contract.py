"""What a quantizer is while it learns."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vqtool.errors import VqtoolError


class Quantized(NamedTuple):
    """What a quantizer makes of latents."""

    codes: Tensor  # (B, H, W, D) what the decoder sees; its gradient goes to the latents
    tokens: Tensor  # (B, H, W) int64
    losses: dict[str, Tensor]  # name -> () of each term to be minimised, unweighted


class Quantizer(nn.Module):
    """Latents -> codes, with whatever of the codes is learned.

    A subclass is made from (codebook_size, code_dim) and its options by name.
    """

    lookup: ClassVar[str] = "nearest"  # of the tokenizer that it ends in: says how latents are bounded, too
    options: ClassVar[tuple[str, ...]] = ()  # that its constructor takes by name
    terms: ClassVar[tuple[str, ...]] = ()  # of the loss

    def forward(self, latents: Tensor, picks: Tensor, *, revive: bool = True) -> Quantized:
        """Quantise, and in training mode learn what is not learned by gradients.

        Args:
            latents: (B, H, W, D) as `Tokenizer.latents` makes them with this lookup.
            picks: (K,) uniform noise in [0, 1), the same in all processes: which latents codes are placed on.
            revive: whether codes that nobody chooses are moved onto latents of this batch.

        Returns:
            Codes, tokens and loss terms.
        """
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Whether its codes mean something: False for those that are to be placed on data."""
        return True

    def begin(self, codebook: Tensor) -> None:
        """Begin with the codes (K, D) of a tokenizer.

        Raises:
            VqtoolError: this quantizer's codes never change, and are others.
        """
        if not torch.equal(self.effective_codebook().cpu(), codebook.float().cpu()):
            raise VqtoolError("the codes to begin with are not those of this quantizer, which never change")

    @property
    def undecayed(self) -> tuple[nn.Parameter, ...]:
        """Parameters that weight decay would pull away from the latents: all of them."""
        return tuple(self.parameters())

    def effective_codebook(self) -> Tensor:
        """(K, D): what tokens decode to now."""
        raise NotImplementedError
