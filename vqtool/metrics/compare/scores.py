"""What grids are worth: the metrics of the pictures that they decode to, against features of reference images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool.errors import MismatchError, VqtoolError, count_text
from vqtool.images import ImageItem, OnError, SourceOptions, choose_fit, find_images, read_batches, to_uint8
from vqtool.images.sources.options import DEFAULTS, given
from vqtool.metrics.cache import remembering
from vqtool.metrics.features import FeatureNetwork, Features, extract
from vqtool.metrics.features.options import FeatureOptions
from vqtool.metrics.pictures import READ_BATCH
from vqtool.metrics.report import choose
from vqtool.metrics.saved import is_saved, load
from vqtool.metrics.score import Score, measure_features
from vqtool.metrics.sides import FeatureSet
from vqtool.progress import Progress, silent
from vqtool.tokenizers import Tokenizer

EFFICIENTNET = FeatureOptions()
MAX_REFERENCE = 2048  # images: so many that their noise is small, so few that a score takes a second


class ImageScores:
    """Every metric of features of grids, decoded in memory, against reference features.

    Args:
        tokenizer: decodes the grids, on its device.
        network: images -> features.
        reference: features of real images.
        batch_size: pictures in the tokenizer at once.
        options: of the metrics, by name.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        network: FeatureNetwork,
        reference: Features,
        *,
        batch_size: int = READ_BATCH,
        **options: Any,
    ) -> None:
        self._tokenizer = tokenizer
        self._network = network
        self._reference = reference
        self._batch_size = batch_size
        self._options = options

    def __call__(self, grids: Tensor) -> list[Score]:
        """The scores of grids (num, H, W) int64, num at least 2."""
        batches = (grids[start : start + self._batch_size] for start in range(0, len(grids), self._batch_size))
        generated = extract(self._network, map(self._decode, batches))
        return measure_features(self._reference, generated, **self._options)

    @torch.no_grad()
    def _decode(self, grids: Tensor) -> NDArray[np.uint8]:
        return to_uint8(self._tokenizer.decode(grids.to(self._tokenizer.device)))


def reference_features(
    items: Sequence[ImageItem],
    network: FeatureNetwork,
    size: tuple[int, int],
    *,
    max_images: int = MAX_REFERENCE,
    on_error: OnError | None = None,
    progress: Progress = silent,
) -> Features:
    """Features of at most so many images, brought to the size (height, width) of the prior's pictures.

    Raises:
        VqtoolError: fewer than two images.
    """
    chosen = [items[i] for i in choose(len(items), min(len(items), max_images), 0)]
    with progress("features of reference", len(chosen)) as advance:
        fit = choose_fit(items, size)
        batches = (batch.images for batch in read_batches(chosen, size, READ_BATCH, fit=fit, on_error=on_error))
        found = extract(network, batches, advance=advance)
    if len(found) < 2:
        raise VqtoolError(f"{count_text(len(found), 'image')} as reference: at least 2 are needed")
    return found


def read_features(path: str | Path, network: FeatureNetwork) -> Features:
    """Features from a file: (N, D) as `numpy.save` writes them, taken for the network's, or what `eval stats` kept.

    Raises:
        FormatError: no such array is in it.
        MismatchError: the features are of another network.
        VqtoolError: it holds statistics alone.
    """
    found, empty = load(path), extract(network, [])
    if not isinstance(found, FeatureSet):
        raise VqtoolError(f"{path}: statistics alone; `vqtool eval stats --keep-features` keeps what is needed here")
    if found.features.name:
        found.features.check_same(empty)
    width = found.features.pooled.shape[1]
    if width != network.feature_dim:
        raise MismatchError(
            f"{path}: {width} features an image, but {network.name} gives {network.feature_dim}: "
            "take features of that network, or name the images themselves"
        )
    return empty.with_arrays(found.features.arrays())


def build(
    tokenizer: Tokenizer,
    ref: Sequence[str | Path],
    size: tuple[int, int],
    *,
    max_images: int = MAX_REFERENCE,
    of_features: FeatureOptions = EFFICIENTNET,
    source_options: SourceOptions = DEFAULTS,
    on_error: OnError | None = None,
    progress: Progress = silent,
    **options: Any,
) -> ImageScores:
    """The scores against images, or against features in a file.

    Args:
        tokenizer: decodes the grids, on its device.
        ref: images, or one file of features: .npy, or as `eval stats` keeps them.
        size: (height, width) that images are brought to.
        max_images: at most so many.
        of_features: which network looks at them.
        source_options: which images are taken.
        on_error: see read_batches.
        progress: shows how far it is.
        options: of the metrics, by name.
    """
    network = of_features.load(tokenizer.device)
    saved = len(ref) == 1 and (Path(ref[0]).suffix == ".npy" or is_saved(ref[0]))
    for name in given(source_options) if saved else ():
        raise VqtoolError(f"`{name}` is for images, but {ref[0]} holds features")
    if saved:
        reference = read_features(ref[0], network)
    else:
        items = find_images(ref, source_options, words="none", on_error=on_error)
        how: dict[str, Any] = {"max_images": max_images, "on_error": on_error, "progress": progress}
        reference = reference_features(items, remembering(network, tokenizer.device, of_features.runtime), size, **how)
    return ImageScores(tokenizer, network, reference, **options)
