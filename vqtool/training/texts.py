"""Captions under a frozen text encoder: read once each, and kept in a file beside the grids that are in memory.

A run asks for the features of the same captions in every epoch, and a text encoder may be larger than the denoiser. The
file is a row of numpy's float16 features a caption; its name says which captions and which encoder it is of. Captions
that stay on disk are too many for that: a step reads its own, in one call.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vqtool import distributed
from vqtool.conditions.text_encoders import TextEncoder
from vqtool.errors import count_text
from vqtool.outputs import atomic_path, side_file
from vqtool.priors import Prior
from vqtool.progress import Notify, Progress
from vqtool.training.data import GridData

READ_TOGETHER = 64  # captions


class KeptTexts(TextEncoder):
    """A text encoder that has read some captions already."""

    has_read = True

    def __init__(self, encoder: TextEncoder, rows: Tensor, features: NDArray[np.float16]) -> None:
        """What it has read.

        Args:
            encoder: reads all others.
            rows: (M, L) int64 tokens of captions.
            features: (M, ...) of these.
        """
        nn.Module.__init__(self)
        self.config, self.captions = encoder.config, encoder.captions
        self.fingerprint, self.location, self.history = encoder.fingerprint, encoder.location, encoder.history
        self.encoder = encoder
        self._places = {tuple(row): place for place, row in enumerate(rows.tolist())}
        self._features = features

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        """Features of captions: see `TextEncoder.forward`; rounded to float16 where they are kept."""
        places = [self._places.get(tuple(row)) for row in ids.tolist()]
        known = [place for place in places if place is not None]
        if len(known) < len(places):
            return self.encoder(ids)  # type: ignore[no-any-return]
        return torch.from_numpy(self._features[known]).to(ids.device).float()


def keep_texts(
    prior: Prior, parts: Sequence[GridData | None], beside: str | Path, *, notify: Notify, progress: Progress
) -> Prior:
    """A prior whose text encoder has read the captions of all grids; the prior itself if it has none, or they are many.

    Args:
        prior: of the run.
        parts: the grids, with the tokens of their captions.
        beside: the file that the kept features stand beside.
        notify: is told of the file.
        progress: shows how many captions are read.

    Raises:
        VqtoolError: the file cannot be written.
    """
    encoder = prior.text_encoder
    tokens = [part.conditions for part in parts if part is not None]
    known = [each for each in tokens if isinstance(each, Tensor)]
    if encoder is None or len(known) < len(tokens):
        return prior
    rows = torch.unique(torch.cat([*known, prior.conditioner.null(1)]), dim=0)
    digest = hashlib.sha256(encoder.fingerprint.encode() + str(tuple(rows.shape)).encode() + rows.numpy().tobytes())
    path = side_file(beside, f".texts-{digest.hexdigest()[:16]}.npy")
    kept = _read(path, len(rows))
    if kept is None:
        if distributed.is_main_process():
            _write(path, encoder, rows, progress)
            notify(
                f"read {count_text(len(rows), 'caption')} once, by the text encoder {encoder.location}: kept in {path}"
            )
        distributed.wait_for_all()
        kept = _read(path, len(rows))
    return prior if kept is None else replace(prior, text_encoder=KeptTexts(encoder, rows, kept))


def _read(path: Path, num: int) -> NDArray[np.float16] | None:
    """The features in a file, left there until they are used; None if it is not there, or not of so many captions."""
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return found if found.dtype == np.float16 and found.ndim == 3 and len(found) == num else None


def _write(path: Path, encoder: TextEncoder, rows: Tensor, progress: Progress) -> None:
    device = distributed.choose_device("auto")
    encoder = encoder.to(device)
    first = encoder(rows[:1].to(device))
    with atomic_path(path, force=True) as temporary:
        shape = (len(rows), *first.shape[1:])
        with temporary.open("wb") as file, progress("captions", len(rows)) as advance:
            header = np.lib.format.header_data_from_array_1_0(np.empty(0, np.float16)) | {"shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for part in (rows[start : start + READ_TOGETHER] for start in range(0, len(rows), READ_TOGETHER)):
                file.write(encoder(part.to(device)).half().cpu().numpy().tobytes())
                advance(len(part))
