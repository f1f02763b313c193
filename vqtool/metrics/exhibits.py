"""What a report page shows beside its table: pictures and curves, as data. `page` draws them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture with a line under it."""

    pixels: NDArray[np.uint8]  # (3, h, w); (3, 0, 0): it is not at hand
    text: str = ""


@dataclass(frozen=True, eq=False)
class Sheet:
    """Rows of pictures; the first of a row stands apart from those that it is compared with."""

    title: str
    note: str  # what is to be seen
    rows: Sequence[Sequence[Picture]]


@dataclass(frozen=True)
class Curve:
    """A line of numbers, with two standard errors where they are known; or bars."""

    title: str
    note: str
    x: Sequence[float]
    y: Sequence[float]
    errors: Sequence[float] = field(default_factory=list)
    x_name: str = ""
    y_name: str = ""
    bars: bool = False


Exhibit = Sheet | Curve
