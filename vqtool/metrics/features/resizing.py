"""How pictures come to the size of a feature network, by policies that are published and give different scores.

| policy | what it does | used by |
|---|---|---|
| clean | bicubic with antialiasing on floats, clipped to 0..255 | clean-fid |
| legacy-pytorch | bilinear without antialiasing, pixels as areas | pytorch-fid |
| legacy-tf | bilinear without antialiasing, pixels as points: TensorFlow 1's default | torch-fidelity, TTUR |
| adm | the same as legacy-tf | ADM's evaluation suite |

Those without antialiasing skip pixels where they reduce by more than 2, and JPEG artefacts then move scores more than
networks do. Source: Parmar et al. 2022 (arXiv:2104.11222).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from vqtool.registry import check_known

RESIZES = ("clean", "legacy-pytorch", "legacy-tf", "adm")


def resize_images(images: Tensor, size: int, resize: str) -> Tensor:
    """Square pictures (B, 3, size, size) float32 in 0..255 of images (B, 3, h, w) uint8.

    Raises:
        VqtoolError: an unknown policy.
    """
    check_known("resize policy", resize, RESIZES)
    x = images.float()
    if x.shape[-2:] == (size, size):
        return x
    if resize == "clean":
        return F.interpolate(x, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
    if resize == "legacy-pytorch":
        return F.interpolate(x, (size, size), mode="bilinear", align_corners=False)
    return _interpolate_points(_interpolate_points(x, size).transpose(-1, -2), size).transpose(-1, -2)


def _interpolate_points(x: Tensor, size: int) -> Tensor:
    """The last axis brought to `size`, pixels being points: output i lies at i * old / new, the last pixel goes on."""
    old = x.shape[-1]
    place = torch.arange(size, device=x.device, dtype=torch.float32) * (old / size)
    low = place.floor().long()
    share = place - low
    return x[..., low] * (1 - share) + x[..., (low + 1).clamp(max=old - 1)] * share
