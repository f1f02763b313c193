"""What a tokenizer is trained on: distances of pixels and edges, and what a discriminator thinks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from vqtool import distributed

RECONSTRUCTIONS = ("l1", "l2")
WEIGHT_EPSILON = 1e-4


def reconstruction(images: Tensor, rebuilt: Tensor, kind: str) -> Tensor:
    """Mean distance of pixels: "l1" keeps edges sharper, "l2" has the higher PSNR.

    Args:
        images: (B, 3, h, w) in [-1, 1].
        rebuilt: (B, 3, h, w).
        kind: one of `RECONSTRUCTIONS`.
    """
    difference = images - rebuilt
    if kind == "l1":
        return difference.abs().mean()
    if kind == "l2":
        return difference.square().mean()
    raise ValueError(f"kind is {kind!r}, known are {RECONSTRUCTIONS}")


def edges(images: Tensor, rebuilt: Tensor) -> Tensor:
    """Mean L1 distance of the differences between neighbouring pixels: asks for outlines in the right place."""
    difference = images - rebuilt
    vertical = (difference[..., 1:, :] - difference[..., :-1, :]).abs().mean()
    horizontal = (difference[..., 1:] - difference[..., :-1]).abs().mean()
    return vertical + horizontal


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """What a discriminator minimises: logits of originals above 1, of reconstructions below -1.

    Source: Lim and Ye 2017 (arXiv:1705.02894), halved as in taming-transformers.
    """
    return (functional.relu(1 - real).mean() + functional.relu(1 + fake).mean()) / 2


def adaptive_weight(rebuilt: Tensor, last_layer: Tensor, pull: Tensor, push: Tensor, *, largest: float) -> Tensor:
    """The weight that makes the discriminator's gradient as strong as that of the distances, at the last layer.

    Args:
        rebuilt: (B, 3, h, w) with its graph.
        last_layer: weight of the decoder's last convolution.
        pull: (B, 3, h, w) gradient of the distances by `rebuilt`.
        push: (B, 3, h, w) gradient of the generator's adversarial loss by `rebuilt`.
        largest: the weight is no larger than this.

    Returns:
        () |gradient of the distances| / (|adversarial gradient| + 1e-4), the same in all processes; no gradient.

    Source: Esser et al. 2021 (arXiv:2012.09841), equation 7.
    """
    return weigh(last_gradients(rebuilt, last_layer, pull, push), largest=largest)


def last_gradients(rebuilt: Tensor, last_layer: Tensor, pull: Tensor, push: Tensor) -> list[Tensor]:
    """What `pull` and `push` by the pictures are by the last layer; the arguments are those of `adaptive_weight`."""
    return [
        torch.autograd.grad(rebuilt, last_layer, gradient, retain_graph=True)[0].float() for gradient in (pull, push)
    ]


def weigh(gradients: Sequence[Tensor], *, largest: float) -> Tensor:
    """The adaptive weight, from what the distances' and the adversarial loss's gradients by the last layer are here."""
    norms = [distributed.total(each.contiguous()).norm() / distributed.world_size() for each in gradients]
    weight: Tensor = norms[0] / (norms[1] + WEIGHT_EPSILON)
    return weight.clamp(0.0, largest)


def last_layer(decoder: nn.Module) -> Tensor:
    """The weight of a decoder's last convolution."""
    return [module.weight for module in decoder.modules() if isinstance(module, nn.Conv2d)][-1]
