"""How well pictures fit their captions, as CLIP sees it, or without CLIP the dual encoder of dual_encoder.py.

What it does: the mean cosine of a picture's and its caption's vectors, and where a picture's own caption ranks among
the captions of all pictures.
When to use it: for priors that take captions. Compare at equal numbers of pictures and the same captions only. The
score of captions that belong to other pictures stands beside it: the chance.
Equation: "text-score" is mean_i cos(v_i, u_i). 100 times it is what torchmetrics calls CLIP score, 2.5 times it CLIP-S,
as far as no cosine is below 0. R@k is the share of pictures whose caption is among the k nearest; equal captions count
once, and ties count against a picture.
Cost: one pass of both towers, and O(N C) for C different captions.
Source: Radford et al. 2021 (arXiv:2103.00020), Hessel et al. 2021 (arXiv:2104.08718). Oracle: transformers'
`CLIPModel`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool.artifacts import BUILTIN
from vqtool.errors import VqtoolError, count_text, size_text
from vqtool.images import ImageItem, OnError, choose_fit, common_size, read_batches
from vqtool.metrics.card import Card, side_of
from vqtool.metrics.dual_encoder import DualTexts
from vqtool.metrics.features._network import digest_of, own_name
from vqtool.metrics.features._transformers import load_model
from vqtool.metrics.features.clip import MEAN, STD
from vqtool.metrics.pictures import READ_BATCH, noting, pixel_digests
from vqtool.metrics.report import MAX_IMAGES, Report, choose
from vqtool.metrics.score import Score
from vqtool.products import Computation
from vqtool.progress import Progress, silent

BLOCK = 1024  # rows of cosines at once
MIXED_SIZE = (224, 224)


class TextEncoder(Protocol):
    """Pictures and texts -> vectors of length 1 in one space."""

    name: str  # stands in every score made with it
    digest: str

    def pictures(self, images: NDArray[np.uint8]) -> Tensor:
        """(N, 3, h, w) uint8 to (N, D) float64."""
        ...

    def texts(self, texts: Sequence[str]) -> Tensor:
        """(N, D) float64."""
        ...


class Clip:
    """A CLIP model of a local folder of transformers: pictures and texts -> vectors of length 1.

    Args:
        folder: with config.json, model.safetensors and a tokenizer.
        device: where it runs.
        computation: in which precision; None: float32.
        option: that names the folder, for messages.

    Raises:
        VqtoolError: it is to be compiled; transformers is not installed, or there is no such model.
    """

    def __init__(
        self,
        folder: Path,
        device: str | torch.device,
        computation: Computation | None = None,
        *,
        option: str = "text",
    ) -> None:
        self._computation = computation or Computation()
        if self._computation.compile:
            raise VqtoolError("`compile` is not for `text` with CLIP: leave it out")
        self._model = load_model("CLIPModel", folder, "a CLIP model", option=option).to(device).eval()
        self.digest = digest_of(self._model.state_dict(), "CLIP")
        self.name = own_name("CLIP", self.digest)
        try:
            from transformers import AutoTokenizer

            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # transformers raises nearly anything on folders that lack a part
            reason = " ".join(str(error).split())[:200]
            raise VqtoolError(f"`{option}` {folder}: no tokenizer that can be read: {reason}") from error
        self._device, self._side = torch.device(device), int(self._model.config.vision_config.image_size)

    @torch.no_grad()
    def pictures(self, images: NDArray[np.uint8]) -> Tensor:
        """(N, 3, h, w) uint8 to (N, D) float64."""
        pixels = torch.from_numpy(images).to(self._device).float() / 255
        size = (self._side, self._side)
        pixels = torch.nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(each, device=self._device).view(3, 1, 1) for each in (MEAN, STD))
        with self._computation.on(self._device):
            return _unit(self._model.get_image_features(pixel_values=(pixels - mean) / std))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """(N, D) float64."""
        tokens = self._tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt").to(self._device)
        with self._computation.on(self._device):
            return _unit(self._model.get_text_features(**tokens))


def load_encoder(
    given: str | Path, device: str | torch.device, computation: Computation | None = None, *, option: str = "text"
) -> TextEncoder:
    """What pictures and captions are compared by: a dual encoder of a file or "builtin", or the CLIP of a folder.

    Args:
        given: the file or folder.
        device: where it runs.
        computation: in which precision; None: float32.
        option: that names it, for messages.

    Raises:
        FormatError: it is something else, or damaged.
        VqtoolError: it is not there, or a package is not installed.
    """
    if str(given) == BUILTIN or Path(given).is_file():
        return DualTexts(given, device, computation)
    return Clip(Path(given), device, computation, option=option)


def _unit(features: Any) -> Tensor:
    found: Tensor = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(found.double(), dim=1).cpu()


def ranks(pictures: Tensor, captions: Tensor, own: Tensor) -> NDArray[np.int64]:
    """The rank, from 1, of each picture's own caption among all.

    Args:
        pictures: (N, D) of length 1.
        captions: (C, D) of length 1, different ones.
        own: (N,) the row of each picture's caption.

    Returns:
        (N,): ties count against a picture.
    """
    found = []
    for start in range(0, len(pictures), BLOCK):
        cosines, mine = pictures[start : start + BLOCK] @ captions.T, own[start : start + BLOCK]
        found.append((cosines >= cosines.gather(1, mine[:, None])).sum(1).numpy())
    return np.concatenate(found)


def score_texts(pictures: Tensor, captions: Tensor, own: Tensor) -> list[Score]:
    """The scores of pictures with their captions; arguments as for `ranks`."""
    cosines = (pictures * captions[own]).sum(1).numpy()
    others = (pictures * captions[own.roll(1)]).sum(1).mean()
    place = ranks(pictures, captions, own)
    num = len(cosines)
    error = float(cosines.std(ddof=1) / num**0.5) if num > 1 else None
    settings = {"num_captions": len(captions), "others": float(others)}
    scores = [Score("text-score", float(cosines.mean()), "higher", standard_error=error, settings=settings)]
    for k in (1, 5):
        share = float((place <= k).mean())
        error = (share * (1 - share) / num) ** 0.5
        scores.append(Score(f"R@{k}", share, "higher", standard_error=error, settings={"num_captions": len(captions)}))
    return [*scores, Score("median-rank", float(np.median(place)), "lower", settings={"num_captions": len(captions)})]


def measure_texts(
    images: Sequence[ImageItem],
    encoder: TextEncoder,
    *,
    size: tuple[int, int] | None = None,
    fit: str | None = None,
    max_images: int = MAX_IMAGES,
    seed: int = 0,
    on_error: OnError | None = None,
    progress: Progress = silent,
) -> Report:
    """How well images fit their captions; those without one are left out, of several the first counts.

    Args:
        images: with captions.
        encoder: of pictures and captions.
        size: (height, width) they are brought to first; by default `common_size`.
        fit: how; see `vqtool.images.choose_fit`.
        max_images: at most so many, chosen by seed.
        seed: of that choice.
        on_error: see read_batches.
        progress: shows how far it is.

    Raises:
        VqtoolError: no image has a caption, or none can be read.
    """
    told = [item for item in images if item.captions]
    if not told:
        raise VqtoolError(f"none of the {count_text(len(images), 'image')} has a caption")
    size = size or common_size(told) or MIXED_SIZE
    chosen = [told[i] for i in choose(len(told), min(max_images, len(told)), seed)]
    fit = choose_fit(told, size, fit)
    parts, texts, digests, left_out = list[Tensor](), list[str](), list[bytes](), list[str]()
    with progress("look at pictures", len(chosen)) as advance:
        for batch in read_batches(chosen, size, READ_BATCH, fit=fit, on_error=noting(left_out, on_error)):
            parts.append(encoder.pictures(batch.images))
            texts += [item.captions[0] for item in batch.items]
            digests += pixel_digests(batch.images)
            advance(len(batch.images))
    if not texts:
        raise VqtoolError(f"none of the {count_text(len(chosen), 'image')} could be read")
    known = list(dict.fromkeys(texts))
    captions = torch.cat([encoder.texts(known[start : start + 64]) for start in range(0, len(known), 64)])
    rows = {text: row for row, text in enumerate(known)}
    scores = score_texts(torch.cat(parts), captions, torch.tensor([rows[text] for text in texts]))
    card = Card(
        measure="texts",
        features=encoder.name,
        features_digest=encoder.digest,
        resize="clean",
        size=size_text(size),
        generated=side_of(digests, num_given=len(images), unreadable=len(left_out), fit=fit),
        seed=seed,
    )
    about = {"kind": "texts", "num_images": len(texts), "num_captions": len(known), "size": size_text(size)}
    counted = f"{count_text(len(texts), 'image')} with {count_text(len(known), 'different caption')}"
    headline = f"{counted}; {about['size']} pixels; {encoder.name}"
    untold = len(images) - len(told)
    warnings = (
        [f"{count_text(untold, 'image')} without a caption {'was' if untold == 1 else 'were'} left out"]
        if untold
        else []
    )
    named = [replace(score, name=f"{score.name}-{encoder.name}") for score in scores]
    return Report(headline, named, about, warnings, card, unreadable={"images": left_out})
