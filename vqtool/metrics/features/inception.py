"""The Inception-v3 of 2015-12-05, the network of FID, sFID and the inception score, with its weights from a file.

What it does: 2048 pooled features, 7 channels of 17x17 places for the spatial Fréchet distance, 1008 classes.
When to use it: to compare with published numbers. These depend on how pictures were resized: `legacy-pytorch` is
pytorch-fid's FID, `legacy-tf` that of torch-fidelity and the TTUR code, `adm` that of ADM's suite, `clean` clean-fid's.
Weights: the state dict `pt_inception-2015-12-05-6726825d.pth` of pytorch-fid and torch-fidelity, as .pth or
.safetensors, or the tensors of the TorchScript archive `inception-2015-12-05.pt` of StyleGAN and clean-fid, whose code
is neither run nor read. The published file gives the name "Inception-POLICY", all others one with their digest.
Equation: pixels x of 0..255 enter as (x - 128) / 128, with `legacy-pytorch` as x / 127.5 - 1; average pools leave
padding out; the last block pools by maxima; probabilities are the softmax of logits without bias, as in torch-fidelity
and ADM.
Cost: 5.7 GMAC a picture at 299 px.
Source: Szegedy et al. 2015 (arXiv:1512.00567), Heusel et al. 2017 (arXiv:1706.08500), Nash et al. 2021
(arXiv:2103.03841, sFID), Salimans et al. 2016 (arXiv:1606.03498). Golden: torch-fidelity 0.4.0 on random weights.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vqtool.errors import VqtoolError
from vqtool.metrics.features import resizing
from vqtool.metrics.features._network import TorchFeatures, digest_of, own_name, read_tensors
from vqtool.trust import bare, check_weights

RESIZES = resizing.RESIZES
SIZE = 299  # px, square
NUM_CLASSES = 1008
SPATIAL_CHANNELS = 7
PUBLISHED = "6726825d"  # the first digits of the SHA-256 of the published file, which stand in its name
EPSILON = 1e-3

# A convolution is (inputs, outputs, kernel, stride, whether borders are padded). A branch is a row of convolutions;
# the last step of some is a pair, whose outputs are concatenated.
Kernel = int | tuple[int, int]
Unit = tuple[int, int, Kernel, int, bool]


def load(weights: Path | None, resize: str, device: torch.device) -> "Inception":
    """The network with weights of a file.

    Raises:
        FormatError: the file is damaged, or holds something else.
        VqtoolError: no weights are given.
    """
    if weights is None:
        raise VqtoolError(
            "inception needs `weights`: the file pt_inception-2015-12-05-6726825d.pth of pytorch-fid, "
            "or inception-2015-12-05.pt of StyleGAN"
        )
    tensors = read_tensors(weights)
    if any(name.startswith("layers.mixed") for name in tensors):
        tensors = dict(_rename(tensors))
    tensors = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    network = bare(Network)
    check_weights(network.state_dict(), tensors, str(weights))
    network.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    published = hashlib.sha256(weights.read_bytes()).hexdigest().startswith(PUBLISHED)
    return Inception(network, resize, device, published=published)


class Inception(TorchFeatures):
    """FID's Inception-v3: images (B, 3, h, w) uint8 RGB -> features (B, 2048), spatial (B, 2023), 1008 probabilities.

    Args:
        network: with its weights.
        resize: the policy.
        device: where it runs.
        published: whether the weights are those that were published, whose name needs no digest.
    """

    feature_dim = 2048
    size = SIZE

    def __init__(
        self, network: "Network", resize: str, device: str | torch.device = "cpu", *, published: bool = False
    ) -> None:
        digest = digest_of(network.state_dict(), "Inception", resize)
        super().__init__(device, digest, resize)
        self.name = f"Inception-{resize}" if published else own_name(f"Inception-{resize}", digest)
        self.network = network.eval().requires_grad_(False).fold().to(self.device)
        self._classes = network.fc.weight

    def run(self, images: Tensor) -> dict[str, Tensor]:
        """The arrays of `Features` of images (B, 3, h, w) uint8."""
        x = resizing.resize_images(images, SIZE, self.resize)
        x = x / 127.5 - 1 if self.resize == "legacy-pytorch" else (x - 128) / 128
        pooled, spatial = self.ask(x.contiguous(memory_format=torch.channels_last))
        logits = F.linear(pooled, self._classes)
        return {"pooled": pooled, "spatial": spatial, "probabilities": logits.softmax(dim=1)}


class Norm(nn.Module):
    """The numbers of a batch norm that is not trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.zeros(width))


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU. `fold` has to come before `forward`."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel, stride: int, padded: bool) -> None:
        super().__init__()
        size = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (size[0] // 2, size[1] // 2) if padded else 0
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)
        self.bn = Norm(outputs)

    def fold(self) -> None:
        """Put the batch norm into the convolution: the same function to about 1e-5, and faster."""
        norm = {name: value.double() for name, value in self.bn.state_dict().items()}
        scale = norm["weight"] / (norm["running_var"] + EPSILON).sqrt()
        weight = self.conv.weight.double() * scale[:, None, None, None]
        self.conv.weight = nn.Parameter(weight.float(), requires_grad=False)
        self.conv.bias = nn.Parameter((norm["bias"] - norm["running_mean"] * scale).float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h', w')."""
        return F.relu(self.conv(x), inplace=True)


class Block(nn.Module):
    """Branches side by side, their outputs concatenated; the last one pools first.

    Args:
        branches: name -> the convolutions of its steps; two of a step, named with a and b, share their input.
        pool: "average", "maximum", or "half" for maxima with stride 2.
        pooled: outputs of the convolution after the pool; 0 for none.
    """

    def __init__(self, branches: Mapping[str, list[list[Unit]]], pool: str, pooled: int = 0) -> None:
        super().__init__()
        self._pool, self._branches = pool, []
        inputs = 0
        for branch, steps in branches.items():
            names: list[list[str]] = []
            for number, units in enumerate(steps, 1):
                stem = branch if len(steps) == 1 else f"{branch}_{number}"
                names.append([stem] if len(units) == 1 else [f"{stem}{letter}" for letter in "ab"])
                for name, unit in zip(names[-1], units, strict=True):
                    self.add_module(name, Convolution(*unit))
            self._branches.append(names)
            inputs = steps[0][0][0]
        self.branch_pool = Convolution(inputs, pooled, 1, 1, False) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, outputs, h', w')."""
        found = []
        for steps in self._branches:
            y = x
            for names in steps:
                y = torch.cat([self.get_submodule(name)(y) for name in names], dim=1)
            found.append(y)
        if self._pool == "average":
            y = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        else:
            y = F.max_pool2d(x, 3, 2) if self._pool == "half" else F.max_pool2d(x, 3, 1, 1)
        found.append(y if self.branch_pool is None else self.branch_pool(y))
        return torch.cat(found, dim=1)


def _row(inputs: int, *steps: tuple[int, Kernel], half: bool = False) -> list[list[Unit]]:
    """A branch of one convolution a step; `half`: the last has stride 2 and no padding."""
    units: list[list[Unit]] = []
    for number, (outputs, kernel) in enumerate(steps, 1):
        last = half and number == len(steps)
        units.append([(inputs, outputs, kernel, 2 if last else 1, not last)])
        inputs = outputs
    return units


def _block_a(inputs: int, pooled: int) -> Block:
    branches = {
        "branch1x1": _row(inputs, (64, 1)),
        "branch5x5": _row(inputs, (48, 1), (64, 5)),
        "branch3x3dbl": _row(inputs, (64, 1), (96, 3), (96, 3)),
    }
    return Block(branches, "average", pooled)


def _block_b() -> Block:
    branches = {
        "branch3x3": _row(288, (384, 3), half=True),
        "branch3x3dbl": _row(288, (64, 1), (96, 3), (96, 3), half=True),
    }
    return Block(branches, "half")


def _block_c(width: int) -> Block:
    wide, tall = (1, 7), (7, 1)
    rest: list[tuple[int, Kernel]] = [(width, tall), (width, wide), (width, tall), (192, wide)]
    branches = {
        "branch1x1": _row(768, (192, 1)),
        "branch7x7": _row(768, (width, 1), (width, wide), (192, tall)),
        "branch7x7dbl": _row(768, (width, 1), *rest),
    }
    return Block(branches, "average", 192)


def _block_d() -> Block:
    branches = {
        "branch3x3": _row(768, (192, 1), (320, 3), half=True),
        "branch7x7x3": _row(768, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3), half=True),
    }
    return Block(branches, "half")


def _block_e(inputs: int, pool: str) -> Block:
    pair: list[Unit] = [(384, 384, (1, 3), 1, True), (384, 384, (3, 1), 1, True)]
    branches = {
        "branch1x1": _row(inputs, (320, 1)),
        "branch3x3": [*_row(inputs, (384, 1)), pair],
        "branch3x3dbl": [*_row(inputs, (448, 1), (384, 3)), pair],
    }
    return Block(branches, pool, 192)


class Network(nn.Module):
    """The layers under the names of the published state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, 2, False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3, 1, False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, 1, True)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1, 1, False)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3, 1, False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_a(192, 32), _block_a(256, 64), _block_a(288, 64)
        self.Mixed_6a = _block_b()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(_block_c, (128, 160, 160, 192))
        self.Mixed_7a = _block_d()
        self.Mixed_7b, self.Mixed_7c = _block_e(1280, "average"), _block_e(2048, "maximum")
        self.fc = nn.Linear(2048, NUM_CLASSES)

    def fold(self) -> "Network":
        """Put every batch norm into its convolution."""
        for module in self.modules():
            if isinstance(module, Convolution):
                module.fold()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 299, 299) -> pooled (B, 2048), and 7 channels of 17x17 places, places first (B, 2023)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, 2))))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))
        spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))
        return x.mean((2, 3)), spatial


_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
_MIXED = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
_NORM = {"beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var", "weight": "conv.weight"}


def _rename(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of StyleGAN's TorchScript archive, named after TensorFlow's graph, by the names of the state dict."""
    layers = {f"layers.conv{f'_{i}' if i else ''}": name for i, name in enumerate(_STEM)}
    for i, name in enumerate(_MIXED):
        kind = "e" if i > 8 else "abcd"[(i > 2) + (i > 3) + (i > 7)]
        for theirs, ours in _TOWERS[kind].items():
            layers[f"layers.mixed{f'_{i}' if i else ''}.{theirs}"] = f"Mixed_{name}.{ours}"
    for name, value in tensors.items():
        layer, _, part = name.rpartition(".")
        if layer in layers and part in _NORM:
            yield f"{layers[layer]}.{_NORM[part]}", value
            if part == "beta":
                yield f"{layers[layer]}.bn.weight", torch.ones_like(value)  # the graph scales nothing
        else:
            yield name.replace("output.", "fc."), value


def _tower(name: str, branch: str, num: int) -> dict[str, str]:
    return {f"{name}.conv{f'_{i}' if i else ''}": f"{branch}_{i + 1}" for i in range(num)}


_SIDES = {"conv": "branch1x1", "tower_2.conv": "branch_pool"}
_TOWERS = {
    "a": {**_SIDES, **_tower("tower", "branch5x5", 2), **_tower("tower_1", "branch3x3dbl", 3)},
    "b": {"conv": "branch3x3", **_tower("tower", "branch3x3dbl", 3)},
    "c": {**_SIDES, **_tower("tower", "branch7x7", 3), **_tower("tower_1", "branch7x7dbl", 5)},
    "d": {**_tower("tower", "branch3x3", 2), **_tower("tower_1", "branch7x7x3", 4)},
    "e": {
        "conv": "branch1x1",
        "tower_conv": "branch3x3_1",
        "tower_mixed_conv": "branch3x3_2a",
        "tower_mixed_conv_1": "branch3x3_2b",
        "tower_1_conv": "branch3x3dbl_1",
        "tower_1_conv_1": "branch3x3dbl_2",
        "tower_1_mixed_conv": "branch3x3dbl_3a",
        "tower_1_mixed_conv_1": "branch3x3dbl_3b",
        "tower_2_conv": "branch_pool",
    },
}
