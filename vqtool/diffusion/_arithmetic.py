"""Quotients and logarithms whose edges, 0 and -inf, are numbers like any other, in the gradient too."""

from __future__ import annotations

import torch
from torch import Tensor


def nonzero(value: Tensor) -> Tensor:
    """The value, with 1 in place of what is not positive: for a quotient that is not used there."""
    return torch.where(value > 0, value, 1.0)


def quotient(part: Tensor, whole: Tensor, otherwise: Tensor | float = 0.0) -> Tensor:
    """Part / whole, and `otherwise` where the whole is 0."""
    return torch.where(whole > 0, part / nonzero(whole), otherwise)


def log_add(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) + exp(b)), also where b is -inf."""
    nothing = b == -torch.inf
    return torch.where(nothing, a, torch.logaddexp(a, b.where(~nothing, 0.0)))


def safe_log(p: Tensor) -> Tensor:
    """Log p, with gradient 0 where p is 0."""
    return torch.where(p > 0, nonzero(p).log(), -torch.inf)
