"""Maps between the codes of two tokenizers, in memory and in a file.

A map is a row of numbers: the new token of each old one.

A map file is an artifact of kind "code-map" with `forward` (K_old,) and `backward` (K_new,), whose parents are the
tokenizers "from" and "to". VQ-Diffusion's maps (taming_vqvae_2887.pt) are `forward` alone, in which all codes out of
use become 0; `backward` is then the first code that becomes each new one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqtool import artifacts
from vqtool.errors import FormatError
from vqtool.trust import parse_record

KIND = "code-map"
Row = NDArray[np.int64]


@dataclass(frozen=True)
class CodeMap:
    """Which token of the tokenizer "to" stands for each token of the tokenizer "from", and back."""

    forward: Row  # (K_from,) in [0, K_to)
    backward: Row  # (K_to,) in [0, K_from)
    source: str = ""  # fingerprint of the tokenizer "from"; "" is not known
    target: str = ""  # fingerprint of the tokenizer "to"
    source_location: str = ""
    target_location: str = ""
    name: str = "the map"  # of its file, for messages

    def inverse(self) -> "CodeMap":
        """The map back."""
        return replace(
            self,
            forward=self.backward,
            backward=self.forward,
            source=self.target,
            target=self.source,
            source_location=self.target_location,
            target_location=self.source_location,
        )


def from_vector(vector: Row, name: str) -> CodeMap:
    """A map as VQ-Diffusion publishes it.

    Args:
        vector: (K_full,) the reduced token of each full one.
        name: of the file, for messages.

    Raises:
        FormatError: some number between 0 and the highest is no code's.
    """
    if not len(vector) or vector.min() < 0 or vector.max() >= len(vector):
        raise FormatError(f"{name}: not a map of codes: its numbers must be 0 or more and fewer than its {len(vector)}")
    present, first = np.unique(vector, return_index=True)
    if len(present) != present[-1] + 1:
        missing = np.setdiff1d(np.arange(present[-1]), present)[0]
        raise FormatError(f"{name}: not a map of codes: no code becomes {missing}, though one becomes {present[-1]}")
    return CodeMap(vector.astype(np.int64), first.astype(np.int64), name=name)


def save_map(
    path: str | Path, code_map: CodeMap, *, history: Iterable[Mapping[str, Any]] = (), force: bool = False
) -> artifacts.Header:
    """Write a map to a file.

    Raises:
        VqtoolError: the file exists and `force` is off, or it cannot be written.
    """
    return artifacts.save(
        path,
        kind=KIND,
        config={"from_location": code_map.source_location, "to_location": code_map.target_location},
        tensors={"forward": torch.from_numpy(code_map.forward), "backward": torch.from_numpy(code_map.backward)},
        parents={"from": code_map.source, "to": code_map.target},
        history=list(history),
        force=force,
    )


@dataclass(frozen=True)
class _Places:
    """The config of a map."""

    from_location: str
    to_location: str


def load_map(path: str | Path) -> CodeMap:
    """Read a map that `save_map` wrote.

    Raises:
        FormatError: not a map, or damaged.
    """
    header, tensors = artifacts.load(path, KIND)
    try:
        forward, backward = tensors["forward"].numpy(), tensors["backward"].numpy()
        for name, row, size in (("forward", forward, len(backward)), ("backward", backward, len(forward))):
            if row.ndim != 1 or row.dtype != np.int64 or not (row.min() >= 0 and row.max() < size):
                raise FormatError(f"{path}: its row {name!r} is no map of {len(row)} codes to {size}")
        places = parse_record(_Places, header.config, f"{path}: its config")
        parents = header.parents["from"], header.parents["to"]
        return CodeMap(forward, backward, *parents, places.from_location, places.to_location, str(path))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: damaged: {error}") from error
