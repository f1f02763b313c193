"""How well pictures fit their captions without CLIP: one linear map each of two frozen encoders into a shared space.

What it does: EfficientNet-Lite0's features of a picture and all-MiniLM-L6-v2's of a caption are mapped to 256 numbers
each; the score is their cosine. `text.py` makes the scores of these vectors.
When to use it: offline, to compare models of pictures like those that the maps were trained on. It is no CLIP score:
its name is EfficientNetLite0+MiniLM with the first digits of the maps' digest, and its numbers compare with its own.
Files: an artifact of kind "dual-encoder"; `scripts/text_image.py` trains one on pictures with captions, and one is
inside the package ("builtin").
Cost: 25 pictures/s and 150 captions/s on one core.
Source: InfoNCE of Radford et al. 2021 (arXiv:2103.00020), section 2.3, with encoders that stay as they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool import artifacts
from vqtool.artifacts import Header
from vqtool.conditions.minilm import MiniLM
from vqtool.metrics.features._network import digest_of, own_name
from vqtool.metrics.features.efficientnet_lite0 import EfficientNetLite0
from vqtool.products import Computation
from vqtool.trust import build_network, parse_record

KIND = "dual-encoder"
NAME = "EfficientNetLite0+MiniLM"


@dataclass(frozen=True)
class Config:
    """What the maps are built from."""

    image_width: int = 1280  # of EfficientNet-Lite0's features
    text_width: int = 384  # of MiniLM's
    width: int = 256  # of the shared space


class DualEncoder(nn.Module):
    """Two linear maps into one space."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.image = nn.Linear(config.image_width, config.width)
        self.text = nn.Linear(config.text_width, config.width, bias=False)

    def of_images(self, features: Tensor) -> Tensor:
        """(N, image_width) -> (N, width) of length 1."""
        return F.normalize(self.image(features))

    def of_texts(self, features: Tensor) -> Tensor:
        """(N, text_width) -> (N, width) of length 1."""
        return F.normalize(self.text(features))

    @torch.inference_mode()
    def scores(self, images: NDArray[np.float32], texts: NDArray[np.float32]) -> NDArray[np.float32]:
        """Cosines (N, M) of N pictures' and M captions' features."""
        return (self.of_images(torch.from_numpy(images)) @ self.of_texts(torch.from_numpy(texts)).T).numpy()


def save_dual_encoder(
    path: str | Path,
    encoder: DualEncoder,
    *,
    history: Sequence[Mapping[str, Any]] = (),
    summary: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Header:
    """Write two maps, rounded to 16 bits.

    Raises:
        VqtoolError: the file exists and `force` is off, or it cannot be written.
    """
    tensors = {name: tensor.half() for name, tensor in encoder.state_dict().items()}
    about = {"config": asdict(encoder.config), "history": history, "summary": summary, "force": force}
    return artifacts.save(path, kind=KIND, tensors=tensors, **about)  # type: ignore[arg-type]


def load_dual_encoder(path: str | Path) -> tuple[DualEncoder, str]:
    """Two maps of a file, or "builtin", and their fingerprint.

    Raises:
        FormatError: the file is damaged, or something else.
    """
    path = artifacts.find(path, KIND)
    header, tensors = artifacts.load(path, KIND)
    config = parse_record(Config, header.config, f"{path}: config")
    encoder = build_network(lambda: DualEncoder(config), tensors, str(path))
    return encoder.eval().requires_grad_(False), header.fingerprint


class DualTexts:
    """A `text.TextEncoder`: pictures and captions -> vectors of length 1, by the maps of a file.

    Args:
        path: of an artifact of kind dual-encoder; or "builtin".
        device: where EfficientNet-Lite0 runs.
        computation: of EfficientNet-Lite0; None: float32.

    Raises:
        FormatError: the file is damaged, or something else.
        VqtoolError: a package is not installed.
    """

    def __init__(self, path: str | Path, device: str | torch.device, computation: Computation | None = None) -> None:
        self._maps, fingerprint = load_dual_encoder(path)
        self._network, self._captions = EfficientNetLite0(device), MiniLM()
        self._network.compute(computation or Computation())
        self.digest = digest_of(self._captions.weights, NAME, fingerprint, self._network.digest)
        self.name = own_name(NAME, self.digest)

    @torch.inference_mode()
    def pictures(self, images: NDArray[np.uint8]) -> Tensor:
        """(N, 3, h, w) uint8 to (N, 256) float64."""
        return self._maps.of_images(torch.from_numpy(self._network(images).pooled)).double()

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """(N, 256) float64."""
        return self._maps.of_texts(torch.from_numpy(self._captions(texts))).double()
