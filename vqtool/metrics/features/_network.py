"""What feature networks in PyTorch share: batches, devices, digests and the names that follow from them."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vqtool.errors import FormatError
from vqtool.interop.pickles import ScriptError, read_pickle, read_script
from vqtool.metrics.features import Features
from vqtool.products import Computation, compiled
from vqtool.runtimes import run_by_onnx, try_to_run
from vqtool.trust import check_file

CPU_BATCH = 4  # images through a network at once on a CPU, whatever the batches that come in: they stay in its cache
DIGITS = 8  # of a digest that stand in a name


class TorchFeatures(ABC):
    """Base of networks in PyTorch: images (B, 3, h, w) uint8 RGB -> `Features`, in batches that suit the device.

    Args:
        device: where it runs.
        digest: of weights and preprocessing.
        resize: the policy by which pictures come to its size.
    """

    name: str
    feature_dim: int
    size: int  # px, of the square pictures that `network` takes
    network: nn.Module  # x (B, 3, size, size) -> what `run` makes features of: what a runtime runs

    def __init__(self, device: str | torch.device, digest: str, resize: str) -> None:
        self.device, self.digest, self.resize = torch.device(device), digest, resize
        self.computation = Computation()

    @abstractmethod
    def run(self, images: Tensor) -> dict[str, Tensor]:
        """The arrays of `Features`, by name, of images (B, 3, h, w) uint8 on the device."""

    def use_runtime(self, runtime: str) -> str:
        """Let the network be run as asked, and say by what, "torch" or "onnx".

        Raises:
            VqtoolError: as `runtimes.choose`; or it cannot be exported, and `runtime` is onnx.
        """

        def by_onnx() -> nn.Module:
            example = torch.linspace(-1, 1, 3 * self.size**2).view(1, 3, self.size, self.size)
            about = f"{self.name} {self.digest}"
            return run_by_onnx(self.network, {"x": ("batch",)}, about, name=self.name, example=example)

        self.network, used = try_to_run(runtime, self.device, self.network, by_onnx)
        return used

    def compute(self, computation: Computation) -> None:
        """Let the network compute in that precision, compiled or not.

        Raises:
            VqtoolError: it cannot.
        """
        self.computation = computation
        if computation.compile:
            self.network = compiled(self.network)

    def ask(self, x: Tensor, **more: bool) -> Any:
        """What the network gives, a tensor or a tuple of them, in float32."""
        with self.computation.on(self.device):
            found = self.network(x, **more)
        return tuple(each.float() for each in found) if isinstance(found, tuple) else found.float()

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> Features:
        """Features of images (B, 3, h, w) uint8 RGB."""
        batch = len(images) if self.device.type != "cpu" else CPU_BATCH
        starts = range(0, len(images), max(1, batch))
        parts = [self.run(torch.from_numpy(images[start : start + batch]).to(self.device)) for start in starts]
        empty = np.empty((0, self.feature_dim), np.float32)
        found = Features(self.name, empty, self.digest, self.resize, precision=str(self.computation))
        if not parts:
            return found
        arrays = {kind: torch.cat([part[kind] for part in parts]).float().cpu().numpy() for kind in parts[0]}
        return found.with_arrays(arrays)


def digest_of(tensors: Mapping[str, Tensor], *about: str) -> str:
    """Sixteen digits of the SHA-256 of tensors, by name, and of words on what is done to pictures."""
    found = hashlib.sha256("\n".join(about).encode())
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous()
        found.update(f"\n{name} {array.dtype} {tuple(array.shape)}\n".encode())
        found.update(array.view(-1).view(torch.uint8).numpy().tobytes() if array.numel() else b"")
    return found.hexdigest()[:16]


def own_name(network: str, digest: str) -> str:
    """The name of features whose weights are a user's own: with the first digits of the digest."""
    return f"{network}@{digest[:DIGITS]}"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights, by name: .safetensors, a state dict of torch.save, or a TorchScript archive.

    Of an archive the tensors among its modules' attributes are taken; its code is neither run nor read.

    Raises:
        FormatError: it is none of them, or damaged.
        VqtoolError: it cannot be read.
    """
    check_file(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{path}: not a safetensors file, or damaged: {error}") from error
    try:
        found = read_pickle(path)
    except ScriptError:
        return read_script(path)
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping):
        raise FormatError(f"{path}: no tensors by name are in it")
    return {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
