"""SSIM and MS-SSIM: how alike the structure of two pictures is.

What they do: compare brightness, contrast and structure in a window of 11 pixels around every pixel; 1 for equal
pictures. MS-SSIM does so at several sizes, each half of the one before.
When to use them: beside PSNR, for tokenizers on held-out pictures. They forgive changes of brightness and punish blur
more than PSNR does.
Equation: (2 m n + C1) (2 s + C2) / ((m^2 + n^2 + C1) (v + w + C2)), means m and n, variances v and w, covariance s
under a Gaussian of 1.5 pixels, C1 = (0.01 * 255)^2, C2 = (0.03 * 255)^2; the mean over channels and over the places
whose window is inside. MS-SSIM is the product of the second factor's mean at each size, and of the whole at the last,
to powers that sum to 1; terms below 0 count as 0. Pictures of less than 176 pixels have fewer sizes than five, with
powers in the same proportions, and the score says how many: "MS-SSIM-3" does not compare with "MS-SSIM".
Cost: ten small convolutions a size.
Source: Wang et al. 2004 (doi:10.1109/TIP.2003.819861) and 2003 (doi:10.1109/ACSSC.2003.1292216). Golden: scikit-image
with gaussian_weights, sigma 1.5 and use_sample_covariance=False.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

WINDOW, SIGMA = 11, 1.5  # pixels
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
POWERS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM, the finest size first


def num_scales(size: tuple[int, int]) -> int:
    """How many sizes MS-SSIM has for pictures of a size (height, width), at most 5; 0 if they are below a window."""
    return next((i for i in range(len(POWERS)) if min(size) >> i < WINDOW), len(POWERS))


def ssim(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """SSIM of each picture.

    Args:
        images: (B, 3, h, w) uint8, h and w at least 11.
        others: (B, 3, h, w) uint8.

    Returns:
        (B,) float64, at most 1.

    Raises:
        ValueError: the shapes differ, or the pictures are too small.
    """
    _check(images, others)
    whole, _ = _similarities(torch.from_numpy(images).double(), torch.from_numpy(others).double())
    found: NDArray[np.float64] = whole.numpy()
    return found


def ms_ssim(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """MS-SSIM of each picture, of as many sizes as `num_scales` says.

    Args:
        images: (B, 3, h, w) uint8, h and w at least 11.
        others: (B, 3, h, w) uint8.

    Returns:
        (B,) float64 in [0, 1].

    Raises:
        ValueError: the shapes differ, or the pictures are too small.
    """
    _check(images, others)
    x, y = torch.from_numpy(images).double(), torch.from_numpy(others).double()
    scales = num_scales(images.shape[2:])
    powers = [power / sum(POWERS[:scales]) for power in POWERS[:scales]]
    product = torch.ones(len(x), dtype=torch.float64)
    for number, power in enumerate(powers, 1):
        whole, contrast = _similarities(x, y)
        product = product * (whole if number == scales else contrast).clamp(min=0) ** power
        x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
    found: NDArray[np.float64] = product.numpy()
    return found


def _check(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> None:
    if images.shape != others.shape:
        raise ValueError(f"pictures of shape {images.shape} and {others.shape}")
    if min(images.shape[2:]) < WINDOW:
        raise ValueError(f"pictures of shape {images.shape}: sides of {WINDOW} pixels and more are expected")


def _similarities(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) SSIM and the mean of its second factor, contrast and structure, of pictures (B, C, h, w) in 0..255."""
    m, n = _blur(x), _blur(y)
    v, w, s = _blur(x * x) - m * m, _blur(y * y) - n * n, _blur(x * y) - m * n
    contrast = (2 * s + C2) / (v + w + C2)
    whole = contrast * (2 * m * n + C1) / (m * m + n * n + C1)
    return whole.mean((1, 2, 3)), contrast.mean((1, 2, 3))


def _blur(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, h - 10, w - 10): means under a Gaussian."""
    place = torch.arange(WINDOW, dtype=x.dtype) - WINDOW // 2
    weights = torch.exp(-(place**2) / (2 * SIGMA**2))
    weights = (weights / weights.sum()).expand(x.shape[1], 1, 1, WINDOW)
    x = F.conv2d(x, weights, groups=x.shape[1])
    return F.conv2d(x, weights.transpose(2, 3), groups=x.shape[1])
