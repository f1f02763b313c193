"""Features of vision models in folders of transformers: weights as safetensors, settings as JSON, no code."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqtool.errors import FormatError, VqtoolError
from vqtool.metrics.features._network import TorchFeatures, digest_of, own_name
from vqtool.metrics.features.resizing import resize_images
from vqtool.trust import check_finite


class VisionFeatures(TorchFeatures):
    """Base of networks in such folders: images (B, 3, h, w) uint8 RGB -> features (B, D).

    Args:
        name: of the kind of network.
        model: of transformers.
        vectors: a module that calls it, x (B, 3, size, size) -> (B, D).
        size: px, of the square pictures that it takes.
        mean: of red, green and blue in 0..1, which become 0.
        std: of them, which become 1.
        device: where it runs.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        vectors: nn.Module,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
    ) -> None:
        super().__init__(device, digest_of(model.state_dict(), name, "clean", str(size)), "clean")
        self.name, self.size = own_name(name, self.digest), size
        self._mean, self._std = (torch.tensor(each, device=device).view(3, 1, 1) * 255 for each in (mean, std))
        self.network = vectors.to(device).eval().requires_grad_(False)
        with torch.inference_mode():
            self.feature_dim = self.network(torch.zeros(1, 3, size, size, device=device)).shape[1]

    def run(self, images: Tensor) -> dict[str, Tensor]:
        """The arrays of `Features` of images (B, 3, h, w) uint8."""
        return {"pooled": self.ask((resize_images(images, self.size, "clean") - self._mean) / self._std)}


def load_model(class_name: str, weights: Path | None, what: str, *, option: str = "weights") -> Any:
    """A model of transformers from a folder.

    Args:
        class_name: such as "Dinov2Model".
        weights: the folder.
        what: it is of, for messages.
        option: that names the folder, for messages.

    Raises:
        FormatError: the folder holds something else, or damaged weights.
        VqtoolError: none is given, or transformers is not installed.
    """
    if weights is None or not (weights / "config.json").is_file():
        given = "" if weights is None else f" {weights}: no such folder;"
        raise VqtoolError(f"`{option}`{given} {what} needs a folder of transformers: config.json and model.safetensors")
    try:
        import transformers
    except ImportError as error:
        raise VqtoolError(f"{what} needs transformers ({error}): pip install transformers") from error
    try:
        model, told = getattr(transformers, class_name).from_pretrained(
            weights, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # transformers raises nearly anything on folders that lack a part
        raise FormatError(f"{weights}: not {what} that can be read: {' '.join(str(error).split())[:200]}") from error
    if missing := sorted(map(str, told["missing_keys"])):
        raise FormatError(f"{weights}: not {what}: its weights lack {missing[0]}")
    check_finite(model.state_dict(), str(weights))
    return model
