"""How far pictures are from their originals, pixel by pixel.

What it does: PSNR, the mean squared error of 8-bit pixels on a logarithmic scale.
When to use it: for a tokenizer on held-out pictures. It rewards blur: look at the pictures too.
Equation: 10 log10(255^2 / MSE) dB, MSE over the three channels and all pixels of a picture.
Cost: one pass over the pixels.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vqtool.metrics.score import Score

PEAK = 255.0


def mean_squared_errors(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean squared error of each picture.

    Args:
        images: (B, 3, h, w) uint8.
        others: (B, 3, h, w) uint8.

    Returns:
        (B,) float64, in squared steps of 8-bit pixels.

    Raises:
        ValueError: the shapes differ.
    """
    if images.shape != others.shape:
        raise ValueError(f"pictures of shape {images.shape} and {others.shape}")
    difference = images.astype(np.int32) - others
    means: NDArray[np.float64] = (difference**2).mean(axis=(1, 2, 3))
    return means


def psnr(squared_errors: ArrayLike) -> NDArray[np.float64]:
    """PSNR in dB of mean squared errors (any shape) of 8-bit pixels; infinite where pictures are equal."""
    with np.errstate(divide="ignore"):
        decibels: NDArray[np.float64] = 10 * np.log10(PEAK**2 / np.asarray(squared_errors, dtype=np.float64))
    return decibels


def measure(squared_errors: ArrayLike) -> list[Score]:
    """The scores of pictures with these mean squared errors (N,).

    "PSNR" is the mean over the pictures, without pictures that equal their original (their number is in the
    settings); "PSNR-pooled" is that of the mean squared error over all pictures, which the worst ones dominate.
    """
    errors = np.asarray(squared_errors, dtype=np.float64)
    each = psnr(errors[errors > 0])
    mean = float(each.mean()) if len(each) else np.inf
    error = float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else None
    settings = {"num_identical": len(errors) - len(each)}
    return [
        Score("PSNR", mean, better="higher", unit="dB", standard_error=error, settings=settings),
        Score("PSNR-pooled", float(psnr(errors.mean())), better="higher", unit="dB"),
    ]
