"""Token grids that stay on disk: those of many files as one array, of which rows are read where they are wanted.

Files are opened when a row of theirs is asked for, and only some at a time. Rows are read and unpacked in runs of
neighbours, of which the latest are kept: whoever asks for rows of RUNS runs at a time, in any order, reads each run
once. So does training (`vqtool.training._order`).
"""

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Generic, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import FormatError, VqtoolError
from vqtool.grids.batch import GridBatch, GridHeader
from vqtool.grids.hdf5 import GridFileReader
from vqtool.grids.listing import GridFile, Listing
from vqtool.hdf5 import open_hdf5

MAX_OPEN = 32  # files
RUNS = 64  # in memory at a time, from so many places of the data, and as many of before
KEPT_BYTES = 32 << 20  # of RUNS runs, unpacked

Run = TypeVar("Run")
Change = Callable[[NDArray[Any]], NDArray[Any]]


class StoredRows(ABC, Generic[Run]):
    """Something of each grid in files, of which rows are read in runs of neighbours.

    Attributes:
        run: how many neighbours are read together.
    """

    def __init__(self, files: Sequence[GridFile], header: GridHeader, rows: NDArray[np.int64] | None = None) -> None:
        """What there is.

        Args:
            files: ordinary ones.
            header: of all.
            rows: (N,) rising numbers of the grids that count; None for all.
        """
        self._files, self._header, self._rows = list(files), header, rows
        self._starts = np.cumsum([0, *(file.num_grids for file in self._files)])
        self._open: OrderedDict[int, tuple[ExitStack, GridFileReader]] = OrderedDict()
        self._runs: OrderedDict[int, Run] = OrderedDict()
        self.run = max(1, KEPT_BYTES // (math.prod(header.grid_size) * header.dtype.itemsize * RUNS))

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._rows is None else len(self._rows)

    @abstractmethod
    def _read(self, reader: GridFileReader, rows: NDArray[np.int64]) -> Any:
        """What is wanted of the rising rows of a file."""

    @abstractmethod
    def _join(self, parts: Sequence[Any]) -> Run:
        """What is kept of a run, from the parts that its files have of it."""

    def pieces(self, count: int) -> list[int]:
        """Numbers of runs from everywhere that have about so many rows."""
        last = (len(self) - 1) // self.run
        return [int(number) for number in np.unique(np.linspace(0, last, max(1, count // self.run)).astype(np.int64))]

    def read_run(self, number: int) -> Run:
        """What there is of the grids number * run to (number + 1) * run.

        Raises:
            FormatError: a file is damaged, or was replaced by one of other grids.
            VqtoolError: a file is gone.
        """
        if number in self._runs:
            self._runs.move_to_end(number)
            return self._runs[number]
        rows = np.arange(number * self.run, min((number + 1) * self.run, len(self)))
        rows = rows if self._rows is None else self._rows[rows]
        parts, start = [], 0
        while start < len(rows):
            file = int(np.searchsorted(self._starts, rows[start], side="right")) - 1
            stop = int(np.searchsorted(rows, self._starts[file + 1]))
            parts.append(self._read(self._reader(file), rows[start:stop] - self._starts[file]))
            start = stop
        self._runs[number] = run = self._join(parts)
        if len(self._runs) > 2 * RUNS:
            self._runs.popitem(last=False)
        return run

    def _chosen(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return indices if self._rows is None else self._rows[indices]

    def _reader(self, number: int) -> GridFileReader:
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number][1]
        path, num = self._files[number].path, self._files[number].num_grids
        if not path.is_file():
            raise VqtoolError(f"{path}: was there when the run began, and is gone")
        stack = ExitStack()
        reader = GridFileReader(stack.enter_context(open_hdf5(path, str(path))), str(path), header=self._header)
        if (reader.num_grids, reader.place.digest) != (num, self._files[number].digest):
            stack.close()
            what = f"has {reader.num_grids} grids, and had {num}" if reader.num_grids != num else "has other grids than"
            raise FormatError(f"{path}: {what} when the run began")
        self._open[number] = stack, reader
        if len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)[1][0].close()
        return reader


class StoredTokens(StoredRows[NDArray[Any]]):
    """The tokens of grids in files, of which rows can be taken.

    Attributes:
        shape: (N, H, W).
        dtype: of the tokens.
        digest: over those that the files carry.
    """

    def __init__(
        self,
        files: Sequence[GridFile],
        header: GridHeader,
        digest: str,
        *,
        rows: NDArray[np.int64] | None = None,
        change: Change | None = None,
    ) -> None:
        """What there is.

        Args:
            files: ordinary ones.
            header: of all.
            digest: of all.
            rows: (N,) rising numbers of the grids that count; None for all.
            change: what is done to tokens (n, H, W) as they are read.
        """
        super().__init__(files, header, rows)
        self._change = change
        grid = np.zeros((1, *header.grid_size), header.dtype)
        self.shape = (len(self), *(grid if change is None else change(grid)).shape[1:])
        self.dtype = header.dtype
        self.digest = digest

    def changed(self, change: Change) -> "StoredTokens":
        """The same grids, with what is done to tokens as they are read."""
        return StoredTokens(self._files, self._header, self.digest, rows=self._rows, change=change)

    def chosen(self, indices: NDArray[np.int64]) -> "StoredTokens":
        """Some of the grids, by rising numbers."""
        return StoredTokens(self._files, self._header, self.digest, rows=self._chosen(indices), change=self._change)

    def some(self, count: int) -> NDArray[Any]:
        """About so many grids, in pieces of neighbours from everywhere."""
        return np.concatenate([self.read_run(number) for number in self.pieces(count)])

    def take(self, indices: NDArray[np.int64]) -> NDArray[Any]:
        """Grids (n, H, W) by their numbers, in any order.

        Raises:
            FormatError: a file is damaged, or was replaced by one of other grids.
            VqtoolError: a file is gone.
        """
        found = np.empty((len(indices), *self.shape[1:]), self.dtype)
        runs = indices // self.run
        for number in np.unique(runs).tolist():
            own = np.flatnonzero(runs == number)
            found[own] = self.read_run(number)[indices[own] - number * self.run]
        return found

    def _read(self, reader: GridFileReader, rows: NDArray[np.int64]) -> NDArray[Any]:
        return reader.take(rows)

    def _join(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        run = np.concatenate(parts)
        return run if self._change is None else self._change(run)


class StoredTexts(StoredRows[list[str]], Sequence[str]):
    """A column of texts of grids in files, read where they are looked at."""

    def __init__(
        self,
        files: Sequence[GridFile],
        header: GridHeader,
        column: str,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        """What there is.

        Args:
            files: ordinary ones.
            header: of all.
            column: "label" or "caption"; "" where a file does not have it.
            rows: (N,) rising numbers of the grids that count; None for all.
        """
        super().__init__(files, header, rows)
        self._column = column

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.read_run(index // self.run)[index % self.run]

    def chosen(self, indices: NDArray[np.int64]) -> "StoredTexts":
        """Those of some of the grids, by rising numbers."""
        return StoredTexts(self._files, self._header, self._column, self._chosen(indices))

    def some(self, count: int) -> list[str]:
        """About so many texts, those of neighbours from everywhere."""
        return [text for number in self.pieces(count) for text in self.read_run(number)]

    def _read(self, reader: GridFileReader, rows: NDArray[np.int64]) -> list[str]:
        return reader.take_texts(self._column, rows)

    def _join(self, parts: Sequence[list[str]]) -> list[str]:
        return [text for part in parts for text in part]


def read_stored(listing: Listing) -> tuple[GridHeader, GridBatch]:
    """All grids of files, with their labels but without their ids; tokens and captions stay on disk.

    Files without grids are told, and passed over; those without labels or captions are told where others have some.

    Returns:
        The header; and the grids, whose tokens are `StoredTokens`, labels `Labels` and captions `StoredTexts`.

    Raises:
        VqtoolError: no file has any grids.
    """
    listing = listing.without_empty()
    listing.tell_without()
    header, files, labels = listing.header, listing.files, cast(Any, listing.labels)
    captioned = any("caption" in file.columns for file in files)
    captions: Any = StoredTexts(files, header, "caption") if captioned else None
    tokens: Any = StoredTokens(files, header, listing.digest)
    return header, GridBatch(tokens, [], labels, captions)
