"""CLIP: what its image tower makes of pictures, in the space that they share with captions.

What it does: a vision transformer and its projection, of pictures of the size of its settings.
When to use it: where captions were the condition, beside the CLIP score. Weights: a folder of transformers
(`CLIPModel`), such as openai/clip-vit-base-patch32; its scores bear the first digits of the weights' digest.
Cost: 4 GMAC a picture for ViT-B/32.
Source: Radford et al. 2021 (arXiv:2103.00020). Oracle: transformers' `CLIPModel.get_image_features`.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqtool.metrics.features._transformers import VisionFeatures, load_model

RESIZES = ("clean",)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class _Projection(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision, self.projection = model.vision_model, model.visual_projection

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.projection(self.vision(pixel_values=x).pooler_output)
        return found


def load(weights: Path | None, resize: str, device: torch.device) -> VisionFeatures:
    """The network of a folder.

    Raises:
        FormatError: the folder holds something else, or damaged weights.
        VqtoolError: none is given, or transformers is not installed.
    """
    model = load_model("CLIPModel", weights, "a CLIP model")
    size = int(model.config.vision_config.image_size)
    return VisionFeatures("CLIP", model, _Projection(model), size, MEAN, STD, device)
