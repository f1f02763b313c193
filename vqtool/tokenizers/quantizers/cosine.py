"""Codes and latents of length 1, in few dimensions.

What it does: the nearest code is that of the smallest angle. In few dimensions codes cannot hide from the latents, and
on the sphere none is favoured by its length.
When to use it: for large codebooks; with 8 to 32 dimensions they stay in use where VQ collapses.
Equation: c = v / |v| of a learned v; loss terms as in VQ, of z and c of length 1.
Source: Yu et al. 2021, ViT-VQGAN (arXiv:2110.04627), section 3.2; LlamaGen (arXiv:2406.06525).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from vqtool.options import option
from vqtool.tokenizers.quantizers import vq


@dataclass(frozen=True, kw_only=True)
class Options(vq.Options):
    """What it can be told."""

    code_dim: int | None = option(8, "Numbers in a code.", minimum=1)  # the fewer, the better codes stay in use


class Quantizer(vq.Quantizer):
    """Codes that are the directions of parameters."""

    lookup: ClassVar[str] = "cosine"

    def effective_codebook(self) -> Tensor:
        """(K, D), of length 1."""
        return functional.normalize(self.codebook, dim=-1)
