"""Distances of images as a network trained on photographs sees them.

What they do: compare what several layers of a frozen network make of two pictures, each position's channels scaled to
length 1.
When to use them: beside the distances of pixels, against blur. "efficientnet-lite0" is of the extra vqtool[eval] and
the quicker one; a file is one of ST-LPIPS, whose heads were fitted to what people see: vgg_shift_tolerant.pth or
alex_shift_tolerant.pth of the package stlpips-pytorch (weights/vST0.0).
Equation: sum over layers of the mean over positions of |w (a - b)|^2, a and b of length 1, w learned in ST-LPIPS.
Cost: of ST-LPIPS with VGG, forward and backward at 64 px on two cores: 3-9 images/s.
Source: Zhang et al. 2018 (arXiv:1801.03924); Ghildyal and Liu 2022, ST-LPIPS (arXiv:2207.13686).
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqtool.errors import FormatError, VqtoolError
from vqtool.images.efficientnet import load_efficientnet
from vqtool.interop.pickles import read_pickle
from vqtool.trust import check_finite

EFFICIENTNET = "efficientnet-lite0"
LENGTH_EPSILON = 1e-10
FIRST_POOLINGS = {3: 2, 11: 3}  # size of the first kernel -> of the max-poolings: VGG's, AlexNet's
SMALLEST_SIDE = 32  # pixels
PADDINGS = {3: 1, 5: 2, 11: 2}  # of convolutions by their kernels


class Perceptual(nn.Module):
    """A distance: images and rebuilt ones (B, 3, h, w) in [-1, 1] -> () mean over the images."""

    name: str  # stands in the state of a run

    def distances(self, images: Tensor, rebuilt: Tensor) -> Tensor:
        """(B,) one distance a pair."""
        raise NotImplementedError

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise unless images of that size can be seen.

        Raises:
            VqtoolError: they are too small.
        """
        if min(size) < SMALLEST_SIDE:
            raise VqtoolError(
                f"images of {size[0]}x{size[1]} are too small for a perceptual network, which needs {SMALLEST_SIDE} "
                "pixels: leave out `perceptual`, or take a larger `size`"
            )

    def forward(self, images: Tensor, rebuilt: Tensor) -> Tensor:
        """() mean distance."""
        with torch.autocast(images.device.type, enabled=False):
            return self.distances(images.float(), rebuilt.float()).mean()


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
        self.requires_grad_(False).eval()

    def distances(self, images: Tensor, rebuilt: Tensor) -> Tensor:
        """(B,) one distance a pair."""
        x = (torch.cat((images, rebuilt)) - self.shift) / self.scale
        total = x.new_zeros(len(images))
        for part, head in zip(self.slices, self.heads, strict=True):
            x = part(x)
            total = total + functional.conv2d(_squares(x), head).mean((1, 2, 3))
        return total


class EfficientNetDistance(Perceptual):
    """The same without learned heads, of EfficientNet-Lite0: the layers before each halving."""

    name = EFFICIENTNET

    def __init__(self) -> None:
        """A distance.

        Raises:
            VqtoolError: the packages of the extra vqtool[eval] are not installed.
        """
        super().__init__()
        self.network = load_efficientnet().requires_grad_(False).eval()

    def distances(self, images: Tensor, rebuilt: Tensor) -> Tensor:
        """(B,) one distance a pair."""
        x = (torch.cat((images, rebuilt)) * 127.5 + 0.5) / 128  # (v - 127) / 128 of v in 0..255
        network = self.network
        x = network._swish(network._bn0(network._conv_stem(x)))
        total = x.new_zeros(len(images))
        for block in network._blocks:
            if block._depthwise_conv.stride[0] > 1:
                total = total + _squares(x).sum(1).mean((1, 2))
            x = block(x)
        last: Tensor = total + _squares(x).sum(1).mean((1, 2))
        return last

    def train(self, mode: bool = True) -> "EfficientNetDistance":
        """Never in training mode: its statistics are those of photographs."""
        return super().train(mode=False)


def load_perceptual(name: str) -> Perceptual:
    """The distance that a name stands for.

    Args:
        name: "efficientnet-lite0", or a file of ST-LPIPS.

    Raises:
        FormatError: the file is not one of ST-LPIPS, or damaged.
        VqtoolError: neither a known name nor a file; packages are missing.
    """
    if name == EFFICIENTNET:
        return EfficientNetDistance()
    path = Path(name)
    if not path.is_file():
        raise VqtoolError(
            f"`perceptual` {name}: neither {EFFICIENTNET} nor a file: give vgg_shift_tolerant.pth or "
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
    check_finite(network.state_dict(), name)
    return network


def _squares(x: Tensor) -> Tensor:
    """Squared differences (B, C, h, w) of a batch (2 B, C, h, w) of channels scaled to length 1."""
    scaled = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + LENGTH_EPSILON)
    first, second = scaled.chunk(2)
    squares: Tensor = (first - second).square()
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
