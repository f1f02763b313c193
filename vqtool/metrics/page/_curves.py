"""Curves and bars as SVG, which a page holds as text."""

import math

from vqtool.metrics.exhibits import Curve
from vqtool.metrics.page._text import show

_WIDTH, _HEIGHT = 640, 260  # units of the drawing
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 10, 42
_COLOUR, _DARK = "#7da7cf", "#2d5f8f"
_MOST_BARS = 256
_TICKS = 5
_MOST_NAMED = 6  # points of which each has its number below it


def draw(curve: Curve) -> str:
    """A curve as an SVG element: bars from zero, or a line with its points and two standard errors."""
    points = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if not points:
        return "<p>no numbers</p>"
    points = _thinned(points) if curve.bars else points
    errors = list(curve.errors) if curve.errors else [0.0] * len(curve.y)
    known = [(y, e) for y, e in zip(curve.y, errors, strict=True) if math.isfinite(y) and math.isfinite(e)]
    ends = [y + 2 * sign * e for y, e in known for sign in (-1, 1)] if curve.errors else [y for _, y in points]
    low, high = min(ends), max(ends)
    if curve.bars:
        low = min(0.0, low)
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    first, last = points[0][0], points[-1][0]
    half = (last - first) / max(1, len(points) - 1) / 2 if curve.bars else 0.0
    first, last = first - (half or 0.5 * (first == last)), last + (half or 0.5 * (first == last))

    def across(x: float) -> float:
        return _LEFT + (x - first) / (last - first) * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - low) / ((high - low) or 1) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{down(tick):.1f}" y2="{down(tick):.1f}" stroke="#8884"/>'
        f'<text x="{_LEFT - 6}" y="{down(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in ticks
    ]
    if curve.bars:
        width = max(0.5, (_WIDTH - _LEFT - _RIGHT) / len(points) - 0.5)
        parts += [
            f'<rect x="{across(x) - width / 2:.1f}" width="{width:.1f}" y="{down(max(y, 0)):.1f}" '
            f'height="{abs(down(0) - down(y)):.1f}" fill="{_COLOUR}"/>'
            for x, y in points
        ]
    else:
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_DARK}" stroke-width="1.5"/>')
        if len(points) <= _MOST_BARS:
            parts += [f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="2.5" fill="{_DARK}"/>' for x, y in points]
    if curve.errors and len(points) <= _MOST_BARS:
        parts += [
            f'<line x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{down(y - 2 * e):.1f}" y2="{down(y + 2 * e):.1f}" '
            f'stroke="{_DARK}"/>'
            for x, y, e in zip(curve.x, curve.y, errors, strict=True)
            if math.isfinite(y) and math.isfinite(e)
        ]
    named = points[1:-1] if len(points) <= _MOST_NAMED else []
    ends_of_axis = ((points[0][0], "start"), (points[-1][0], "end"))
    for x, anchor in (*ends_of_axis, *((x, "middle") for x, _ in named)):
        parts.append(f'<text x="{across(x):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="{anchor}">{x:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{show(curve.x_name)}</text>')
    parts.append(
        f'<text transform="translate(12 {(_HEIGHT - _BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        f"{show(curve.y_name)}</text>"
    )
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img">{"".join(parts)}</svg>'


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers that span a range."""
    step = 10 ** math.floor(math.log10((high - low) / _TICKS)) if high > low else abs(high) or 1.0
    step *= next((m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= _TICKS), 10)
    first = math.floor(low / step)
    return [round((first + i) * step, 12) for i in range(math.ceil(high / step) - first + 1)]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most _MOST_BARS bars, each the mean of its neighbours."""
    size = -(-len(points) // _MOST_BARS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in each) / len(each), sum(y for _, y in each) / len(each)) for each in groups]
