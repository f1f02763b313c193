"""Tokens of one codebook as tokens of another: by the nearest code, or by a map that is kept in a file.

A map is a row of numbers: the new token of each old one. Where the new codes are some of the old ones, and only codes
in use were kept, images stay what they were to the last bit; otherwise each code becomes the nearest of the new ones.

A map file is an artifact of kind "code-map" with `forward` (K_old,) and `backward` (K_new,), whose parents are the
tokenizers "from" and "to". VQ-Diffusion's maps (taming_vqvae_2887.pt) are `forward` alone, in which all codes out of
use become 0; `backward` is then the first code that becomes each new one.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vqtool import artifacts
from vqtool.codebooks.rebuilt import same_latents
from vqtool.errors import FormatError, MismatchError, VqtoolError
from vqtool.grids import GridBatch, GridHeader
from vqtool.tokenizers import Tokenizer
from vqtool.tokenizers.quantizers import nearest

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

    def inverse(self) -> "CodeMap":
        """The map back."""
        return CodeMap(
            self.backward, self.forward, self.target, self.source, self.target_location, self.source_location
        )


def nearest_codes(old: Tokenizer, new: Tokenizer, *, unrelated: bool = False) -> Row:
    """The nearest new code of each old one.

    Args:
        old: K codes.
        new: K' codes in the same space.
        unrelated: take encoders that differ.

    Returns:
        (K,) tokens in [0, K').

    Raises:
        MismatchError: the encoders differ, so that distances between their codes mean nothing.
    """
    if old.codebook.shape[1] != new.codebook.shape[1] or old.factor != new.factor:
        raise MismatchError(
            f"{new.location} has codes of {new.codebook.shape[1]} numbers and factor {new.factor}, {old.location} "
            f"codes of {old.codebook.shape[1]} and factor {old.factor}: encode the images again with "
            f"`vqtool encode -t {new.location}`"
        )
    if not unrelated and not same_latents(old, new):
        raise MismatchError(
            f"{new.location} ({new.fingerprint}) is not {old.location} ({old.fingerprint}) with other codes: their "
            "encoders differ, so that distances between their codes mean nothing; encode the images again with "
            f"`vqtool encode -t {new.location}`, or insist with --unrelated"
        )
    return nearest(old.codebook, new.codebook).cpu().numpy()


def kept_codes(counts: Row, min_uses: int) -> Row:
    """The codes (K',) that a token histogram (K,) has at least `min_uses` times.

    Raises:
        VqtoolError: all of them, or fewer than two.
    """
    kept = np.flatnonzero(counts >= min_uses)
    if len(kept) == len(counts):
        raise VqtoolError(f"all {len(counts)} codes occur at least {min_uses} times: there is nothing to prune")
    if len(kept) < 2:
        raise VqtoolError(
            f"{len(kept)} of {len(counts)} codes occur at least {min_uses} times, but a codebook needs two: "
            "lower --min-uses or give more grids"
        )
    return kept


def pruning_map(old: Tokenizer, kept: Row) -> CodeMap:
    """From all codes of a tokenizer to those that are kept: each to itself, the others to the nearest.

    Args:
        old: K codes.
        kept: (K',) tokens.
    """
    forward = nearest(old.codebook, old.codebook[torch.from_numpy(kept).to(old.device)]).cpu().numpy()
    forward[kept] = np.arange(len(kept))  # also where two codes are equal
    return CodeMap(forward, kept, source=old.fingerprint, source_location=old.location)


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
    return CodeMap(vector.astype(np.int64), first.astype(np.int64))


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
        places = header.config["from_location"], header.config["to_location"]
        return CodeMap(forward, backward, header.parents["from"], header.parents["to"], *places)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path}: damaged: {error}") from error


def check_fits(code_map: CodeMap, header: GridHeader, name: str, map_name: str) -> None:
    """Raise unless a map is of the tokens that grids hold.

    Raises:
        MismatchError: another codebook size or tokenizer.
    """
    if code_map.source and code_map.source != header.tokenizer_fingerprint:
        back = " (--inverse goes the other way)" if code_map.target == header.tokenizer_fingerprint else ""
        raise MismatchError(
            f"{map_name} maps tokens of tokenizer {code_map.source}, but {name} has tokens of "
            f"{header.tokenizer_fingerprint}{back}"
        )
    if len(code_map.forward) != header.codebook_size:
        raise MismatchError(
            f"{map_name} maps {len(code_map.forward)} codes, but {name} has tokens of a codebook of "
            f"{header.codebook_size}"
        )


def converted_header(
    header: GridHeader, *, codebook_size: int, fingerprint: str, location: str, record: dict[str, Any]
) -> GridHeader:
    """The header of the same grids in tokens of another tokenizer."""
    return replace(
        header,
        codebook_size=codebook_size,
        tokenizer_fingerprint=fingerprint,
        tokenizer_location=location,
        history=(*header.history, record),
    )


def convert(batches: Iterable[GridBatch], forward: Row) -> Iterator[GridBatch]:
    """Grids with each token replaced by its new one (K_old,)."""
    for batch in batches:
        yield replace(batch, tokens=forward[batch.tokens])
