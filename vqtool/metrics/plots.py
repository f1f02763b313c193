"""Plots of scores as PNG files: the only module that needs matplotlib, and only when a plot is asked for.

The same numbers give the same bytes: no date and no version is written, and no global setting of matplotlib is touched.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqtool.errors import VqtoolError
from vqtool.extras import install_command
from vqtool.metrics.compare.file import CPU, Row
from vqtool.metrics.compare.trials import find_front
from vqtool.outputs import atomic_path

MAX_BARS = 64
CALLS = "calls"
_SIZE, _DOTS = (6.4, 3.6), 110  # inches, dots an inch
_PANEL = (5.2, 4.2)  # inches
_COLUMNS = 3  # of panels
_COLOURS = (
    "#204a73",
    "#c8553d",
    "#3a7d44",
    "#8e5ea2",
    "#b8860b",
    "#2a9d8f",
    "#7f7f7f",
    "#d47fa6",
    "#111111",
    "#88a035",
)
_MARKERS = ("o", "s", "^", "D", "v", "P")


def check_matplotlib() -> None:
    """Raise unless pictures can be made: to be called before the work whose result they show.

    Raises:
        VqtoolError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise VqtoolError(f"a plot needs matplotlib ({error}): {install_command('eval')}") from error


def plot_curve(curve: Mapping[str, list[Any]], path: str | Path, *, force: bool = False) -> None:
    """Write a PNG file of the bits per token that each step adds to the bound, with two standard errors.

    Args:
        curve: t, looks, bits_per_token: `likelihood.Likelihood.curve`. Where T is large, neighbours share a bar.
        path: the file.
        force: overwrite what is there.

    Raises:
        VqtoolError: the file exists and `force` is off, or matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    edges, bits, errors = bars(curve)
    figure = Figure(figsize=_SIZE, dpi=_DOTS, layout="constrained")
    axes = figure.add_subplot()
    axes.stairs(bits, edges, fill=True, color="#9fbfdf")
    centres = (edges[:-1] + edges[1:]) / 2
    axes.errorbar(centres, bits, 2 * errors, fmt="none", ecolor="#204a73", elinewidth=1)
    axes.set(xlabel="t (1: clean, T: noisiest)", ylabel="bits per token and step", xlim=(edges[0], edges[-1]))
    axes.set_ylim(bottom=0)
    axes.set_title("Where the bits arise: the area is the bound without its stationary term", size=10)
    with atomic_path(path, force=force) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def bars(curve: Mapping[str, list[Any]]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The curve as at most MAX_BARS bars over equally many steps, but t = 1, the decoder, by itself.

    Args:
        curve: t, looks (samples of that t), bits_per_token and standard_errors.

    Returns:
        The edges (n + 1,), and of each bar the mean of its samples and its standard error (n,), 0 if not known.
    """
    t, samples, bits, errors = (
        np.array([np.nan if x is None else x for x in curve[name]], dtype=np.float64)
        for name in ("t", "looks", "bits_per_token", "standard_errors")
    )
    width = max(1, -(-int(t[-1] - 1) // (MAX_BARS - 1)))
    bar = np.where(t == 1, 0, 1 + (t - 2) // width).astype(np.int64)
    count = np.bincount(bar, samples)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(bar, samples * bits) / count
        # The variance in a bar is that of the noise at each t and that of the means of its t.
        inside = np.where(samples > 1, np.nan_to_num(errors) ** 2 * samples * (samples - 1), 0.0)
        squares = np.bincount(bar, inside + samples * (bits - mean[bar]) ** 2)
        error = np.sqrt(squares / count / (count - 1))
    last = np.minimum(1.5 + width * np.arange(1, len(mean)), t[-1] + 0.5)
    return np.concatenate([[0.5, 1.5], last]), mean, np.where(np.isfinite(error), error, 0.0)


def plot_usage(counts: NDArray[np.int64], path: str | Path, *, force: bool = False) -> None:
    """Write a PNG file of a token histogram: the tokens of each code, from the most to the least used one.

    Args:
        counts: (K,) tokens of each code, not all 0.
        path: the file.
        force: overwrite what is there.

    Raises:
        VqtoolError: the file exists and `force` is off, or matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    used = int((counts > 0).sum())
    figure = Figure(figsize=_SIZE, dpi=_DOTS, layout="constrained")
    axes = figure.add_subplot()
    axes.stairs(np.sort(counts)[::-1][:used], np.arange(used + 1), fill=True, baseline=0.5, color="#9fbfdf")
    axes.axhline(counts.mean(), color="#204a73", linewidth=1, linestyle="--", label="if all were used alike")
    if used < len(counts):
        axes.axvspan(used, len(counts), color="#eeeeee", label=f"{len(counts) - used} never used")
    axes.set(xlabel="codes, the most used first", ylabel="tokens", yscale="log", xlim=(0, len(counts)))
    axes.set_ylim(bottom=0.5)
    axes.legend(loc="upper right", frameon=False, fontsize=8)
    axes.set_title(f"{used} of {len(counts)} codes in use ({used / len(counts):.1%})", size=10)
    with atomic_path(path, force=force) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def plot_front(rows: Sequence[Row], scores: Mapping[str, str], path: str | Path, *, force: bool = False) -> None:
    """Write a PNG file of scores against network calls, and CPU seconds, with two standard errors, and the best.

    Args:
        rows: from `trials.measure_trial`.
        scores: names of values, a panel each, and whether "lower" or "higher" ones are better.
        path: the file.
        force: overwrite what is there.

    Raises:
        VqtoolError: the file exists and `force` is off, or matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    series: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.values["calls"]):
        series.setdefault(row.trial.series, []).append(row)
    costs = [CALLS, *([CPU] if all(CPU in row.values for row in rows) else [])]
    panels = [(score, better, cost) for cost in costs for score, better in scores.items()]
    columns = min(_COLUMNS, len(scores))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(_PANEL[0] * columns, _PANEL[1] * lines), dpi=_DOTS, layout="constrained")
    for place, (score, better, cost) in enumerate(panels, start=1):
        axes = figure.add_subplot(lines, columns, place)
        for number, name in enumerate(sorted(series)):
            _plot_series(axes, series[name], score, name, number, cost)
        points = [(row.values[cost], row.values[score]) for row in rows]
        front = [points[index] for index in find_front(points, better=better)]
        style: dict[str, Any] = {"color": "#dddddd", "linewidth": 6, "zorder": 0, "drawstyle": "steps-post"}
        axes.plot(*zip(*front, strict=True), **style, label="the best for so much")
        if cost == CALLS:
            _label_calls(axes, sorted({round(calls) for calls, _ in points}))
        else:
            axes.set_xscale("log")
            axes.set(xlabel="CPU seconds a picture")
        axes.set(ylabel=f"{score} ({better} is better)")
        axes.grid(axis="y", color="#eeeeee")
        if place == 1:
            axes.legend(frameon=False, fontsize=8)
            axes.set_title("bars: two standard errors", size=8, loc="left")
    with atomic_path(path, force=force) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def _plot_series(axes: Any, rows: Sequence[Row], score: str, name: str, number: int, cost: str) -> None:
    costs, values = ([row.values[key] for row in rows] for key in (cost, score))
    errors = [2 * row.standard_errors.get(score, 0.0) for row in rows]
    style = {"color": _COLOURS[number % len(_COLOURS)], "marker": _MARKERS[number % len(_MARKERS)]}
    axes.errorbar(costs, values, errors, label=name, markersize=5, linewidth=1.2, elinewidth=1, capsize=2, **style)


def _label_calls(axes: Any, calls: Sequence[int]) -> None:
    """An axis of network calls on a logarithmic scale, with ticks at powers of two."""
    low, high = (int(np.floor(np.log2(max(1, calls[0])))), int(np.ceil(np.log2(max(1, calls[-1])))))
    ticks = [2**power for power in range(low, high + 1)]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set(xlabel="network calls a picture")
