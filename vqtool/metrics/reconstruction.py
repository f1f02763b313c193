"""How far pictures are from their originals: PSNR, SSIM, MS-SSIM and on request as networks see them.

What it does: PSNR is the mean squared error of 8-bit pixels on a logarithmic scale; similarity.py has SSIM and MS-SSIM,
training/perceptual.py the perceptual distances.
When to use it: for a tokenizer on held-out pictures. PSNR rewards blur: look at the others and at the pictures too.
Equation: 10 log10(255^2 / MSE) dB, MSE over the three channels and all pixels of a picture.
Cost: one pass over the pixels, and ten small convolutions a size.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from vqtool.codebooks.usage import few_tokens
from vqtool.errors import VqtoolError, count_text, size_text
from vqtool.images import ImageItem, OnError, choose_fit, read_batches, to_float, to_uint8
from vqtool.metrics import tokens
from vqtool.metrics.card import Card, side_of
from vqtool.metrics.exhibits import Exhibit
from vqtool.metrics.features import FeatureNetwork, Features, concatenate, extract
from vqtool.metrics.galleries import Pair, keep_worst, show_usage, show_worst
from vqtool.metrics.pictures import READ_BATCH, noting, pixel_digests
from vqtool.metrics.report import MAX_IMAGES, Report, choose
from vqtool.metrics.score import Score, measure_features
from vqtool.metrics.similarity import POWERS, ms_ssim, num_scales, ssim
from vqtool.progress import Progress, silent
from vqtool.tokenizers import Tokenizer
from vqtool.training.perceptual import Perceptual

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


class PairScores:
    """The scores of pictures against their originals, handed in batch by batch.

    Args:
        perceptual: a distance as a network sees it, on whichever device; None for none.
        network: of features that both sides are compared by, as sets; None for none.
    """

    def __init__(self, perceptual: Perceptual | None = None, network: FeatureNetwork | None = None) -> None:
        self._perceptual, self._network = perceptual, network
        self._each: dict[str, list[NDArray[np.float64]]] = {}
        self._features: tuple[list[Features], list[Features]] = ([], [])

    def add(self, images: NDArray[np.uint8], originals: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Measure pictures (B, 3, h, w) uint8; returns their mean squared errors (B,)."""
        found = {"errors": mean_squared_errors(images, originals)}
        if scales := num_scales(images.shape[2:]):
            found["SSIM"] = ssim(images, originals)
            found[f"MS-SSIM-{scales}" if scales < len(POWERS) else "MS-SSIM"] = ms_ssim(images, originals)
        if self._perceptual is not None:
            self._perceptual.check_size(images.shape[2:])
            with torch.inference_mode():
                distances = self._perceptual.distances(to_float(originals), to_float(images))
            found[f"perceptual-{Path(self._perceptual.name).stem}"] = distances.double().numpy()
        for name, values in found.items():
            self._each.setdefault(name, []).append(values)
        if self._network is not None:
            for side, pictures in zip(self._features, (images, originals), strict=True):
                side.append(extract(self._network, [pictures]))
        return found["errors"]

    def __len__(self) -> int:
        return sum(map(len, self._each.get("errors", [])))

    def scores(self, *, seed: int = 0, **options: Any) -> list[Score]:
        """All scores; the mean over the pictures has its standard error.

        Args:
            seed: of what metrics of features draw.
            options: of metrics of features.
        """
        values = {name: np.concatenate(parts) for name, parts in self._each.items()}
        scores = measure(values.pop("errors"))
        for name, each in values.items():
            error = float(each.std(ddof=1) / len(each) ** 0.5) if len(each) > 1 else None
            better: Literal["lower", "higher"] = "lower" if name.startswith("perceptual") else "higher"
            scores.append(Score(name, float(each.mean()), better=better, standard_error=error))
        if self._network is not None and len(self) > 1:
            ours, theirs = (concatenate(side) for side in self._features)
            scores += measure_features(theirs, ours, seed=seed, **options)
        return scores


def measure_reconstruction(
    images: Sequence[ImageItem],
    tokenizer: Tokenizer,
    *,
    size: tuple[int, int],
    fit: str | None = None,
    max_images: int = MAX_IMAGES,
    exhibits: bool = False,
    perceptual: Perceptual | None = None,
    network: FeatureNetwork | None = None,
    seed: int = 0,
    on_error: OnError | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Report:
    """PSNR, SSIM and MS-SSIM of images encoded and decoded again, with the usage and perplexity of the codebook.

    Args:
        images: best ones that the tokenizer has not been trained on.
        tokenizer: on whichever device.
        size: (height, width) in pixels, multiples of the tokenizer's factor.
        fit: how they are brought to it: see `vqtool.images.choose_fit`.
        max_images: at most so many, chosen by seed.
        exhibits: find what a page shows: the worst pictures, and usage.
        perceptual: a distance as a network sees it, measured too.
        network: of features, by which reconstructions are compared with the images as sets.
        seed: of that choice.
        on_error: see read_batches.
        progress: shows how far it is.
        options: of metrics of features.

    Raises:
        VqtoolError: no image could be read, or the size does not fit the tokenizer.
    """
    grid_size = tokenizer.grid_size(size)
    chosen = [images[i] for i in choose(len(images), min(max_images, len(images)), seed)]
    fit = choose_fit(images, size, fit, factor=tokenizer.factor)
    counts = np.zeros(tokenizer.codebook_size, np.int64)
    pairs, digests, worst = PairScores(perceptual, network), list[bytes](), list[Pair]()
    left_out: list[str] = []

    skip = noting(left_out, on_error)
    with progress("reconstruct", len(chosen)) as advance:
        for batch in read_batches(chosen, size, READ_BATCH, fit=fit, on_error=skip):
            grid = tokenizer.encode(to_float(batch.images).to(tokenizer.device))
            counts += torch.bincount(grid.flatten(), minlength=len(counts)).cpu().numpy()
            decoded = to_uint8(tokenizer.decode(grid))
            errors = pairs.add(decoded, batch.images)
            digests += pixel_digests(batch.images)
            if exhibits:
                worst = keep_worst(worst, batch.ids, decoded, batch.images, errors)
            advance(len(batch.images))
    if not len(pairs):
        raise VqtoolError(f"none of the {count_text(len(chosen), 'image')} could be read")
    about = {
        "kind": "reconstruction",
        "num_images": len(pairs),
        "num_given": {"images": len(images)},
        "size": size_text(size),
        "fit": fit,
        "grid_size": size_text(grid_size),
        "tokenizer": tokenizer.fingerprint,
        "codebook_size": tokenizer.codebook_size,
        "num_tokens": int(counts.sum()),
        "seed": seed,
    }
    scores = pairs.scores(seed=seed, **options) + tokens.measure(counts)
    headline = (
        f"{about['num_images']} of {count_text(len(images), 'image')}; {about['size']} pixels, "
        f"{about['grid_size']} tokens; "
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
    return Report(headline, scores, about, few_tokens(counts), card, unreadable={"images": left_out}, exhibits=shown)
