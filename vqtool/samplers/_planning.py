"""Planned times: the calls of a walk, chosen so that the bound on its error is as small as so many calls allow.

The law that a walk along t_0 > t_1 > ... > 0 draws from is off by at most

    KL(data || walk) <= sum over its calls of L(t -> s) + stationary term - entropy of the data,

L(t -> s) = E KL(q(x_s | x_t, x_0) || p(x_s | x_t)). For a kernel that only masks, L(t -> s) is the cross-entropy of a
masked cell at t times the share of cells that open, so the bound of single steps, which `eval --likelihood` measures by
t, says all: L(t -> s) = L(t -> t - 1) (u_s - u_t) / (u_{t-1} - u_t) with u = alpha_bar. For kernels that replace tokens
u_t is the share of log K that x_t tells of a token that may be any of the K, and the formula an approximation. Which
times are best then is a shortest path, found by dynamic programming.

Measured numbers are noisy. What a unit of u costs cannot fall with t where there are masks alone, since more noise
tells less: the nearest numbers that rise are taken (isotonic regression).
Source: Park et al. 2024, Jump Your Steps (arXiv:2410.07761): the same bound and search, for continuous time.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtool.diffusion.kernels import Kernel
from vqtool.errors import FormatError, VqtoolError
from vqtool.trust import read_json

MOST_TIMES = 512  # to choose from: of more, evenly many
CURVE = "curve"  # in summaries of priors and in reports of `eval --likelihood`

Numbers = NDArray[np.float64]


def find_curve(summary: Mapping[str, Any], file: str | None) -> Mapping[str, Any]:
    """The bound by t of a prior: what `eval --likelihood` wrote to a file, or what its training has measured.

    Raises:
        FormatError: the file holds no such curve.
        VqtoolError: there is none.
    """
    if file is not None:
        found = read_json(Path(file)).get(CURVE)
        if not isinstance(found, dict):
            raise FormatError(f"{file}: no curve in it: it is not what `vqtool eval --likelihood GRIDS -o FILE` writes")
        return found
    found = summary.get(CURVE)
    if not isinstance(found, Mapping):
        raise VqtoolError(
            "`times` auto goes by how much of the bound each t adds, which this prior does not say: measure it with "
            "`vqtool eval --likelihood GRIDS --prior PRIOR -o likelihood.json` and name that file with `curve`"
        )
    return found


def plan_times(curve: Mapping[str, Any], kernel: Kernel, start: int, steps: int) -> list[int]:
    """The times of a walk of so many calls with the least bound on its error.

    Args:
        curve: t, looks and bits_per_token, as in `metrics.likelihood`.
        kernel: of the prior.
        start: where the walk begins.
        steps: calls, at most `start`.

    Returns:
        steps + 1 falling times, from `start` to 0.

    Raises:
        FormatError: the curve is damaged or of another kernel.
    """
    slopes = find_slopes(curve, kernel)
    times = np.arange(start + 1)
    if start > MOST_TIMES:
        times = np.unique(np.linspace(0, start, max(MOST_TIMES, steps + 1)).round().astype(np.int64))
    told = information(kernel)[times]
    costs = slopes[times][:, None] * (told[None] - told[:, None])  # [t, s]
    return [int(times[place]) for place in shortest(costs, steps)]


def information(kernel: Kernel) -> Numbers:
    """Which share of log K x_t tells of a token that may be any of the K: (T + 1,), from 1 to about 0."""
    gamma, size = kernel.gamma_bar.numpy(), kernel.codebook_size
    kept = np.divide(kernel.alpha_bar.numpy(), 1 - gamma, out=np.zeros_like(gamma), where=gamma < 1)
    other = (1 - kept) / size
    right = kept + other
    entropy = -right * np.log(right) - (size - 1) * other * np.log(np.where(other > 0, other, 1.0))
    return (1 - gamma) * (1 - entropy / np.log(size)) if size > 1 else 1 - gamma


def shortest(costs: Numbers, steps: int) -> list[int]:
    """The cheapest way from the last place to place 0 in exactly so many falling jumps.

    Args:
        costs: (n, n): [t, s] of the jump from t to s < t; others are not looked at.
        steps: in [1, n - 1].
    """
    places = len(costs)
    costs = np.where(np.tri(places, k=-1, dtype=bool), costs, np.inf)
    best = np.full(places, np.inf)
    best[0] = 0.0
    choices = []
    for _ in range(steps):
        whole = costs + best  # [t, s]: from t over s to 0
        choices.append(whole.argmin(1))
        best = whole.min(1)
    way = [places - 1]
    for choice in reversed(choices):
        way.append(int(choice[way[-1]]))
    return way


def find_slopes(curve: Mapping[str, Any], kernel: Kernel) -> Numbers:
    """What a unit of `information` costs at each t, (T + 1,), rising; the entry of t = 0 is unused.

    Raises:
        FormatError: the curve is damaged or of another kernel.
    """
    try:
        known = [i for i, bits in enumerate(curve["bits_per_token"]) if bits is not None]
        t, bits, looks = (
            np.array([curve[name][i] for i in known], np.float64) for name in ("t", "bits_per_token", "looks")
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FormatError(f"the curve of the likelihood is damaged: {error!r}") from error
    told, last = information(kernel), kernel.num_steps
    inside = len(t) > 0 and np.isfinite(bits).all() and (looks > 0).all() and (np.diff(t) > 0).all()
    if not inside or t[0] < 1 or t[-1] > last or not (t == t.round()).all():
        raise FormatError(f"the curve of the likelihood is damaged, or of a prior with other steps than {last}")
    place = t.astype(np.int64)
    lost = told[place - 1] - told[place]
    some = lost > 1e-12
    slopes = _isotonic((bits[some] / lost[some]).clip(min=0), looks[some])
    return np.interp(np.arange(last + 1), t[some], slopes) if some.any() else np.ones(last + 1)


def _isotonic(values: Numbers, weights: Numbers) -> Numbers:
    """The nearest rising numbers, by pooling neighbours that fall."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, how many
    for value, weight in zip(values, weights, strict=True):
        mean, total, count = float(value), float(weight), 1
        while blocks and blocks[-1][0] >= mean:
            before, own, many = blocks.pop()
            mean = (mean * total + before * own) / (total + own)
            total, count = total + own, count + many
        blocks.append((mean, total, count))
    return np.repeat([mean for mean, _, _ in blocks], [count for _, _, count in blocks])
