"""How the gradient of codes becomes one of the latents that they stand for: looking up has none of its own.

- straight-through: the same vector. Source: van den Oord et al. 2017 (arXiv:1711.00937).
- rotation: turned and scaled as the latent would have to be to become its code, so that angles to the code are kept.
  Source: Fifty et al. 2024 (arXiv:2410.06424).
"""

from torch import Tensor
from torch.nn import functional

GRADIENTS = ("straight-through", "rotation")


def pass_gradient(latents: Tensor, codes: Tensor, gradient: str) -> Tensor:
    """The codes, with gradients that go to the latents.

    Args:
        latents: (..., D).
        codes: (..., D) that stand for them.
        gradient: one of GRADIENTS.

    Returns:
        (..., D), equal to codes; codes themselves get no gradient.

    Raises:
        ValueError: the gradient is unknown.
    """
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient is {gradient!r}, known are {GRADIENTS}")
    codes = codes.detach()
    moved = rotated(latents, codes) if gradient == "rotation" else latents
    return codes + (moved - moved.detach())  # equal to codes to the last bit


def rotated(latents: Tensor, codes: Tensor) -> Tensor:
    """scale * R latents, where both are constants that bring each latent to its code: (..., D)."""
    fixed = latents.detach()
    before, after = functional.normalize(fixed, dim=-1), functional.normalize(codes, dim=-1)
    middle = functional.normalize(before + after, dim=-1)
    scale = codes.norm(dim=-1, keepdim=True) / fixed.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    # R = I - 2 m m^T + 2 a b^T: two reflections, in products of vectors alone
    turned = latents - 2 * middle * _dot(middle, latents) + 2 * after * _dot(before, latents)
    found: Tensor = scale * turned
    return found


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, keepdim=True)
