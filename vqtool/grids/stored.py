"""Token grids that stay on disk: those of many files as one array, of which rows are read where they are wanted.

Files are opened when a row of theirs is asked for, and only some at a time. Rows are read and unpacked in runs of
neighbours, of which the latest are kept: whoever asks for rows of RUNS runs at a time, in any order, reads each run
once. So does training (`vqtool.training._order`).
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from sys import intern
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import FormatError, VqtoolError
from vqtool.grids.batch import GridBatch, GridHeader, join_texts, merge_histories
from vqtool.grids.hdf5 import GridFileReader
from vqtool.grids.reader import open_grids
from vqtool.hdf5 import open_hdf5

MAX_OPEN = 32  # files
RUNS = 64  # in memory at a time, from so many places of the data, and as many of before
KEPT_BYTES = 32 << 20  # of RUNS runs, unpacked

Change = Callable[[NDArray[Any]], NDArray[Any]]


class StoredTokens:
    """The tokens of grids in files, of which rows can be taken.

    Attributes:
        shape: (N, H, W).
        dtype: of the tokens.
        digest: over those that the files carry.
        run: how many neighbours are read together.
    """

    def __init__(
        self,
        files: Sequence[tuple[Path, int]],
        header: GridHeader,
        digest: str,
        *,
        rows: NDArray[np.int64] | None = None,
        change: Change | None = None,
    ) -> None:
        """What there is.

        Args:
            files: each with its number of grids.
            header: of all.
            digest: of all.
            rows: (N,) rising numbers of the grids that count; None for all.
            change: what is done to tokens (n, H, W) as they are read.
        """
        self._files, self._header, self._rows, self._change = list(files), header, rows, change
        self._starts = np.cumsum([0, *(num for _, num in self._files)])
        self._open: OrderedDict[int, tuple[ExitStack, GridFileReader]] = OrderedDict()
        self._runs: OrderedDict[int, NDArray[Any]] = OrderedDict()
        grid = np.zeros((1, *header.grid_size), header.dtype)
        num = int(self._starts[-1]) if rows is None else len(rows)
        self.shape = (num, *(grid if change is None else change(grid)).shape[1:])
        self.dtype = header.dtype
        self.digest = digest
        self.run = max(1, KEPT_BYTES // (grid.nbytes * RUNS))

    def __len__(self) -> int:
        return int(self.shape[0])

    def changed(self, change: Change) -> "StoredTokens":
        """The same grids, with what is done to tokens as they are read."""
        return StoredTokens(self._files, self._header, self.digest, rows=self._rows, change=change)

    def chosen(self, indices: NDArray[np.int64]) -> "StoredTokens":
        """Some of the grids, by rising numbers."""
        rows = indices if self._rows is None else self._rows[indices]
        return StoredTokens(self._files, self._header, self.digest, rows=rows, change=self._change)

    def some(self, count: int) -> NDArray[Any]:
        """About so many grids, in pieces of neighbours from everywhere."""
        pieces = np.unique(np.linspace(0, (len(self) - 1) // self.run, max(1, count // self.run)).astype(np.int64))
        return np.concatenate([self._run(number) for number in pieces.tolist()])

    def take(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Grids (n, H, W) by their numbers, in any order.

        Raises:
            FormatError: a file is damaged, or was replaced by one of another number of grids.
            VqtoolError: a file is gone.
        """
        found = np.empty((len(indices), *self.shape[1:]), self.dtype)
        runs = indices // self.run
        for number in np.unique(runs).tolist():
            own = np.flatnonzero(runs == number)
            found[own] = self._run(number)[indices[own] - number * self.run]
        return found

    def _run(self, number: int) -> NDArray[Any]:
        """The grids number * run to (number + 1) * run."""
        if number in self._runs:
            self._runs.move_to_end(number)
            return self._runs[number]
        rows = np.arange(number * self.run, min((number + 1) * self.run, len(self)))
        rows = rows if self._rows is None else self._rows[rows]
        parts, start = [], 0
        while start < len(rows):
            file = int(np.searchsorted(self._starts, rows[start], side="right")) - 1
            stop = int(np.searchsorted(rows, self._starts[file + 1]))
            parts.append(self._reader(file).take(rows[start:stop] - self._starts[file]))
            start = stop
        run = np.concatenate(parts)
        self._runs[number] = run = run if self._change is None else self._change(run)
        if len(self._runs) > 2 * RUNS:
            self._runs.popitem(last=False)
        return run

    def _reader(self, number: int) -> GridFileReader:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number][1]
        path, num = self._files[number]
        if not path.is_file():
            raise VqtoolError(f"{path}: was there when the run began, and is gone")
        stack = ExitStack()
        reader = GridFileReader(stack.enter_context(open_hdf5(path, str(path))), str(path), header=self._header)
        if reader.num_grids != num:
            stack.close()
            raise FormatError(f"{path}: has {reader.num_grids} grids, and had {num} when the run began")
        self._open[number] = stack, reader
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)[1][0].close()
        return reader


def measure_stored(paths: Sequence[Path]) -> int:
    """Bytes of the tokens of grid files by what their headers say; 0 if one is a pipe, or holds a stream.

    Raises:
        VqtoolError: what opening one raises, for masked cells, too.
    """
    total = 0
    for path in paths:
        if not path.is_file():
            return 0
        with open_grids(path) as reader:
            if reader.num_grids is None:
                return 0
            total += reader.num_grids * math.prod(reader.header.grid_size) * reader.header.dtype.itemsize
    return total


def read_stored(paths: Sequence[Path]) -> tuple[GridHeader, GridBatch]:
    """All grids of files, with their labels and captions but without their ids; the tokens stay on disk.

    Args:
        paths: of ordinary files.

    Returns:
        The header of the first file, with the history of all; and the grids, whose tokens are `StoredTokens`.

    Raises:
        MismatchError: they come from different tokenizers, or their grids differ in size.
        VqtoolError: one has no grids.
    """
    headers: list[GridHeader] = []
    files: list[tuple[Path, int]] = []
    columns: dict[str, list[list[str] | None]] = {"label": [], "caption": []}
    digest = hashlib.sha256()
    for path in paths:
        with open_grids(path) as reader:
            if not reader.num_grids or reader.digest is None:
                raise VqtoolError(f"{path}: no grids in it: there is nothing to learn from")
            headers.append(reader.header)
            headers[0].check_same(reader.header, str(paths[0]), str(path))
            files.append((path, reader.num_grids))
            digest.update(f"{reader.num_grids} {reader.digest}\n".encode())
            for name, column in columns.items():
                column.append(list(map(intern, reader.read_column(name))) if name in reader.columns else None)
    texts = {name: join_texts(parts, [num for _, num in files]) for name, parts in columns.items()}
    tokens: Any = StoredTokens(files, headers[0], digest.hexdigest()[:16])
    header = replace(headers[0], history=tuple(merge_histories(headers)))
    return header, GridBatch(tokens, [], texts["label"], texts["caption"])
