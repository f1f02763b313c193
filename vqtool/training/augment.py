"""Images made different each time they are seen, by noise that depends on the sample alone.

What it does: cuts a piece out of a larger image, mirrors half of them left to right, changes contrast, brightness and
saturation.
When to use it: with few images; a tokenizer trained on 10,000 or more hardly needs it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool import rng
from vqtool.images import to_float
from vqtool.options import Checked, option
from vqtool.training.loop import Indices

GREY = (0.299, 0.587, 0.114)  # shares of red, green, blue in brightness, ITU-R BT.601


@dataclass(frozen=True, kw_only=True)
class Augmentation(Checked):
    """How images change."""

    flip: bool = option(True, "Mirror half of the images left to right.", advanced=True)
    crop: float = option(1.0, "Read images so much larger, learn from pieces.", minimum=1, advanced=True)
    jitter: float = option(
        0.0, "Vary contrast, brightness and saturation by so much.", minimum=0, maximum=1, advanced=True
    )


def augmented(
    images: NDArray[np.uint8], size: tuple[int, int], augmentation: Augmentation, *, seed: int, samples: Indices
) -> Tensor:
    """Images to learn from.

    Args:
        images: (B, 3, h', w'), each side at least that of `size`; what is beyond it is cut off at random.
        size: (h, w).
        augmentation: how they change.
        seed: of the run.
        samples: (B,) number of each in the run: the key of its noise.

    Returns:
        (B, 3, h, w) float32 in [-1, 1].
    """
    noise = rng.uniform(seed, samples, 0, (6,), stream=rng.TRAINING)
    batch = to_float(_pieces(images, size, noise[:, 1:3].numpy()))
    if augmentation.flip:
        batch = torch.where(noise[:, 0, None, None, None] < 0.5, batch.flip(-1), batch)
    return _jittered(batch, noise[:, 3:], augmentation.jitter) if augmentation.jitter else batch


def middle(images: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The middle (B, 3, h, w) of images (B, 3, h', w')."""
    top, left = ((whole - part) // 2 for whole, part in zip(images.shape[2:], size, strict=True))
    return images[:, :, top : top + size[0], left : left + size[1]]


def _pieces(images: NDArray[np.uint8], size: tuple[int, int], noise: NDArray[np.float64]) -> NDArray[np.uint8]:
    room = np.array(images.shape[2:]) - size
    if not room.any():
        return images
    corners = (noise * (room + 1)).astype(int)
    return np.stack(
        [
            image[:, top : top + size[0], left : left + size[1]]
            for image, (top, left) in zip(images, corners, strict=True)
        ]
    )


def _jittered(batch: Tensor, noise: Tensor, strength: float) -> Tensor:
    """Noise (B, 3) in [0, 1) changes contrast, brightness and saturation by up to a share."""
    contrast, brightness, saturation = (((2 * noise - 1) * strength).float()[:, :, None, None, None]).unbind(1)
    mean = batch.mean((1, 2, 3), keepdim=True)
    batch = mean + (batch - mean) * (1 + contrast) + brightness
    grey = (batch * batch.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)
    return (grey + (batch - grey) * (1 + saturation)).clamp(-1, 1)
