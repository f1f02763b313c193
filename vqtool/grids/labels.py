"""Labels of many grids, of which few are different: names, and a number a grid."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray


class Labels(Sequence[str]):
    """A label a grid.

    Attributes:
        names: labels, each once; "" where a grid has none.
        numbers: (N,) which of these each grid has.
    """

    def __init__(self, names: Sequence[str], numbers: NDArray[np.integer]) -> None:
        self.names, self.numbers = list(names), numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> "Labels": ...

    def __getitem__(self, index: int | slice) -> "str | Labels":
        if isinstance(index, slice):
            return Labels(self.names, self.numbers[index])
        name: str = self.names[self.numbers[index]]
        return name

    @property
    def counts(self) -> dict[str, int]:
        """How many grids have each label."""
        counts = np.bincount(self.numbers, minlength=len(self.names)).tolist()
        return {name: count for name, count in zip(self.names, counts, strict=True) if count}

    @classmethod
    def of(cls, labels: Sequence[str]) -> "Labels":
        """Labels that are in memory, one by one."""
        if isinstance(labels, Labels):
            return labels
        table = LabelTable()
        numbers = table.number(label.encode() for label in labels)
        return cls(table.names, numbers)


class LabelTable(dict[bytes, int]):
    """Numbers of labels in UTF-8, in the order in which they are met.

    Attributes:
        names: the labels, by number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __missing__(self, label: bytes) -> int:
        self.names.append(label.decode())
        self[label] = number = len(self)
        return number

    def number(self, labels: Iterable[bytes]) -> NDArray[np.int32]:
        """The numbers (n,) of labels.

        Raises:
            UnicodeDecodeError: one is no UTF-8.
        """
        return np.fromiter(map(self.__getitem__, labels), np.int32)


def count_labels(labels: Sequence[str] | None) -> Mapping[str, int]:
    """How many grids have each label; "" for those that have none."""
    return labels.counts if isinstance(labels, Labels) else Counter(labels or ())
