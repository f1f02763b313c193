"""What a user may do to the denoiser's log p(x_0 | x_t): guidance, temperature, truncation, in that order, then draw.

Each takes and returns log-probabilities over the last axis. A setting of 1.0 is off and returns its input, bit for bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vqtool.errors import VqtoolError


def guide(log_c: Tensor, log_u: Tensor, cfg_scale: float) -> Tensor:
    """Log p with guidance: log_u + cfg_scale * (log_c - log_u), renormalised.

    A token that is impossible with the condition stays so. One that is possible only with the condition has no ratio to
    amplify: above a scale of 1 its conditional value is taken as it is. A row that nothing is left of becomes log_c's.

    Args:
        log_c: (..., K) log-probabilities under the condition, nats.
        log_u: (..., K) log-probabilities without it.
        cfg_scale: 1.0 is off, 0.0 ignores the condition. Papers that write s mean 1 + s here.

    Returns:
        (..., K) log-probabilities; exp sums to 1.

    Raises:
        VqtoolError: the scale is negative or not finite.

    Source: Tang et al. 2022 (arXiv:2205.16007), section 3.1.
    """
    if not (math.isfinite(cfg_scale) and cfg_scale >= 0):
        raise VqtoolError(f"the guidance scale must be 0 or more (1 is off), is {cfg_scale}")
    if cfg_scale == 1.0:
        return log_c
    if cfg_scale == 0.0:
        return log_u
    guided = torch.lerp(log_u, log_c, cfg_scale).log_softmax(-1)
    if bool(guided[..., 0].isnan().any()):  # infinities met; they spoil whole rows
        return _guide_exactly(log_c, log_u, cfg_scale)
    return guided


def _guide_exactly(log_c: Tensor, log_u: Tensor, cfg_scale: float) -> Tensor:
    """``guide`` where entries may be -inf: 20 times as slow."""
    impossible = log_c == -torch.inf
    ratio = torch.where(impossible | (log_u == -torch.inf), 0.0, log_c - log_u)
    start = log_u if cfg_scale < 1 else torch.where(log_u == -torch.inf, log_c, log_u)
    guided = torch.where(impossible, -torch.inf, start + cfg_scale * ratio)
    return torch.where(guided.amax(-1, keepdim=True) > -torch.inf, guided, log_c).log_softmax(-1)


def temper(log_p: Tensor, temperature: float) -> Tensor:
    """Log p ** (1 / temperature), renormalised: below 1 sharper, above 1 flatter.

    Args:
        log_p: (..., K) log-probabilities, nats.
        temperature: above 0; 1.0 is off.

    Returns:
        (..., K) log-probabilities; exp sums to 1.

    Raises:
        VqtoolError: the temperature is not a positive number.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise VqtoolError(f"the temperature must be above 0 (1 is off), is {temperature}")
    if temperature == 1.0:
        return log_p
    # From the largest entry down, so that a tiny temperature cannot push every entry to -inf.
    return ((log_p - log_p.amax(-1, keepdim=True)) / temperature).log_softmax(-1)


def truncate(log_p: Tensor, truncation: float) -> Tensor:
    """Log p of the smallest set of tokens with mass >= truncation, renormalised.

    Of equal tokens at the border the first are kept.

    Args:
        log_p: (..., K) log-probabilities, nats.
        truncation: in (0, 1]; 1.0 is off.

    Returns:
        (..., K) log-probabilities, -inf outside the set; exp sums to 1.

    Raises:
        VqtoolError: the rate is outside (0, 1].

    Source: Gu et al. 2022 (arXiv:2111.14822), section 5.1, "truncation"; differs from its code: renormalised.
    """
    if not 0 < truncation <= 1:
        raise VqtoolError(f"the truncation rate must lie above 0 and be at most 1 (1 is off), is {truncation}")
    if truncation == 1.0:
        return log_p
    ordered, order = log_p.sort(dim=-1, descending=True, stable=True)
    mass = ordered.exp().cumsum(-1, dtype=torch.float64)  # (..., K)
    kept = mass.roll(1, -1) < truncation  # by the mass in front of a token
    kept[..., 0] = True
    return log_p.where(torch.zeros_like(kept).scatter_(-1, order, kept), -torch.inf).log_softmax(-1)
