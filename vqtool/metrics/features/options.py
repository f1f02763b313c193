"""Which features pictures are scored by."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqtool.options import Checked, option

if TYPE_CHECKING:
    from torch import device

    from vqtool.metrics.features import FeatureNetwork
    from vqtool.products import Computation


@dataclass(frozen=True, kw_only=True)
class FeatureOptions(Checked):
    """The network, its weights, and how pictures come to its size."""

    features: str = option(
        "efficientnet-lite0",
        "Whose; inception: FID's.",
        choices="metrics/features/__init__.py:NAMES",
        listed=False,
    )
    weights: Path | None = option(None, "File or folder of its weights, if it has none.", advanced=True)
    resize: str | None = option(
        None,
        "How pictures come to its size.",
        shown="its first",
        choices="metrics/features/resizing.py:RESIZES",
        listed=False,
        advanced=True,
    )
    runtime: str = option(
        "torch",
        "What runs networks on a CPU; auto: ONNX Runtime, if there.",
        choices="runtimes.py:RUNTIMES",
        advanced=True,
    )
    trust: bool = option(False, "Run weights that are a program: TorchScript.", advanced=True)

    def load(self, device: "str | device", computation: "Computation | None" = None) -> "FeatureNetwork":
        """The network; see `load_features`."""
        from vqtool.metrics import features

        how: dict[str, Any] = {"weights": self.weights, "resize": self.resize, "runtime": self.runtime}
        how |= {"trust": True} if self.trust else {}
        return features.load_features(self.features, device=device, computation=computation, **how)


@dataclass(frozen=True, kw_only=True)
class ComputationOptions(Checked):
    """In which precision networks compute that pictures or grids are scored by."""

    precision: str = option(
        "fp32", "Of networks; auto: bf16 on a GPU.", choices=("fp32", "tf32", "bf16", "auto"), advanced=True
    )
    compile: bool = option(False, "Compile networks, for GPUs.", advanced=True)

    def choose(self, device: "device") -> "Computation":
        """What they come to; see `Computation.choose`."""
        from vqtool.products import Computation

        return Computation.choose(self.precision, device, compile=self.compile)
