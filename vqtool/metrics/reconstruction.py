"""How far pictures are from their originals, pixel by pixel.

What it does: PSNR, the mean squared error of 8-bit pixels on a logarithmic scale.
When to use it: for a tokenizer on held-out pictures. It rewards blur: look at the pictures too.
Equation: 10 log10(255^2 / MSE) dB, MSE over the three channels and all pixels of a picture.
Cost: one pass over the pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from vqtool.codebooks.usage import few_tokens
from vqtool.errors import VqtoolError, size_text
from vqtool.images import ImageItem, OnError, choose_fit, read_batches, to_float, to_uint8
from vqtool.metrics import tokens
from vqtool.metrics.card import Card, side_of
from vqtool.metrics.exhibits import Exhibit
from vqtool.metrics.galleries import Pair, keep_worst, show_usage, show_worst
from vqtool.metrics.pictures import READ_BATCH, noting, pixel_digests
from vqtool.metrics.report import MAX_IMAGES, Report, choose
from vqtool.metrics.score import Score
from vqtool.progress import Progress, silent
from vqtool.tokenizers import Tokenizer

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


def measure_reconstruction(
    images: Sequence[ImageItem],
    tokenizer: Tokenizer,
    *,
    size: tuple[int, int],
    fit: str | None = None,
    max_images: int = MAX_IMAGES,
    exhibits: bool = False,
    seed: int = 0,
    on_error: OnError | None = None,
    progress: Progress = silent,
) -> Report:
    """PSNR of images encoded and decoded again, with the usage and perplexity of the codebook.

    Args:
        images: best ones that the tokenizer has not been trained on.
        tokenizer: on whichever device.
        size: (height, width) in pixels, multiples of the tokenizer's factor.
        fit: how they are brought to it: see `vqtool.images.choose_fit`.
        max_images: at most so many, chosen by seed.
        exhibits: find what a page shows: the worst pictures, and usage.
        seed: of that choice.
        on_error: see read_batches.
        progress: shows how far it is.

    Raises:
        VqtoolError: no image could be read, or the size does not fit the tokenizer.
    """
    grid_size = tokenizer.grid_size(size)
    chosen = [images[i] for i in choose(len(images), min(max_images, len(images)), seed)]
    fit = choose_fit(images, size, fit, factor=tokenizer.factor)
    counts = np.zeros(tokenizer.codebook_size, np.int64)
    errors, digests, worst = [], list[bytes](), list[Pair]()
    left_out: list[str] = []

    skip = noting(left_out, on_error)
    with progress("reconstruct", len(chosen)) as advance:
        for batch in read_batches(chosen, size, READ_BATCH, fit=fit, on_error=skip):
            grid = tokenizer.encode(to_float(batch.images).to(tokenizer.device))
            counts += torch.bincount(grid.flatten(), minlength=len(counts)).cpu().numpy()
            decoded = to_uint8(tokenizer.decode(grid))
            errors.append(mean_squared_errors(decoded, batch.images))
            digests += pixel_digests(batch.images)
            if exhibits:
                worst = keep_worst(worst, batch.ids, decoded, batch.images, errors[-1])
            advance(len(batch.images))
    if not errors:
        raise VqtoolError(f"none of the {len(chosen)} images could be read")
    about = {
        "kind": "reconstruction",
        "num_images": sum(map(len, errors)),
        "num_given": {"images": len(images)},
        "size": f"{size[0]}x{size[1]}",
        "fit": fit,
        "grid_size": f"{grid_size[0]}x{grid_size[1]}",
        "tokenizer": tokenizer.fingerprint,
        "codebook_size": tokenizer.codebook_size,
        "num_tokens": int(counts.sum()),
        "seed": seed,
    }
    scores = measure(np.concatenate(errors)) + tokens.measure(counts)
    headline = (
        f"{about['num_images']} of {len(images)} images; {about['size']} pixels, {about['grid_size']} tokens; "
        f"tokenizer {tokenizer.location} ({tokenizer.fingerprint}), codebook of {len(counts)}"
    )
    card = Card(
        measure="reconstruction",
        size=size_text(size),
        tokenizer=tokenizer.fingerprint,
        generated=side_of(digests, num_given=len(images), unreadable=len(left_out), fit=fit),
        seed=seed,
    )
    shown: list[Exhibit] = [show_worst(worst), show_usage(counts)] if exhibits else []
    unreadable = {"images": left_out}
    return Report(headline, scores, about, few_tokens(counts), card, unreadable=unreadable, exhibits=shown)
