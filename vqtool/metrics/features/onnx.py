"""Any network in an .onnx file: pixels in, features out.

What it does: gives the graph's one input pictures (B, 3, S, S) float32 of 0..1, RGB, and takes its first output,
(B, D) or (B, D, h, w), whose mean over places counts. What else a network wants done to pixels stands in its graph.
When to use it: for a network that is not here. Write it with `torch.onnx.export`; B and S are the input's, or 4 and 224
where the graph takes any. Its scores bear the first digits of the file's digest.
Cost: the graph's. It runs on the CPU by ONNX Runtime, of the extra vqtool[onnx].
Source: the ONNX specification, onnx.ai. Files are refused that name others: weights stand in the graph.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqtool import runtimes
from vqtool.errors import FormatError, VqtoolError
from vqtool.extras import install_command
from vqtool.metrics.features import resizing
from vqtool.metrics.features._network import CPU_BATCH, TorchFeatures, own_name
from vqtool.products import Computation
from vqtool.trust import check_file

RESIZES = resizing.RESIZES
SIZE = 224  # px, where the graph takes any
MOST_BYTES = 1 << 31  # of a file: more than that no .onnx file holds


def load(weights: Path | None, resize: str, device: torch.device) -> "OnnxFeatures":
    """The network of a file.

    Raises:
        FormatError: the file is damaged, names other files, or takes no pictures.
        VqtoolError: none is given, or the packages are not installed.
    """
    if weights is None:
        raise VqtoolError("onnx needs `weights`: an .onnx file that takes pictures (B, 3, S, S) of 0..1")
    if missing := runtimes.missing_packages():
        raise VqtoolError(f"features of onnx need {' and '.join(missing)}: {install_command('onnx')}")
    if check_file(weights) >= MOST_BYTES:
        raise FormatError(f"{weights}: larger than an .onnx file can be")
    graph = weights.read_bytes()
    try:
        _check_alone(graph, str(weights))
        session = runtimes.open_session(graph)
    except FormatError:
        raise
    except Exception as error:  # ONNX Runtime's and protobuf's own are of no common kind
        reason = " ".join(str(error).split())[:200]
        raise FormatError(f"{weights}: not an .onnx file that can be run: {reason}") from error
    return OnnxFeatures(session, hashlib.sha256(graph + resize.encode()).hexdigest()[:16], resize, str(weights))


class OnnxFeatures(TorchFeatures):
    """A graph in ONNX Runtime: images (B, 3, h, w) uint8 RGB -> features (B, D).

    Args:
        session: of ONNX Runtime.
        digest: of the file and the policy.
        resize: the policy.
        where: the file, for messages.

    Raises:
        FormatError: it takes no pictures, or gives no features.
    """

    def __init__(self, session: Any, digest: str, resize: str, where: str) -> None:
        super().__init__("cpu", digest, resize)
        self.name = own_name(f"ONNX-{resize}", digest)
        self._session, inputs = session, session.get_inputs()
        shape = list(inputs[0].shape) if inputs else []
        sides = {side for side in shape[2:] if isinstance(side, int)}
        if len(inputs) != 1 or len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3) or len(sides) > 1:
            raise FormatError(f"{where}: one input (B, 3, S, S) is expected, not {[each.shape for each in inputs]}")
        self._input, self.size = inputs[0].name, sides.pop() if sides else SIZE
        self._batch = shape[0] if isinstance(shape[0], int) else CPU_BATCH
        try:
            found = self.run(torch.zeros(self._batch, 3, self.size, self.size, dtype=torch.uint8))["pooled"]
        except Exception as error:  # ONNX Runtime's own are of no common kind
            raise FormatError(f"{where}: cannot be run on pictures: {' '.join(str(error).split())[:200]}") from error
        if found.ndim != 2 or len(found) != self._batch or not found.is_floating_point():
            raise FormatError(f"{where}: features (B, D) are expected as its first output, not {tuple(found.shape)}")
        self.feature_dim = found.shape[1]

    def use_runtime(self, runtime: str) -> str:
        """ONNX Runtime it is, whatever is asked for."""
        return "onnx"

    def compute(self, computation: Computation) -> None:
        """In float32 it is.

        Raises:
            VqtoolError: something else is asked for.
        """
        if computation != Computation():
            raise VqtoolError(
                f"`precision` {computation}: an .onnx file is run on the CPU in float32: leave `precision` and "
                "`compile` out"
            )

    def run(self, images: Tensor) -> dict[str, Tensor]:
        """The arrays of `Features` of images (B, 3, h, w) uint8."""
        pixels = (resizing.resize_images(images, self.size, self.resize) / 255).numpy()
        parts = []
        for start in range(0, len(pixels), self._batch):
            part = pixels[start : start + self._batch]
            short = self._batch - len(part)
            padded = np.concatenate([part, np.zeros((short, *part.shape[1:]), part.dtype)])
            parts.append(np.asarray(self._session.run(None, {self._input: padded})[0])[: len(part)])
        found = torch.from_numpy(np.concatenate(parts))
        return {"pooled": found.mean((2, 3)) if found.ndim == 4 else found}


def _check_alone(graph: bytes, where: str) -> None:
    """Raise FormatError if some tensor of a graph stands in another file."""
    import onnx

    for tensor in _tensors(onnx.load_from_string(graph).graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise FormatError(f"{where}: {tensor.name} stands in another file: only graphs that hold all are run")


def _tensors(graph: Any) -> Iterator[Any]:
    """The tensors of a graph and of those in it."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            for below in (attribute.g, *attribute.graphs):
                if below.node or below.initializer:
                    yield from _tensors(below)
