"""What public functions are given: shapes and types are always checked, values where no GPU has to be waited for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_PIXEL = 64.0  # images are in [-1, 1]; a decoder may overshoot, but images of bytes reach 255


def check_tokens(tokens: Any, num_states: int, name: str = "tokens", *, wait: bool = False) -> None:
    """Raise ValueError unless these are (B, H, W) integers in [0, num_states); with `wait` on a GPU, too."""
    import torch

    if not isinstance(tokens, torch.Tensor):
        raise ValueError(f"{name} must be a tensor (B, H, W) of integers, is {type(tokens).__name__}")
    if tokens.ndim != 3 or tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise ValueError(f"{name} must be (B, H, W) integers, are {_described(tokens)}")
    if (wait or tokens.device.type == "cpu") and tokens.numel():
        low, high = (int(value) for value in tokens.aminmax())
        if not 0 <= low <= high < num_states:
            raise ValueError(f"{name} must lie in [0, {num_states - 1}], span [{low}, {high}]")


def check_images(images: Any) -> None:
    """Raise ValueError unless these are (B, 3, height, width) floating-point numbers, about [-1, 1]."""
    import torch

    if not isinstance(images, torch.Tensor):
        raise ValueError(f"images must be a tensor (B, 3, height, width) in [-1, 1], are {type(images).__name__}")
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"images must be (B, 3, height, width) floats in [-1, 1], are {_described(images)}")
    if images.device.type == "cpu" and images.numel():
        low, high = (float(value) for value in images.detach().aminmax())
        if not -LARGEST_PIXEL <= low <= high <= LARGEST_PIXEL:
            raise ValueError(f"images must lie in [-1, 1], span [{low:g}, {high:g}]")


def check_times(t: "Tensor", batch_size: int, num_steps: int) -> None:
    """Raise ValueError unless these are (B,) steps in [0, num_steps]."""
    if t.shape != (batch_size,):
        raise ValueError(f"t must be ({batch_size},), one step a grid, is {_described(t)}")
    if t.device.type == "cpu" and not bool(((t >= 0) & (t <= num_steps)).all()):
        raise ValueError(f"t must lie in [0, {num_steps}], is {t.tolist()}")


def check_texts(texts: Any) -> None:
    """Raise ValueError unless these are several texts, or None in the place of some, and not one string."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
        raise ValueError(f"a list of texts is needed, not {texts!r:.60}: write [text] for one")
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise ValueError(f"texts are strings or None, one is {text!r:.60}")


def _described(tensor: "Tensor") -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
