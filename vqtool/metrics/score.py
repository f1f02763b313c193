"""One score, and what every metric of features asks of its input."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Score:
    """A number with its name and how to read it."""

    name: str  # bare ("FD"); reports add the network ("FD-EfficientNetLite0")
    value: float
    better: Literal["lower", "higher", ""] = ""
    unit: str = ""
    standard_error: float | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # what the value depends on beside the data


def check_features(features: ArrayLike) -> NDArray[np.floating]:
    """The features as an array (N, D), N at least 2 and all finite.

    Raises:
        ValueError: they are not.
    """
    x = np.asarray(features)
    if x.ndim != 2 or len(x) < 2 or x.shape[1] < 1:
        raise ValueError(f"features of shape {x.shape}: expected (N, D) with N >= 2")
    if not np.issubdtype(x.dtype, np.floating):
        x = x.astype(np.float64)
    if not np.isfinite(x).all():
        raise ValueError("features hold nan or infinity")
    return x
