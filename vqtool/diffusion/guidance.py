"""Guidance, temperature and truncation of the denoiser's log p(x_0 | x_t), in that order, and draws from it.

Each function takes and returns normalised log-probabilities over the last axis. A setting of 1.0 is off and returns
its input, bit for bit; so does a top-k of K and more. They change which token a cell gets; whether a masked cell is
unmasked in a step is decided by the kernel alone.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vqtool.diffusion.posterior import draw, invert
from vqtool.errors import VqtoolError

SCHEDULES = ("constant", "linear", "cosine", "power-cosine")


def scales(share: Tensor, cfg_scale: float, schedule: str, interval: tuple[float, float], power: float = 1.0) -> Tensor:
    """The guidance scale at shares of time.

    Outside of the interval it is 1, and one denoiser call is enough. Inside, with u = 1 - t / T,

        constant: g        linear: 1 + (g - 1) u        cosine: 1 + (g - 1) (1 - cos(pi u)) / 2
        power-cosine: 1 + (g - 1) (1 - cos(pi u^power)) / 2.

    Args:
        share: (B,) float64, u: 0 at the noisiest step, near 1 at the last.
        cfg_scale: g.
        schedule: one of SCHEDULES.
        interval: the least and the largest u with guidance.
        power: of "power-cosine"; above 1 guidance comes later.

    Returns:
        (B,) float64.

    Source: Kynkäänniemi et al. 2024 (arXiv:2404.07724), intervals; Chang et al. 2023 (arXiv:2301.00704), linear;
    Gao et al. 2023 (arXiv:2303.14389), power-cosine.
    """
    weight = {
        "constant": torch.ones_like(share),
        "linear": share,
        "cosine": (1 - torch.cos(math.pi * share)) / 2,
        "power-cosine": (1 - torch.cos(math.pi * share**power)) / 2,
    }
    low, high = interval
    return torch.where((share >= low) & (share <= high), 1 + (cfg_scale - 1) * weight[schedule], 1.0)


def guide(
    log_c: Tensor, log_u: Tensor, cfg_scale: float | Tensor, weight: Tensor | None = None, *, raw: bool = False
) -> Tensor:
    """Log p with guidance: log_u + cfg_scale * (log_c - log_u), renormalised.

    A token of probability 0 under the condition keeps probability 0. Where only log_u is -inf, the ratio is infinite:
    above a scale of 1 the token takes log_c's value. A row without a finite entry takes log_c's values.

    Args:
        log_c: (..., K) log-probabilities under the condition, nats.
        log_u: (..., K) log-probabilities without it.
        cfg_scale: 1.0 is off, 0.0 ignores the condition; or (B,), one a row. Papers that write s mean 1 + s here.
        weight: the same scales on the device of the others, if they are there already: a copy would wait for a GPU.
        raw: whether both are logits, which are finite; the result is not renormalised.

    Returns:
        (..., K) log-probabilities; exp sums to 1.

    Raises:
        VqtoolError: a scale is negative or not finite.

    Source: Tang et al. 2022 (arXiv:2205.16007), section 3.1.
    """
    scale = torch.as_tensor(cfg_scale, dtype=log_c.dtype)
    for value in scale.flatten().tolist():
        check_scale(value)
    if bool((scale == 1).all()):
        return log_c
    if bool((scale == 0).all()):
        return log_u
    weight = scale.to(log_c.device) if weight is None else weight.to(log_c.dtype)
    weight = weight.view(*scale.shape, *[1] * (log_c.ndim - scale.ndim))
    guided = torch.lerp(log_u, log_c, weight)
    if raw:
        return guided
    guided = guided.log_softmax(-1)
    spoiled = guided[..., :1].isnan()  # inf - inf somewhere in the row makes the whole row NaN
    if spoiled.device.type != "cpu" or bool(spoiled.any()):  # to wait for a GPU would take longer
        guided = torch.where(spoiled, _guide_exactly(log_c, log_u, weight), guided)
    if bool(((scale == 1) | (scale == 0)).any()):
        guided = torch.where(weight == 1, log_c, torch.where(weight == 0, log_u, guided))
    return guided


def _guide_exactly(log_c: Tensor, log_u: Tensor, weight: Tensor) -> Tensor:
    """What ``guide`` returns, also where entries are -inf; 20 times as slow."""
    impossible = log_c == -torch.inf
    ratio = torch.where(impossible | (log_u == -torch.inf), 0.0, log_c - log_u)
    start = torch.where((weight >= 1) & (log_u == -torch.inf), log_c, log_u)
    guided = torch.where(impossible, -torch.inf, start + weight * ratio)
    return torch.where(guided.amax(-1, keepdim=True) > -torch.inf, guided, log_c).log_softmax(-1)


def temper(log_p: Tensor, temperature: float | Tensor, rows: Tensor | None = None) -> Tensor:
    """Log p ** (1 / temperature), renormalised: below 1 sharper, above 1 flatter.

    Args:
        log_p: (..., K) log-probabilities, nats.
        temperature: above 0; 1.0 is off; or (B,), one a row.
        rows: the same (B,) on the device of the others, if they are there already: a copy would wait for a GPU.

    Returns:
        (..., K) log-probabilities; exp sums to 1.

    Raises:
        VqtoolError: the temperature is not a positive number.
    """
    if isinstance(temperature, Tensor):
        values = torch.unique(temperature).tolist()
        if len(values) > 1:
            rows = (temperature if rows is None else rows).to(log_p).view(-1, *[1] * (log_p.ndim - 1))
            tempered = ((log_p - log_p.amax(-1, keepdim=True)) / rows).log_softmax(-1)
            return torch.where(rows == 1, log_p, tempered)
        temperature = float(values[0])
    check_temperature(temperature)
    if temperature == 1.0:
        return log_p
    # From the largest entry down, so that a tiny temperature cannot push every entry to -inf.
    return ((log_p - log_p.amax(-1, keepdim=True)) / temperature).log_softmax(-1)


def truncate(log_p: Tensor, truncation: float, top_k: int | None = None) -> Tensor:
    """Log p of the smallest set of tokens with mass >= truncation, or of the top_k if these are fewer, renormalised.

    Where tokens of equal probability straddle the cut, the first of them are kept.

    Args:
        log_p: (..., K) log-probabilities, nats.
        truncation: in (0, 1]; 1.0 is off.
        top_k: at least 1; None, K and more are off.

    Returns:
        (..., K) log-probabilities, -inf outside the set; exp sums to 1.

    Raises:
        VqtoolError: the rate is outside (0, 1], or top_k below 1.

    Source: Gu et al. 2022 (arXiv:2111.14822), section 5.1, "truncation"; differs from its code: renormalised.
    """
    if not _cuts(log_p, truncation, top_k):
        return log_p
    p = log_p.exp()
    if p.device.type != "cpu":
        order, mass, last = _cut_with_order(p, truncation, top_k)
        first = torch.arange(p.shape[-1], device=p.device) <= last
        kept = torch.zeros_like(first).scatter(-1, order, first)
        return torch.where(kept, log_p - mass.gather(-1, last).log().to(log_p), -torch.inf)
    ordered, mass, last = _cut(p, truncation, top_k)
    least = ordered.gather(-1, last)
    kept = p >= least
    after = ordered.gather(-1, (last + 1).clamp(max=p.shape[-1] - 1))
    if bool(((after == least) & (last < p.shape[-1] - 1)).any()):  # some row has equal tokens at the border
        equal = p == least
        kept &= ~equal | (equal.cumsum(-1) <= last + 1 - (p > least).sum(-1, keepdim=True))
    return torch.where(kept, log_p - mass.gather(-1, last).log().to(log_p), -torch.inf)


def draw_truncated(log_p: Tensor, noise: Tensor, truncation: float, top_k: int | None = None) -> Tensor:
    """Draw from ``truncate(log_p, truncation, top_k)`` without computing that distribution: half the time.

    The same distribution as ``draw(truncate(...), noise)``, but not the same token for the same noise.

    Args:
        log_p: (..., K) log-probabilities, nats; normalised.
        noise: (...) float64, uniform in [0, 1).
        truncation: in (0, 1]; with 1.0 it is ``draw``, bit for bit.
        top_k: at least 1; None, K and more are off.

    Returns:
        (...) int64 in [0, K), never a token outside the set.

    Raises:
        VqtoolError: the rate is outside (0, 1], or top_k below 1.
        ValueError: the noise is not float64, or a row is no distribution.
    """
    if not _cuts(log_p, truncation, top_k):
        return draw(log_p, noise)
    p = log_p.exp()
    if p.device.type != "cpu":
        order, mass, last = _cut_with_order(p, truncation, top_k)
        return order.gather(-1, invert(mass, noise, mass.gather(-1, last).squeeze(-1)).unsqueeze(-1)).squeeze(-1)
    ordered, mass, last = _cut(p, truncation, top_k)
    rank = invert(mass, noise, mass.gather(-1, last).squeeze(-1)).unsqueeze(-1)  # of the token drawn, largest first
    value = ordered.gather(-1, rank)
    token = _first(p == value)
    repeated = ((ordered.gather(-1, (rank - 1).clamp(min=0)) == value) & (rank > 0)).squeeze(-1)
    if bool(repeated.any()):  # not the first of equal tokens
        some, its = p[repeated], value[repeated]  # (n, K), (n, 1)
        place = rank[repeated] - (some > its).sum(-1, keepdim=True)
        token[repeated] = _first((some == its).cumsum(-1) > place)
    return token


def check_scale(cfg_scale: float) -> None:
    """Raise VqtoolError unless it can be a guidance scale."""
    if not (math.isfinite(cfg_scale) and cfg_scale >= 0):
        raise VqtoolError(f"`cfg_scale` {cfg_scale:g}: must be 0 or more (1 is off)")


def check_temperature(temperature: float) -> None:
    """Raise VqtoolError unless it can be a temperature."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise VqtoolError(f"`temperature` {temperature:g}: must be above 0 (1 is off)")


def check_truncation(truncation: float, top_k: int | None) -> None:
    """Raise VqtoolError unless both can be used for truncation."""
    if not 0 < truncation <= 1:
        raise VqtoolError(f"`truncation` {truncation:g}: must be above 0 and at most 1 (1 is off)")
    if top_k is not None and top_k < 1:
        raise VqtoolError(f"`top_k` {top_k}: must be 1 or more")


def _cuts(log_p: Tensor, truncation: float, top_k: int | None) -> bool:
    """Whether truncation removes any token."""
    check_truncation(truncation, top_k)
    return truncation < 1 or (top_k is not None and top_k < log_p.shape[-1])


def _cut(p: Tensor, truncation: float, top_k: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """(..., K) p from the largest down, (..., K) their float64 sums, and (..., 1) the place of the last kept."""
    ordered = torch.from_numpy(np.sort(p.numpy(), axis=-1)).flip(-1)  # 20 times as fast as torch on a CPU
    return ordered, *_find_last(ordered, truncation, top_k)


def _cut_with_order(p: Tensor, truncation: float, top_k: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """(..., K) the tokens from the likeliest down, equals in their order, and what else ``_cut`` gives."""
    ordered, order = p.sort(dim=-1, descending=True, stable=True)
    return order, *_find_last(ordered, truncation, top_k)


def _find_last(ordered: Tensor, truncation: float, top_k: int | None) -> tuple[Tensor, Tensor]:
    """(..., K) float64 sums of p from the largest down, and (..., 1) the place of the last that is kept."""
    mass = ordered.double().cumsum(-1)
    rate = mass.new_full((*mass.shape[:-1], 1), truncation if truncation < 1 else torch.inf)
    most = ordered.shape[-1] if top_k is None else min(top_k, ordered.shape[-1])
    return mass, torch.searchsorted(mass, rate).clamp(max=most - 1)


def _first(true: Tensor) -> Tensor:
    """Index of the first True over the last axis, on the CPU. NumPy stops searching there, torch does not."""
    return torch.from_numpy(np.asarray(true.numpy().argmax(-1)))
