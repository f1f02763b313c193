"""DINOv2: features learned without labels, whose Fréchet distance follows what people see better than Inception's.

What it does: a vision transformer; the state of its class token after the last norm, of pictures of 224 px.
When to use it: to compare models of photographs, beside FID. Weights: a folder of transformers (`Dinov2Model`), such as
facebook/dinov2-large; its scores bear the first digits of the weights' digest.
Cost: 80 GMAC a picture for the large one.
Source: Oquab et al. 2023 (arXiv:2304.07193); Stein et al. 2023 (arXiv:2306.04675), FD-DINOv2 at 224 px, bicubic.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqtool.metrics.features._transformers import VisionFeatures, load_model

RESIZES = ("clean",)
SIZE = 224  # px, square
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class _ClassToken(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(pixel_values=x).last_hidden_state[:, 0]
        return found


def load(weights: Path | None, resize: str, device: torch.device) -> VisionFeatures:
    """The network of a folder.

    Raises:
        FormatError: the folder holds something else, or damaged weights.
        VqtoolError: none is given, or transformers is not installed.
    """
    model = load_model("Dinov2Model", weights, "a DINOv2 model")
    patch = model.config.patch_size
    return VisionFeatures("DINOv2", model, _ClassToken(model), SIZE // patch * patch, MEAN, STD, device)
