"""Low-rank adapters in a file of their own: what a fine-tuning adds to some weights of a prior, W + scale * up @ down.

A file is an artifact of kind "adapter", whose parent is the prior. It holds (out, rank) `MODULE.up` and (rank, in)
`MODULE.down` of each weight, and says where the prior was; `priors.load_prior` makes one prior of both.
Source: Hu et al. 2021 (arXiv:2106.09685).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqtool import artifacts
from vqtool.denoisers import Denoiser
from vqtool.errors import FormatError
from vqtool.trust import check_finite, parse_record

KIND = "adapter"


@dataclass(frozen=True)
class Adapter:
    """What is added to some weights of a prior."""

    scale: float
    prior: str  # fingerprint of the prior that it is for
    location: str  # where that was: "builtin" or a path

    def save(
        self, path: str | Path, tensors: Mapping[str, Tensor], *, history: Sequence[Mapping[str, Any]], force: bool
    ) -> artifacts.Header:
        """Write it to a file, with its matrices."""
        return artifacts.save(
            path, kind=KIND, config=asdict(self), tensors=tensors, parents={"prior": self.prior}, history=history,
            force=force,
        )  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> "tuple[Adapter, artifacts.Header, dict[str, Tensor]]":
        """What is in a file, and its matrices.

        Raises:
            FormatError: not an adapter, or damaged.
        """
        header, tensors = artifacts.load(path, KIND)
        check_finite(tensors, str(path))
        return parse_record(cls, header.config, f"{path}: its config is damaged"), header, tensors

    @torch.no_grad()
    def merge(self, denoiser: Denoiser, tensors: Mapping[str, Tensor], where: str) -> None:
        """Add it to the weights of a denoiser.

        Raises:
            FormatError: the matrices do not fit the weights.
        """
        for place in sorted({name.rpartition(".")[0] for name in tensors}):
            try:
                up, down = tensors[f"{place}.up"], tensors[f"{place}.down"]
                weight = denoiser.get_parameter(f"{place}.weight")
                weight.add_(self.scale * (up @ down).view_as(weight))
            except (KeyError, AttributeError, RuntimeError) as error:
                raise FormatError(f"{where}: its matrices of {place} do not fit the prior") from error
