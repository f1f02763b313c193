"""A discriminator of patches: tells originals from reconstructions, one verdict for each piece of a picture.

What it does: strided convolutions; at the default depth a verdict sees 70x70 pixels.
When to use it: in training, against blur: what the distances of pixels cannot see.
Cost: 2.8 M parameters at the published size; 3 G multiply-adds at 256x256.
Differs from the original: group instead of batch normalisation. A picture is judged alone, and several processes come
to what one does.
Source: Isola et al. 2017, pix2pix (arXiv:1611.07004); Esser et al. 2021 (arXiv:2012.09841).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from vqtool.errors import VqtoolError
from vqtool.options import Checked, option

MAX_WIDENING = 8  # of the first width


@dataclass(frozen=True)
class DiscriminatorConfig(Checked):
    """Shape of the network."""

    adversarial_layers: int = option(
        3, "Layers of the discriminator that halve the picture.", minimum=1, maximum=6, advanced=True
    )
    adversarial_width: int = option(64, "Channels after its first layer.", minimum=1, advanced=True)


class Discriminator(nn.Module):
    """Images (B, 3, h, w) in [-1, 1] -> logits (B, 1, h', w'), high for originals."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        inner, layers = 3, list[nn.Module]()
        for level in range(config.adversarial_layers + 1):
            outer = config.adversarial_width * min(2**level, MAX_WIDENING)
            stride = 2 if level < config.adversarial_layers else 1
            layers.append(nn.Conv2d(inner, outer, 4, stride, padding=1, bias=level == 0))
            if level:
                layers.append(nn.GroupNorm(max(1, outer // 16), outer))
            layers.append(nn.LeakyReLU(0.2))
            inner = outer
        layers.append(nn.Conv2d(inner, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, 1, h', w')."""
        logits: Tensor = self.layers(images)
        return logits


def check_size(config: DiscriminatorConfig, image_size: tuple[int, int]) -> None:
    """Raise unless images are large enough to be judged.

    Raises:
        VqtoolError: they are not.
    """
    smallest = 3 * 2**config.adversarial_layers  # both convolutions at the end take away a row and a column
    if min(image_size) < smallest:
        raise VqtoolError(
            f"images of {image_size[0]}x{image_size[1]} are too small for a discriminator of "
            f"{config.adversarial_layers} layers, which needs {smallest} pixels: take fewer layers"
        )
