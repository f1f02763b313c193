"""What a quantizer is while it learns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vqtool.errors import VqtoolError
from vqtool.options import Checked


@dataclass(frozen=True, kw_only=True)
class QuantizerOptions(Checked):
    """What a quantizer can be told; each states its own."""

    def shape(self, codebook_size: int, code_dim: int) -> tuple[int, int]:
        """(K, D) of its codebook, for a network that is made for `codebook_size` codes of `code_dim` numbers.

        Raises:
            VqtoolError: it has no such codebook.
        """
        return codebook_size, code_dim


class Quantized(NamedTuple):
    """What a quantizer makes of latents."""

    codes: Tensor  # (B, H, W, D) what the decoder sees; its gradient goes to the latents
    tokens: Tensor  # (B, H, W) int64
    losses: dict[str, Tensor]  # name -> () of each term to be minimised, unweighted


class Quantizer(nn.Module):
    """Latents -> codes, with whatever of the codes is learned.

    A subclass is made from (codebook_size, code_dim, options), and has `quantise`. What is not learned by gradients is
    learned in `prepare`, before latents are quantised, and `follow`, after that: of all latents of a step at once,
    which may be quantised in parts.
    """

    lookup: ClassVar[str] = "nearest"  # of the tokenizer that it ends in: says how latents are bounded, too
    weights: Mapping[str, float]  # name -> weight of each term of the loss

    def __init__(self, codebook_size: int, code_dim: int, options: Any) -> None:
        """A quantizer without content.

        Args:
            codebook_size: K.
            code_dim: D.
            options: of the file's dataclass.
        """
        super().__init__()
        self.codebook_size, self.code_dim, self.options, self.weights = codebook_size, code_dim, options, {}

    def forward(self, latents: Tensor, picks: Tensor, *, restart: bool = True) -> Quantized:
        """Quantise, and in training mode learn what is not learned by gradients.

        Args:
            latents: (B, H, W, D) as `Tokenizer.latents` makes them with this lookup.
            picks: (K,) uniform noise in [0, 1), the same in all processes: which latents codes are placed on.
            restart: whether dead codes, which no latent chooses, may be moved onto latents of this batch.

        Returns:
            Codes, tokens and loss terms.
        """
        flat = latents.detach().flatten(0, -2).float()
        if self.training:
            with torch.no_grad():
                self.prepare(flat, picks, restart=restart)
        found = self.quantise(latents)
        if self.training:
            with torch.no_grad():
                self.follow(flat, found.tokens.flatten(), picks, restart=restart)
        return found

    def prepares(self, *, restart: bool) -> bool:
        """Whether `prepare` has something to do in a step that is quantised in parts."""
        return False

    def prepare(self, flat: Tensor, picks: Tensor, *, restart: bool) -> None:
        """What is done before latents are quantised: flat (N, D) are those that this process has in the step."""

    def quantise(self, latents: Tensor) -> Quantized:
        """Codes, tokens and loss terms of latents (B, H, W, D); nothing is learned but by gradients."""
        raise NotImplementedError

    def follow(self, flat: Tensor, tokens: Tensor, picks: Tensor, *, restart: bool) -> None:
        """What is learned without gradients of the latents (N, D) of a step, and of their tokens (N,)."""

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
