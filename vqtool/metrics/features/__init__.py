"""Images -> features, by a network of one file: what the metrics of features measure.

A network is a file `vqtool/metrics/features/NAME.py` with

    RESIZES                                                names of its resize policies, the usual one first
    load(weights, resize, device) -> FeatureNetwork        weights: path of a file or folder; None if it brings its own

and a name in NAMES. Where weights are a program, it says IS_PROGRAM, and `load` takes `trust`: whether to run it. Two
feature sets never have one name: the name of `Features` says the network, its resize policy where it has several, and
for weights that are not the published ones eight digits of their digest. Sets of different names, weights or policies
are not compared with each other.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vqtool.errors import MismatchError, VqtoolError
from vqtool.products import Computation, rounded
from vqtool.registry import check_known, find_module

NAMES = ("efficientnet-lite0", "inception", "dinov2", "clip", "onnx", "torchscript")
KINDS = ("pooled", "spatial", "probabilities")  # of arrays in a feature set


@dataclass(frozen=True, eq=False)
class Features:
    """What a network says of N pictures. `features[rows]` are those of some pictures, `len(features)` is N.

    Args:
        name: stands in every score made of them.
        pooled: (N, D) one vector a picture.
        digest: of the weights and of what is done to pictures before; "" if it is not known.
        resize: the policy by which pictures come to the network's size.
        spatial: (N, S) some activations with their places, for the spatial Fréchet distance; None if there are none.
        probabilities: (N, C) of classes, rows sum to 1, for the inception score; None if there are none.
        precision: in which they were computed: the text of a `products.Computation`.

    Raises:
        ValueError: the arrays are not (N, ...) of one N.
    """

    name: str
    pooled: NDArray[np.floating]
    digest: str = ""
    resize: str = ""
    spatial: NDArray[np.floating] | None = None
    probabilities: NDArray[np.floating] | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for kind, array in self.arrays().items():
            if array.ndim != 2 or len(array) != len(self.pooled):
                raise ValueError(f"{kind} of shape {array.shape}: expected ({len(self.pooled)}, any)")

    def arrays(self) -> dict[str, NDArray[np.floating]]:
        """Those of `pooled`, `spatial` and `probabilities` that there are."""
        return {kind: array for kind in KINDS if (array := getattr(self, kind)) is not None}

    def __len__(self) -> int:
        return len(self.pooled)

    def __getitem__(self, rows: slice | Sequence[int] | NDArray[Any]) -> "Features":
        return self.with_arrays({kind: array[rows] for kind, array in self.arrays().items()})

    def with_arrays(self, arrays: Mapping[str, NDArray[np.floating]]) -> "Features":
        """Features of the same network, computed alike, with other arrays, by name; `pooled` is one of them."""
        rest = (arrays.get("spatial"), arrays.get("probabilities"))
        return Features(self.name, arrays["pooled"], self.digest, self.resize, *rest, self.precision)

    def check_same(self, other: "Features") -> None:
        """Raise unless another set is of the same network, weights, resize policy and precision.

        Raises:
            MismatchError: it is not; says in what they differ.
        """
        for field in ("name", "digest", "resize", "precision"):
            ours, theirs = getattr(self, field), getattr(other, field)
            if ours != theirs:
                raise MismatchError(
                    f"features of {field} {ours!r} and {theirs!r}: only features of one network compare"
                )
        if self.pooled.shape[1] != other.pooled.shape[1]:
            raise MismatchError(
                f"{self.pooled.shape[1]} and {other.pooled.shape[1]} features an image, both called {self.name}"
            )


class FeatureNetwork(Protocol):
    """What turns images into features."""

    name: str  # stands in every score made with it
    feature_dim: int  # D

    def __call__(self, images: NDArray[np.uint8]) -> Features:
        """Features of images (B, 3, h, w) uint8 RGB, under the network's name."""
        ...


def load_features(
    name: str = "efficientnet-lite0",
    *,
    weights: str | Path | None = None,
    resize: str | None = None,
    device: str | torch.device = "cpu",
    runtime: str = "torch",
    trust: bool = False,
    computation: Computation | None = None,
) -> FeatureNetwork:
    """A feature network by its name.

    Args:
        name: of `NAMES`.
        weights: the file or folder of its weights, where it brings none.
        resize: by which policy pictures come to its size; None: its usual one.
        device: where it runs.
        runtime: by what on a CPU, "torch", "onnx" or "auto": see `vqtool.runtimes`.
        trust: run weights that are a program.
        computation: in which precision, compiled or not; None: float32.

    Raises:
        FormatError: the weights are damaged or those of another network.
        VqtoolError: an unknown name or policy, weights are missing or not wanted, or a package is not installed.
    """
    module = find_module("vqtool.metrics.features", "feature network", name, NAMES)
    if resize is not None:
        check_known(f"resize policy of {name}", resize, module.RESIZES)
    is_program = getattr(module, "IS_PROGRAM", False)
    if trust and not is_program:
        raise VqtoolError(f"`trust` is for `features` whose weights are a program (torchscript), not for {name}")
    how = {"trust": trust} if is_program else {}
    path = None if weights is None else Path(weights)
    loaded = module.load(path, resize or module.RESIZES[0], torch.device(device), **how)
    loaded.use_runtime(runtime)
    loaded.compute(computation or Computation())
    network: FeatureNetwork = loaded
    return network


def extract(
    network: FeatureNetwork,
    batches: Iterable[NDArray[np.uint8]],
    *,
    advance: Callable[[int], None] = lambda n: None,
) -> Features:
    """Features of all images; memory beside the features is that of one batch. A GPU computes in all bits of float32.

    Args:
        network: of `load_features`.
        batches: of images, (B, 3, h, w) uint8 each; sizes may differ from batch to batch.
        advance: called with B after each batch.

    Returns:
        The features, in the order of the batches.

    Raises:
        VqtoolError: the network gives values that are not finite.
    """
    parts = []
    for images in batches:
        with rounded(torch.device("cuda"), tf32=False):
            found = network(images)
        for kind, array in found.arrays().items():
            if not np.isfinite(array).all():
                raise VqtoolError(
                    f"{network.name}: its {kind} of some picture is nan or infinity: are its weights right?"
                )
        parts.append(found)
        advance(len(images))
    return concatenate(parts) if parts else Features(network.name, np.empty((0, network.feature_dim), np.float32))


def concatenate(parts: Sequence[Features]) -> Features:
    """Feature sets of one network in one, in order.

    Raises:
        MismatchError: they are of different networks.
    """
    for part in parts[1:]:
        parts[0].check_same(part)
    kinds = [kind for kind in KINDS if all(kind in part.arrays() for part in parts)]
    merged = {kind: np.concatenate([part.arrays()[kind] for part in parts]) for kind in kinds}
    return parts[0].with_arrays(merged)
