"""What is learnt from, as arrays: token grids with their conditions, and digests of images."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqtool import rng
from vqtool.conditions import Conditioner
from vqtool.distributed import to_device
from vqtool.errors import warn
from vqtool.grids import GridBatch, GridHeader, join_batches, open_grids
from vqtool.grids.batch import merge_histories
from vqtool.grids.found import find_grids, find_index, list_grids
from vqtool.grids.labels import Labels, count_labels
from vqtool.grids.listing import tell_empty, tell_without
from vqtool.grids.stored import StoredTexts, StoredTokens, read_stored
from vqtool.grids.writer import CHUNK_GRIDS
from vqtool.priors import GridSpec
from vqtool.training._captions import StoredConditions
from vqtool.training._order import Indices, Order, step_items

COUNTED = 1 << 16  # grids
IN_MEMORY = 128 << 20  # bytes of tokens
HELD_OUT_SHARE = 0.03
MAX_HELD_OUT = 128
MIN_GRIDS_TO_HOLD_OUT = 200
FEW = 2000  # grids: from fewer a new prior learns little but these by heart


def digest(array: NDArray[np.uint8]) -> str:
    """16 hexadecimal digits over the shape and content of an array."""
    result = hashlib.sha256(str(array.shape).encode())
    for start in range(0, len(array), 4096):
        result.update(np.ascontiguousarray(array[start : start + 4096]).data)
    return result.hexdigest()[:16]


@dataclass(frozen=True)
class GridData:
    """The grids to learn from, with their conditions."""

    tokens: NDArray[np.integer[Any]] | StoredTokens  # (N, H, W); stored ones are read where a step looks at them
    conditions: Tensor | StoredConditions  # (N, ...) int64; (M, ...) with `starts`; or captions that stay on disk
    grid_spec: GridSpec
    starts: NDArray[np.int64] | None = None  # (N + 1,): grid i has the conditions starts[i] to starts[i + 1]

    def __len__(self) -> int:
        return len(self.tokens)

    def place(self, device: torch.device | str) -> "PlacedGrids":
        """The same on a device."""
        starts = None if self.starts is None else torch.from_numpy(self.starts).to(device)
        tokens, conditions = self.tokens, self.conditions
        return PlacedGrids(
            tokens if isinstance(tokens, StoredTokens) else _as_tensor(tokens).to(device),
            conditions if isinstance(conditions, StoredConditions) else conditions.to(device),
            starts,
            torch.device(device),
        )

    @property
    def order(self) -> Order:
        """In which steps see them."""
        return partial(step_items, run=self.tokens.run) if isinstance(self.tokens, StoredTokens) else step_items

    def tokens_to_count(self) -> NDArray[np.integer[Any]]:
        """Grids (n, H, W) that say how frequent tokens are: all, or COUNTED from everywhere if they are stored."""
        return self.tokens.some(COUNTED) if isinstance(self.tokens, StoredTokens) else self.tokens

    def thin(self, count: int) -> "GridData":
        """So many of them, or all, from everywhere."""
        return self._take(np.unique(np.linspace(0, len(self) - 1, count).round().astype(np.int64)))

    def split(self, seed: int) -> tuple["GridData", "GridData | None"]:
        """Those to train on, and a few held out where there are enough."""
        if len(self) < MIN_GRIDS_TO_HOLD_OUT:
            return self, None
        order = rng.generator(seed, 0, stream=rng.SELECTION).permutation(len(self))
        count = min(MAX_HELD_OUT, int(HELD_OUT_SHARE * len(self)))
        few = self._take(np.sort(order[:count]))
        if isinstance(few.tokens, StoredTokens):
            few = replace(few, tokens=few.tokens.take(np.arange(count)))
        if isinstance(few.conditions, StoredConditions):
            conditions, starts = few.conditions.all_of()
            few = replace(few, conditions=conditions, starts=starts)
        return self._take(np.sort(order[count:])), few

    def _take(self, indices: Indices) -> "GridData":
        chosen, starts = indices, None
        if self.starts is not None:
            numbers = np.diff(self.starts)[indices]
            starts = np.concatenate([[0], numbers.cumsum()])
            # Row r of the new conditions is the (r - starts[i])-th of its grid i.
            chosen = np.repeat(self.starts[indices] - starts[:-1], numbers) + np.arange(starts[-1])
        if isinstance(self.conditions, StoredConditions):
            conditions: Tensor | StoredConditions = self.conditions.chosen(indices)
        else:
            conditions = self.conditions[torch.from_numpy(chosen)]
        tokens = self.tokens.chosen(indices) if isinstance(self.tokens, StoredTokens) else self.tokens[indices]
        return replace(self, tokens=tokens, conditions=conditions, starts=starts)

    def digest(self) -> str:
        """16 hexadecimal digits over grids and conditions."""
        shape = None if isinstance(self.conditions, StoredConditions) else self.conditions.shape
        result = hashlib.sha256(json.dumps([self.tokens.shape, shape]).encode())
        if isinstance(self.tokens, StoredTokens):
            result.update(self.tokens.digest.encode())
        else:
            result.update(np.ascontiguousarray(self.tokens, np.int64).data)
        if isinstance(self.conditions, StoredConditions):
            result.update(self.conditions.digest.encode())
        else:
            result.update(self.conditions.numpy().data)
        if self.starts is not None:
            result.update(self.starts.data)
        return result.hexdigest()[:16]


Known = tuple[NDArray[np.int64], NDArray[np.float64] | None]  # indices and draws


@dataclass(frozen=True)
class PlacedGrids:
    """Grids and conditions as tensors on the device that learns from them: a step takes its rows there."""

    tokens: Tensor | StoredTokens  # (N, H, W) integers; int16 holds the bits of uint16, with which torch can do little
    conditions: Tensor | StoredConditions  # (N, ...) int64; (M, ...) with `starts`
    starts: Tensor | None  # (N + 1,) int64
    device: torch.device

    @property
    def has_variants(self) -> bool:
        """Whether a grid may have several captions."""
        return self.starts is not None or isinstance(self.conditions, StoredConditions)

    def rows(self, indices: Tensor, draws: Tensor | None = None, known: Known | None = None) -> tuple[Tensor, Tensor]:
        """Grids (b, H, W) int64 and conditions (b, ...) of some of them.

        Args:
            indices: (b,) int64, which.
            draws: (b,) float64 in [0, 1), which of several captions each has; None: the first.
            known: both on the CPU, where rows that are on disk are found; None: a GPU is waited for.
        """
        return self.grids(indices, known), self.texts(indices, draws, known)

    def grids(self, indices: Tensor, known: Known | None = None) -> Tensor:
        """(b, H, W) int64: see ``rows``."""
        if isinstance(self.tokens, StoredTokens):
            own = indices.cpu().numpy() if known is None else known[0]
            found = to_device(_as_tensor(self.tokens.take(own)), self.device)
        else:
            found = self.tokens[indices]
        tokens = found.long()
        return tokens & 0xFFFF if found.dtype == torch.int16 else tokens

    def texts(self, indices: Tensor, draws: Tensor | None = None, known: Known | None = None) -> Tensor:
        """Conditions (b, ...): see ``rows``."""
        if isinstance(self.conditions, StoredConditions):
            own = known or (indices.cpu().numpy(), None if draws is None else draws.cpu().numpy())
            return to_device(self.conditions.take(*own), self.device)
        chosen = indices
        if self.starts is not None:
            chosen = self.starts[indices]
            if draws is not None:
                chosen = chosen + (draws * (self.starts[indices + 1] - chosen)).long()
        return self.conditions[chosen]


def _as_tensor(tokens: NDArray[Any]) -> Tensor:
    return torch.from_numpy(tokens.view(np.int16) if tokens.dtype == np.uint16 else tokens)


def upload(array: NDArray[np.int64], device: torch.device) -> Tensor:
    """An array on a device, which does not have to wait for it."""
    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def build_data(
    batch: GridBatch,
    conditioner: Conditioner,
    grid_spec: GridSpec,
    split: Callable[[Tensor], Tensor] | None = None,
) -> GridData:
    """The grids of a file with the conditions that their labels, or all of their captions, stand for.

    Captions that stay on disk are tokenised where a step looks at them.

    Args:
        batch: the grids.
        conditioner: of their labels or captions.
        grid_spec: of the grids.
        split: `Prior.split`, for a denoiser that sees tokens in parts.
    """
    conditions, starts = _encode_texts(batch, conditioner)
    tokens: Any = batch.tokens
    if split is not None:
        change = partial(_split, split)
        tokens = tokens.changed(change) if isinstance(tokens, StoredTokens) else change(tokens)
    return GridData(tokens, conditions, grid_spec, starts)


def _encode_texts(
    batch: GridBatch, conditioner: Conditioner
) -> tuple[Tensor | StoredConditions, NDArray[np.int64] | None]:
    """The conditions of grids, and where those of each begin if some have several captions."""
    captions: Any = batch.captions
    if conditioner.kind == "caption" and isinstance(captions, StoredTexts):
        return StoredConditions(captions, conditioner), None
    if conditioner.kind == "class" and batch.labels is not None:  # of millions, each class is looked up once
        labels = Labels.of(batch.labels)
        classes = conditioner.encode(conditioner.select(labels.names, None) or []).numpy()
        return torch.from_numpy(classes[labels.numbers]), None
    texts = conditioner.select_all(batch.labels, batch.captions)
    if texts is None:
        return conditioner.null(len(batch)), None
    starts = np.cumsum([0, *map(len, texts)]) if any(len(own) > 1 for own in texts) else None
    return conditioner.encode([text for own in texts for text in own]), starts


def sample_texts(batch: GridBatch) -> GridBatch:
    """The same grids with some captions from everywhere, in place of all, where those stay on disk."""
    captions: Any = batch.captions
    return replace(batch, captions=captions.some(COUNTED)) if isinstance(captions, StoredTexts) else batch


def warn_of_texts(conditioner: Conditioner, batch: GridBatch) -> None:
    """Warn where grids have no text, or one whose end is cut off."""
    captions = conditioner.select(None, batch.captions) or []
    labels = (batch.labels or []) if conditioner.kind == "class" else []
    missing, cut = captions.count(None) + count_labels(labels).get("", 0), len(conditioner.find_truncated(captions))
    if missing:
        num = len(captions) + len(labels)
        warn(f"{missing} of {num} grids have no {conditioner.kind}: they train the null condition")
    if cut:
        longest = getattr(conditioner, "max_length", 0)
        warn(f"{cut} captions are longer than {longest} tokens: their ends are left out")


def _split(split: Callable[[Tensor], Tensor], tokens: NDArray[Any]) -> NDArray[Any]:
    return split(torch.from_numpy(tokens.astype(np.int64))).numpy().astype(tokens.dtype)


def read_data(grids: str | Path | Sequence[str | Path]) -> tuple[GridHeader, GridBatch]:
    """All grids of files, folders, globs, indexes and pipes as one; past IN_MEMORY bytes the tokens stay on disk.

    Files that have no grids are told, and passed over.

    Raises:
        MismatchError: they come from different tokenizers, or differ in size.
        VqtoolError: a file is missing, has masked grids, or none has any.
    """
    if find_index(grids) is None:
        paths = find_grids(grids, once=True)
        are_files = all(path.is_file() for path in paths)
        if not are_files or sum(path.stat().st_size for path in paths) <= IN_MEMORY:
            header, batch, has_streams = _read_all(paths)
            if has_streams or batch.tokens.nbytes <= IN_MEMORY:
                return header, batch
    listing = list_grids(grids, once=True)
    if listing is None or listing.num_bytes <= IN_MEMORY:
        return _read_all(find_grids(grids))[:2]
    return read_stored(listing)


def _read_all(paths: Sequence[Path]) -> tuple[GridHeader, GridBatch, bool]:
    """All grids of files and streams in memory, and whether there are streams."""
    headers, parts, has_streams = list[GridHeader](), list[GridBatch](), False
    for path in paths:
        with open_grids(path) as reader:
            headers.append(reader.header)
            headers[0].check_same(reader.header, str(paths[0]), str(path))
            parts.append(join_batches(reader.header, list(reader.batches(CHUNK_GRIDS))))
            has_streams |= not reader.ordinary
    tell_empty([path for path, part in zip(paths, parts, strict=True) if not len(part)], len(paths))
    full = [path for path, part in zip(paths, parts, strict=True) if len(part)]
    for name in ("label", "caption"):
        tell_without(name, full, [part.texts[name] is not None for part in parts if len(part)])
    header = replace(headers[0], history=tuple(merge_histories(headers)))
    return header, join_batches(header, parts), has_streams
