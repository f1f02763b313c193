"""Any network in a TorchScript file, which is a program: it is run with `trust` alone.

What it does: calls the file's `forward` with pictures (B, 3, S, S) float32 of 0..1, RGB, where S is its attribute
`size` or else 224, and takes features (B, D) or (B, D, h, w), whose mean over places counts. A `forward` that takes
`return_features`, as the detectors of StyleGAN do, gets pictures of 0..255 in their own size instead, and resizes them.
When to use it: for a network that is there as TorchScript only, of people whose programs you would run. Inception is
read from StyleGAN's file without running it (inception.py); other networks are safer as .onnx (onnx.py). Its scores
bear the first digits of the file's digest.
Cost: the network's.
Source: torch.jit; the call with `return_features` is that of Karras et al. 2020 (arXiv:2006.06676), metric_utils.py.
"""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vqtool.errors import FormatError, VqtoolError
from vqtool.metrics.features import resizing
from vqtool.metrics.features._network import TorchFeatures, own_name
from vqtool.products import Computation
from vqtool.trust import check_file

OWN = "own"  # the network brings pictures to its size itself
RESIZES = (OWN, *resizing.RESIZES)
IS_PROGRAM = True
SIZE = 224  # px, where the network does not say its own


def load(weights: Path | None, resize: str, device: torch.device, *, trust: bool) -> "ScriptFeatures":
    """The network of a file.

    Raises:
        FormatError: the file is damaged, or takes no pictures.
        VqtoolError: none is given, or `trust` is off.
    """
    if weights is None:
        raise VqtoolError("torchscript needs `weights`: a file of torch.jit.save that takes pictures (B, 3, S, S)")
    check_file(weights)
    if not trust:
        raise VqtoolError(
            f"{weights}: a TorchScript file is a program, which can do more than compute features: `trust` runs it, if "
            "you would run its makers' programs"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(weights, map_location=device).eval()  # type: ignore[no-untyped-call]
    except Exception as error:  # PyTorch's own are of no common kind
        raise FormatError(f"{weights}: not a TorchScript file that can be loaded: {_reason(error)}") from error
    return ScriptFeatures(network, resize, device, hashlib.sha256(weights.read_bytes()).hexdigest(), str(weights))


class ScriptFeatures(TorchFeatures):
    """A TorchScript network: images (B, 3, h, w) uint8 RGB -> features (B, D).

    Args:
        network: of torch.jit.load.
        resize: the policy; "own" is "clean" where the network does not resize pictures itself.
        device: where it runs.
        digest: of its file.
        where: the file, for messages.

    Raises:
        FormatError: it takes no pictures, or gives no features.
        VqtoolError: a policy other than its own is asked for.
    """

    def __init__(self, network: Any, resize: str, device: torch.device, digest: str, where: str) -> None:
        self._resizes = "return_features" in {argument.name for argument in network.forward.schema.arguments}
        if self._resizes and resize != OWN:
            raise VqtoolError(f"`resize` {resize}: {where} brings pictures to its size itself: leave `resize` out")
        resize = "clean" if resize == OWN and not self._resizes else resize
        super().__init__(device, hashlib.sha256(f"{digest} {resize}".encode()).hexdigest()[:16], resize)
        self.name = own_name(f"TorchScript-{resize}", self.digest)
        self.network, size = network, getattr(network, "size", SIZE)
        self.size = size if isinstance(size, int) else SIZE
        blank = torch.zeros(2, 3, self.size, self.size, dtype=torch.uint8, device=device)
        try:
            with torch.inference_mode():
                found = self.run(blank)["pooled"]
        except Exception as error:  # as above
            raise FormatError(f"{where}: cannot be run on pictures: {_reason(error)}") from error
        if found.ndim != 2 or len(found) != len(blank) or not found.is_floating_point():
            raise FormatError(f"{where}: features (B, D) are expected of it, not {tuple(found.shape)} of {found.dtype}")
        self.feature_dim = found.shape[1]

    def use_runtime(self, runtime: str) -> str:
        """PyTorch it is.

        Raises:
            VqtoolError: ONNX Runtime is asked for.
        """
        if runtime == "onnx":
            raise VqtoolError("`runtime` onnx: a TorchScript file is run by PyTorch; `features` onnx takes .onnx files")
        return "torch"

    def compute(self, computation: Computation) -> None:
        """In that precision.

        Raises:
            VqtoolError: it is to be compiled.
        """
        if computation.compile:
            raise VqtoolError("`compile` is not for TorchScript files, which are compiled already: leave it out")
        super().compute(computation)

    def run(self, images: Tensor) -> dict[str, Tensor]:
        """The arrays of `Features` of images (B, 3, h, w) uint8."""
        if self._resizes:
            found = self.ask(images.float(), return_features=True)
        else:
            found = self.ask(resizing.resize_images(images, self.size, self.resize) / 255)
        return {"pooled": found.mean((2, 3)) if found.ndim == 4 else found}


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
