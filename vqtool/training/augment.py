"""Images made different each time they are seen, by noise that depends on the sample alone.

What it does: cuts a piece out of a larger image, or shrinks a piece of any size, mirrors half of them left to right,
changes contrast, brightness and saturation. All of it on the device that the images are on.
When to use it: with few images; a tokenizer trained on 10,000 or more needs it only to learn of several scales.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool import distributed, rng
from vqtool.errors import VqtoolError
from vqtool.images import to_float
from vqtool.options import Checked, option
from vqtool.training._order import Indices

GREY = (0.299, 0.587, 0.114)  # shares of red, green, blue in brightness, ITU-R BT.601


@dataclass(frozen=True, kw_only=True)
class Augmentation(Checked):
    """How images change."""

    flip: bool = option(True, "Mirror half of the images left to right.", advanced=True)
    crop: float = option(1.0, "Read images so much larger, learn from pieces.", minimum=1, advanced=True)
    zoom: bool = option(
        False, "Shrink pieces of every size up to the whole, instead of pieces of one size; with `crop`.", advanced=True
    )
    jitter: float = option(
        0.0, "Vary contrast, brightness and saturation by so much.", minimum=0, maximum=1, advanced=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zoom and self.crop == 1:
            raise VqtoolError("`zoom` goes with `crop` above 1: images have to be larger than what is learned from")


def augmented(
    images: Tensor, size: tuple[int, int], augmentation: Augmentation, *, seed: int, samples: Indices
) -> Tensor:
    """Images to learn from.

    Args:
        images: (B, 3, h', w') uint8, each side at least that of `size`; what is beyond it is cut off at random.
        size: (h, w).
        augmentation: how they change.
        seed: of the run.
        samples: (B,) number of each in the run: the key of its noise.

    Returns:
        (B, 3, h, w) float32 in [-1, 1], on the device of the images.
    """
    noise = distributed.to_device(rng.uniform(seed, samples, 0, (7,), stream=rng.TRAINING), images.device)
    mirrored, place, change, scale = torch.split(noise, [1, 2, 3, 1], dim=1)
    if augmentation.zoom:
        batch = _shrunk(to_float(images), size, place, scale)
    else:
        batch = to_float(_pieces(images, size, place))
    if augmentation.flip:
        batch = torch.where(mirrored[:, :, None, None] < 0.5, batch.flip(-1), batch)
    return _jittered(batch, change, augmentation.jitter) if augmentation.jitter else batch


def middle(images: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The middle (B, 3, h, w) of images (B, 3, h', w')."""
    top, left = ((whole - part) // 2 for whole, part in zip(images.shape[2:], size, strict=True))
    return images[:, :, top : top + size[0], left : left + size[1]]


def _pieces(images: Tensor, size: tuple[int, int], place: Tensor) -> Tensor:
    """Pieces of (h, w) pixels, at places (B, 2) in [0, 1)."""
    if images.shape[2:] == size:
        return images
    rows, columns = (
        (place[:, axis, None] * (images.shape[2 + axis] - size[axis] + 1)).long()
        + torch.arange(size[axis], device=images.device)
        for axis in range(2)
    )
    image, channel = (torch.arange(n, device=images.device) for n in images.shape[:2])
    return images[image[:, None, None, None], channel[:, None, None], rows[:, None, :, None], columns[:, None, None]]


def _shrunk(images: Tensor, size: tuple[int, int], place: Tensor, scale: Tensor) -> Tensor:
    """Pieces of (h, w) pixels and larger ones, as large as fits, shrunk to (h, w); the log of the size is uniform.

    Args:
        images: (B, 3, h', w') float32.
        size: (h, w).
        place: (B, 2) in [0, 1).
        scale: (B, 1) in [0, 1): 0 is a piece of (h, w) pixels.
    """
    largest = min(images.shape[2] / size[0], images.shape[3] / size[1])
    factor = largest**scale
    down, across = (
        _triangles(images.shape[2 + axis], size[axis], place[:, axis, None], factor).float()[:, None]
        for axis in range(2)
    )
    return down @ images @ across.mT


def _triangles(whole: int, part: int, place: Tensor, factor: Tensor) -> Tensor:
    """(B, part, whole) weights that shrink `part * factor` of `whole` pixels to `part`, antialiased.

    Each new pixel is a mean of the old ones around it, weights falling linearly to 0 at `factor` pixels, as in
    Pillow's bilinear filter; place (B, 1) and factor (B, 1), 1 or more, are float64.
    """
    begin = place * (whole - part * factor)
    centre = begin + (torch.arange(part, device=place.device) + 0.5) * factor  # (B, part)
    old = torch.arange(whole, device=place.device) + 0.5
    weights = (1 - (old - centre[..., None]).abs() / factor[..., None]).clamp(min=0)
    return weights / weights.sum(-1, keepdim=True)


def _jittered(batch: Tensor, noise: Tensor, strength: float) -> Tensor:
    """Noise (B, 3) in [0, 1) changes contrast, brightness and saturation by up to a share."""
    contrast, brightness, saturation = (((2 * noise - 1) * strength).float()[:, :, None, None, None]).unbind(1)
    mean = batch.mean((1, 2, 3), keepdim=True)
    batch = mean + (batch - mean) * (1 + contrast) + brightness
    grey = sum(share * channel for share, channel in zip(GREY, torch.split(batch, 1, dim=1), strict=True))
    return (grey + (batch - grey) * (1 + saturation)).clamp(-1, 1)
