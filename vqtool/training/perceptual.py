"""Distances of images as a network trained on photographs sees them.

What they do: compare what several layers of a frozen network make of two pictures, each position's channels scaled to
length 1.
When to use them: beside the distances of pixels, against blur. "efficientnet-lite0" is of the extra vqtool[eval] and
the quicker one; a file is one of ST-LPIPS, whose heads were fitted to what people see: vgg_shift_tolerant.pth or
alex_shift_tolerant.pth of the package stlpips-pytorch (weights/vST0.0; their licence does not allow commercial use).
Equation: sum over layers of the mean over positions of |w (a - b)|^2, a and b of length 1, w learned in ST-LPIPS. Of
EfficientNet-Lite0 w is one number a layer, and there is also |f - g|^2 / |f|^2, f and g being the features that Fréchet
distances compare, of the pictures at 224 px.
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
# Of EfficientNet-Lite0, by the number of the block that widens: its weight. These are the first blocks of a resolution
# that keep it. Their gradients are the most like those of ST-LPIPS with VGG: on emoji and photographs of 64 px the
# cosines are 0.7, 0.5 and 0.5 in a decoder; those of narrow layers are 0.0 to 0.3, and of what is deeper 0.1.
LAYER_WEIGHTS = {2: 1.0, 4: 0.2, 6: 0.1}
FEATURE_WEIGHT = 0.02  # of the features of scores
FEATURE_SIZE = 224  # pixels a side at which scores see pictures
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
    """The same without learned heads, of layers of EfficientNet-Lite0, and the distance of the features of scores."""

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
        layers, others = (self._layers(pictures) for pictures in (images, rebuilt))
        f, g = (self._features(pictures) for pictures in (images, rebuilt))
        total = FEATURE_WEIGHT * (f - g).square().sum(1) / (f.square().sum(1) + LENGTH_EPSILON)
        for weight, x, y in zip(LAYER_WEIGHTS.values(), layers, others, strict=True):
            total = total + weight * _squares(x, y).sum(1).mean((1, 2))
        return total

    def _layers(self, images: Tensor) -> list[Tensor]:
        """(B, C, h, w) of each of LAYER_WEIGHTS."""
        network: Any = self.network
        x, found = self._stem(images), []
        for number, block in enumerate(network._blocks[: max(LAYER_WEIGHTS) + 1]):
            if number in LAYER_WEIGHTS:
                found.append(block._swish(block._bn0(block._expand_conv(x))))
            x = block(x)
        return found

    def _features(self, images: Tensor) -> Tensor:
        """(B, 1280) what scores compare."""
        network: Any = self.network
        size = (FEATURE_SIZE, FEATURE_SIZE)
        x = self._stem(functional.interpolate(images, size, mode="bilinear", antialias=min(images.shape[2:]) > size[0]))
        for block in network._blocks:
            x = block(x)
        features: Tensor = network._swish(network._bn1(network._conv_head(x))).mean((2, 3))
        return features

    def _stem(self, images: Tensor) -> Tensor:
        network: Any = self.network
        # Channels last: faster on a CPU, slow on a GPU where each channel has a convolution of its own, in float32.
        layout = torch.contiguous_format if images.is_cuda else torch.channels_last
        x = (images.contiguous(memory_format=layout) * 127.5 + 0.5) / 128  # (v - 127) / 128 of v in 0..255
        found: Tensor = network._swish(network._bn0(network._conv_stem(x)))
        return found

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
    return EfficientNetDistance() if name == EFFICIENTNET else _load_st_lpips(Path(name))


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
