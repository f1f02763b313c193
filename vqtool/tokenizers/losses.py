"""What a tokenizer is trained on: reconstruction, edges and commitment."""

from torch import Tensor

RECONSTRUCTIONS = ("l1", "l2")


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
