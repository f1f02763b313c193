"""One score, what every metric of features asks of its input, and all of these metrics at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vqtool.metrics.features import Features
from vqtool.options import distribute
from vqtool.registry import find_module


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


def check_pair(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Two sets of features as arrays (N, D) and (M, D): see `check_features`.

    Raises:
        ValueError: they are not, or of different dimensions.
    """
    x, y = check_features(a), check_features(b)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features of {x.shape[1]} and {y.shape[1]} dimensions")
    return x, y


def find_metric(name: str) -> ModuleType:
    """The file of a metric of features.

    Raises:
        VqtoolError: an unknown name.
    """
    from vqtool.metrics import NAMES

    return find_module("vqtool.metrics", "metric", name, NAMES)


def needs(metric: ModuleType) -> str:
    """Which array of `Features` a metric measures: its NEEDS, "pooled" where it states none."""
    return str(getattr(metric, "NEEDS", "pooled"))


def measure_features(reference: Features, generated: Features, *, seed: int = 0, **options: Any) -> list[Score]:
    """Every metric of `metrics.NAMES`; each score is named after its network too, e.g. "FD-EfficientNetLite0".

    Args:
        reference: features of N real images.
        generated: features of M generated images by the same network; M = N unless there is a reason.
        seed: of the subsets that some metrics draw.
        options: of the metrics, by name; each goes to those that have it.

    Returns:
        The scores, in the order of `metrics.NAMES`, of the metrics whose arrays both sides have.

    Raises:
        MismatchError: features of different networks.
        TypeError: an option that no metric has.
        VqtoolError: a value that is not possible.
    """
    from vqtool.metrics import NAMES

    reference.check_same(generated)
    theirs, ours = reference.arrays(), generated.arrays()
    scores: list[Score] = []
    for name, own in zip(NAMES, distribute(options, *metric_options()), strict=True):
        metric = find_metric(name)
        kind = needs(metric)
        if kind in theirs and kind in ours:
            scores += metric.measure(theirs[kind], ours[kind], own, seed=seed)
    return [replace(score, name=f"{score.name}-{generated.name}") for score in scores]


def measure_statistics(
    reference: Mapping[str, Any],
    generated: Mapping[str, Any],
    network_name: str,
    features: Features | None = None,
    *,
    seed: int = 0,
    **options: Any,
) -> tuple[list[Score], list[str]]:
    """What can be computed where a side has means and covariances alone.

    Args:
        reference: kind of array in `Features` -> `frechet.Statistics` of it.
        generated: the same of generated images.
        network_name: of the features; stands in the name of each score.
        features: of the generated images, where there are any, for the metrics that need no reference.
        seed: of what some metrics draw.
        options: of the metrics, by name.

    Returns:
        The scores, and the names of the metrics that need the features of single images on both sides.
    """
    from vqtool.metrics import NAMES

    arrays = {} if features is None else features.arrays()
    scores: list[Score] = []
    left_out = []
    for name, own in zip(NAMES, distribute(options, *metric_options()), strict=True):
        metric = find_metric(name)
        kind = needs(metric)
        if hasattr(metric, "measure_statistics"):
            if kind in reference and kind in generated:
                scores += metric.measure_statistics(reference[kind], generated[kind])
        elif hasattr(metric, "measure_alone") and kind in arrays:
            scores += metric.measure_alone(arrays[kind], own, seed=seed)
        else:
            left_out.append(name)
    suffix = f"-{network_name}" if network_name else ""
    return [replace(score, name=f"{score.name}{suffix}") for score in scores], left_out


def metric_options() -> list[type[Any]]:
    """The dataclasses of options of all metrics of features."""
    from vqtool.metrics import NAMES

    return [find_metric(name).Options for name in NAMES]
