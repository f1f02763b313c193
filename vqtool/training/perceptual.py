"""Distances of images as a network trained on photographs sees them.

What they do: compare what several layers of a frozen network make of two pictures, each position's channels scaled to
length 1.
When to use them: beside the distances of pixels, against blur. "efficientnet-lite0" is of the extra vqtool[eval] and
the quicker one; a file is one of ST-LPIPS, whose heads were fitted to what people see: vgg_shift_tolerant.pth or
alex_shift_tolerant.pth of the package stlpips-pytorch (weights/vST0.0; their licence does not allow commercial use).
Equation: sum over layers of the mean over positions of |w (a - b)|^2, a and b of length 1, w learned in ST-LPIPS. Of
EfficientNet-Lite0 w is one number a layer, and there is also |f - g|^2 / |f|^2, f and g being the means over positions
that Fréchet distances compare.
Cost: of ST-LPIPS with VGG, forward and backward at 64 px on two cores: 3-9 images/s.
Source: Zhang et al. 2018 (arXiv:1801.03924); Ghildyal and Liu 2022, ST-LPIPS (arXiv:2207.13686).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqtool.errors import FormatError, VqtoolError
from vqtool.images.efficientnet import fold_batch_norms, load_efficientnet
from vqtool.interop.pickles import read_pickle
from vqtool.tokenizers.vqvae import channels_last
from vqtool.trust import check_finite

EFFICIENTNET = "efficientnet-lite0"
LENGTH_EPSILON = 1e-10
# Of EfficientNet-Lite0's layers before each halving, at the end, and of their mean: the gradient of each by a decoder's
# first layer is then about 0.4 times that of L1 + edges / 2, measured at 224 px on rebuilt emoji and photographs.
LAYER_WEIGHTS = (0.2, 0.2, 0.05, 0.05, 0.04, 0.02)
FIRST_POOLINGS = {3: 2, 11: 3}  # size of the first kernel -> of the max-poolings: VGG's, AlexNet's
SMALLEST_SIDE = 32  # pixels
PADDINGS = {3: 1, 5: 2, 11: 2}  # of convolutions by their kernels


class Perceptual(nn.Module):
    """A distance: images and rebuilt ones (B, 3, h, w) in [-1, 1] -> () mean over the images."""

    name: str  # stands in the state of a run
    size: int | None = None  # pixels that the shorter side is enlarged to; None leaves images as they are

    def distances(self, images: Tensor, rebuilt: Tensor) -> Tensor:
        """(B,) one distance a pair."""
        raise NotImplementedError

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise unless images of that size can be seen.

        Raises:
            VqtoolError: they are too small.
        """
        if self.size is None and min(size) < SMALLEST_SIDE:
            raise VqtoolError(
                f"images of {size[0]}x{size[1]} are too small for a perceptual network, which needs {SMALLEST_SIDE} "
                "pixels: leave out `perceptual`, or take a larger `size`"
            )

    def forward(self, images: Tensor, rebuilt: Tensor) -> Tensor:
        """() mean distance."""
        with torch.autocast(images.device.type, enabled=False):
            return self.distances(self._enlarged(images.float()), self._enlarged(rebuilt.float())).mean()

    def _enlarged(self, images: Tensor) -> Tensor:
        if self.size is None:
            return images
        sides = [round(side * self.size / min(images.shape[2:])) for side in images.shape[2:]]
        return functional.interpolate(images, sides, mode="bilinear", antialias=self.size < min(images.shape[2:]))


class StLpips(Perceptual):
    """ST-LPIPS with the weights of a file."""

    shift: Tensor  # (1, 3, 1, 1)
    scale: Tensor  # (1, 3, 1, 1)

    def __init__(self, tensors: dict[str, Tensor], name: str) -> None:
        """A distance.

        Args:
            tensors: of the file.
            name: of the file.

        Raises:
            KeyError, ValueError: they are not those of ST-LPIPS.
        """
        super().__init__()
        self.name = name
        self.register_buffer("shift", tensors["scaling_layer.shift"])
        self.register_buffer("scale", tensors["scaling_layer.scale"])
        heads = [tensors[f"lin{level}.model.1.weight"] for level in range(5)]
        self.heads = nn.ParameterList(heads)
        pooling = FIRST_POOLINGS[tensors["net.slice1.0.weight"].shape[-1]]
        self.slices = nn.ModuleList(
            _slice(
                {key.removeprefix(f"net.slice{level}."): t for key, t in tensors.items() if f"slice{level}." in key},
                pooling,
            )
            for level in range(1, 6)
        )
        channels_last(self.requires_grad_(False).eval())

    def distances(self, images: Tensor, rebuilt: Tensor) -> Tensor:
        """(B,) one distance a pair."""
        x, y = ((pictures - self.shift) / self.scale for pictures in (images, rebuilt))  # apart: x needs no gradient
        total = x.new_zeros(len(images))
        for part, head in zip(self.slices, self.heads, strict=True):
            x, y = part(x), part(y)
            total = total + functional.conv2d(_squares(x, y), head).mean((1, 2, 3))
        return total


class EfficientNetDistance(Perceptual):
    """The same without learned heads, of EfficientNet-Lite0: the layers before each halving, and the mean of the last.

    It sees most at 224 pixels, the size that it was trained at.
    """

    name = EFFICIENTNET

    def __init__(self) -> None:
        """A distance.

        Raises:
            VqtoolError: the packages of the extra vqtool[eval] are not installed.
        """
        super().__init__()
        self.network = fold_batch_norms(load_efficientnet()).requires_grad_(False)

    def distances(self, images: Tensor, rebuilt: Tensor) -> Tensor:
        """(B,) one distance a pair."""
        (*layers, f), (*others, g) = self._layers(images), self._layers(rebuilt)
        terms = [_squares(x, y).sum(1).mean((1, 2)) for x, y in zip(layers, others, strict=True)]
        terms.append((f - g).square().sum(1) / (f.square().sum(1) + LENGTH_EPSILON))
        return torch.stack([weight * term for weight, term in zip(LAYER_WEIGHTS, terms, strict=True)]).sum(0)

    def _layers(self, images: Tensor) -> list[Tensor]:
        """(B, C, h, w) before each halving and at the end, and what they end in, (B, 1280)."""
        network: Any = self.network
        found = []
        # Channels last: faster on a CPU, slow on a GPU where each channel has a convolution of its own, in float32.
        layout = torch.contiguous_format if images.is_cuda else torch.channels_last
        x = (images.contiguous(memory_format=layout) * 127.5 + 0.5) / 128  # (v - 127) / 128 of v in 0..255
        x = network._swish(network._bn0(network._conv_stem(x)))
        for block in network._blocks:
            if block._depthwise_conv.stride[0] > 1:
                found.append(x)
            x = block(x)
        return [*found, x, network._swish(network._bn1(network._conv_head(x))).mean((2, 3))]

    def train(self, mode: bool = True) -> "EfficientNetDistance":
        """Never in training mode: its statistics are those of photographs."""
        return super().train(mode=False)


def load_perceptual(name: str, *, size: int | None = None) -> Perceptual:
    """The distance that a name stands for.

    Args:
        name: "efficientnet-lite0", or a file of ST-LPIPS.
        size: pixels that the shorter side of images is enlarged to; None leaves them as they are.

    Raises:
        FormatError: the file is not one of ST-LPIPS, or damaged.
        VqtoolError: neither a known name nor a file; packages are missing.
    """
    network: Perceptual = EfficientNetDistance() if name == EFFICIENTNET else _load_st_lpips(Path(name))
    network.size = size
    return network


def _load_st_lpips(path: Path) -> StLpips:
    if not path.is_file():
        raise VqtoolError(
            f"`perceptual` {path}: neither {EFFICIENTNET} nor a file: give vgg_shift_tolerant.pth or "
            "alex_shift_tolerant.pth of the package stlpips-pytorch (weights/vST0.0)"
        )
    tensors = read_pickle(path)
    try:
        network = StLpips(dict(tensors), path.name)
    except (LookupError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise FormatError(
            f"{path}: not the weights of ST-LPIPS ({error} is missing or unknown): give vgg_shift_tolerant.pth or "
            "alex_shift_tolerant.pth of the package stlpips-pytorch (weights/vST0.0)"
        ) from error
    check_finite(network.state_dict(), str(path))
    return network


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """Squared differences (B, C, h, w) of two batches (B, C, h, w) with channels scaled to length 1."""
    x, y = (each / (torch.linalg.vector_norm(each, dim=1, keepdim=True) + LENGTH_EPSILON) for each in (x, y))
    squares: Tensor = (x - y).square()
    return squares


class _Blur(nn.Module):
    """Halving: two reflected pixels around, then a blur of stride 2 in each channel."""

    kernel: Tensor  # (C, 1, 3, 3)

    def __init__(self, kernel: Tensor) -> None:
        super().__init__()
        self.register_buffer("kernel", kernel)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h', w')."""
        return functional.conv2d(functional.pad(x, (2, 2, 2, 2), "reflect"), self.kernel, stride=2, groups=x.shape[1])


def _slice(tensors: dict[str, Tensor], pooling: int) -> nn.Sequential:
    """The layers of one slice: "N.filt" is a blur, "N.weight" a convolution; a max-pooling is where N - 1 is neither.

    A convolution is followed by a rectifier, or by a blur and a rectifier.
    """
    places = sorted({int(key.split(".")[0]) for key in tensors})
    layers: list[nn.Module] = []
    for place in places:
        if f"{place}.filt" in tensors:
            follows = place - 1 in places
            if not follows:
                layers.append(nn.MaxPool2d(pooling, stride=1))
            layers += [_Blur(tensors[f"{place}.filt"]), *([nn.ReLU()] if follows else [])]
        else:
            weight = tensors[f"{place}.weight"]
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=PADDINGS[weight.shape[2]])
            layer.load_state_dict({"weight": weight, "bias": tensors[f"{place}.bias"]})
            layers += [layer, *([nn.ReLU()] if f"{place + 1}.filt" not in tensors else [])]
    return nn.Sequential(*layers)
