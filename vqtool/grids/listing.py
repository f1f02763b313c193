"""What grid files hold, as far as it can be said without their tokens and captions."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import VqtoolError, warn
from vqtool.grids.batch import GridHeader, merge_histories
from vqtool.grids.labels import Labels, LabelTable
from vqtool.grids.reader import open_grids


@dataclass(frozen=True)
class GridFile:
    """An ordinary grid file, as it was when it was looked at."""

    path: Path
    num_grids: int
    digest: str  # of its grids, as it says
    columns: tuple[str, ...]  # which of id, label and caption it has


@dataclass(frozen=True)
class Listing:
    """Grid files of one tokenizer and grid size, and what they say of their grids."""

    header: GridHeader  # of the first, with the history of all
    files: tuple[GridFile, ...]
    labels: Labels | None  # of all grids, "" in files that have none; None if no file has any

    @property
    def num_grids(self) -> int:
        """Of all files."""
        return sum(file.num_grids for file in self.files)

    @property
    def num_bytes(self) -> int:
        """Of the tokens."""
        return self.num_grids * math.prod(self.header.grid_size) * self.header.dtype.itemsize

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits over those that the files carry."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.num_grids} {file.digest}\n".encode())
        return digest.hexdigest()[:16]

    def without_empty(self) -> "Listing":
        """The same without files that have no grids, which are told.

        Raises:
            VqtoolError: no file has any.
        """
        tell_empty([file.path for file in self.files if not file.num_grids], len(self.files))
        return replace(self, files=tuple(file for file in self.files if file.num_grids))

    def tell_without(self) -> None:
        """Warn of files that have no labels or captions where others do."""
        paths = [file.path for file in self.files]
        for name in ("label", "caption"):
            tell_without(name, paths, [name in file.columns for file in self.files])


def survey(paths: Sequence[Path], *, masked: bool = False) -> Listing | None:
    """Look at grid files, each of which is opened once: their headers and labels are read.

    Args:
        paths: of files.
        masked: take grids with masked cells too.

    Returns:
        What they hold; None if one holds a stream.

    Raises:
        FormatError: one is not a file of token grids.
        MismatchError: they come from different tokenizers, or their grids differ in size.
        VqtoolError: one cannot be read.
    """
    headers: list[GridHeader] = []
    files: list[GridFile] = []
    table, numbers = LabelTable(), list[NDArray[np.int32]]()
    for path in paths:
        with open_grids(path, masked=masked) as reader:
            if reader.num_grids is None or reader.digest is None:
                return None
            headers.append(reader.header)
            headers[0].check_same(reader.header, str(paths[0]), str(path))
            files.append(GridFile(path, reader.num_grids, reader.digest, tuple(reader.columns)))
            numbers.append(reader.number_labels(table))
    labels = Labels(table.names, np.concatenate(numbers)) if any("label" in file.columns for file in files) else None
    return Listing(replace(headers[0], history=tuple(merge_histories(headers))), tuple(files), labels)


def tell_empty(empty: Sequence[str | Path], num_files: int) -> None:
    """Warn of files that have no grids, where others do.

    Raises:
        VqtoolError: no file has any.
    """
    if not empty:
        return
    others = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
    if len(empty) == num_files:
        raise VqtoolError(f"{empty[0]}{others}: no token grids in it")
    warn(f"{empty[0]}{others}: no token grids in it: passed over")


def tell_without(name: str, paths: Sequence[Path], known: Sequence[bool]) -> None:
    """Warn of files that have no labels or captions where others do.

    Args:
        name: "label" or "caption".
        paths: of the files.
        known: whether each of them has some.
    """
    without = [path for path, has in zip(paths, known, strict=True) if not has]
    if without and any(known):
        others = f" and {len(without) - 1} more" if len(without) > 1 else ""
        has = paths[list(known).index(True)]
        warn(f"{without[0]}{others}: no {name}s, but {has} has some: grids without {name}s are learnt as such")
