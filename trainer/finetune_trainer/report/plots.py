"""Curves as inline SVG: one axis a plot, units on it, values in hover titles, colours from the page's style sheet.

Series    points of one line or of a row of dots
plot      the SVG of one or more series over optimizer steps
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal, NamedTuple

MOST_POINTS = 400
"""Drawn per line; longer curves are averaged in buckets, as the screen would do anyway."""
MOST_TITLES = 100
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 14, 12, 40


class Point(NamedTuple):
    step: float
    value: float


@dataclass(frozen=True, kw_only=True)
class Series:
    """`role` names the CSS class: raw (thin, pale), line, dots."""

    name: str
    points: tuple[Point, ...]
    role: Literal["raw", "line", "dots"] = "line"


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The values' axis."""

    label: str
    show: Callable[[float], str]
    from_zero: bool = False


def plot(series: Sequence[Series], *, axis: Axis, title: str, width: int = 720, height: int = 300) -> str:
    """The SVG element; empty text if there is nothing to draw."""
    drawn = [s for s in (_finite(s) for s in series) if s.points]
    if not drawn:
        return ""
    frame = _frame(drawn, axis, width, height)
    parts = [_grid(frame, axis), *(_draw(s, frame, axis) for s in drawn)]
    summary = f"{title}: " + "; ".join(f"{s.name} {axis.show(s.points[-1].value)} at the end" for s in drawn)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(summary)}" class="plot">'
        f"{''.join(parts)}</svg>"
    )


def smooth(points: Sequence[Point], *, half_life: float) -> tuple[Point, ...]:
    """Exponential moving average with the start's bias removed: after `half_life` points a value counts half."""
    keep = 0.5 ** (1 / max(half_life, 1e-9))
    total = weight = 0.0
    found = []
    for point in points:
        total = keep * total + (1 - keep) * point.value
        weight = keep * weight + (1 - keep)
        found.append(Point(point.step, total / weight))
    return tuple(found)


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers within [low, high]: multiples of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 2.5, 5) if m * power >= rough * 0.999), 10 * power)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


class _Frame(NamedTuple):
    width: int
    height: int
    steps: tuple[float, float]
    values: tuple[float, float]

    def x(self, step: float) -> float:
        low, high = self.steps
        return _LEFT + (step - low) / (high - low) * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high = self.values
        share = (min(max(value, low), high) - low) / (high - low)
        return self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM)


def _frame(series: Sequence[Series], axis: Axis, width: int, height: int) -> _Frame:
    steps = [p.step for s in series for p in s.points]
    values = [v for s in series for v in _range(s)]
    low, high = min(values), max(values)
    if axis.from_zero:
        low = min(0.0, low)
    margin = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
    first, last = min(steps), max(steps)
    bottom = low if axis.from_zero and low == 0 else low - margin
    return _Frame(width, height, (first, last if last > first else first + 1), (bottom, high + margin))


def _range(series: Series) -> tuple[float, float]:
    """Of raw curves all but the most extreme hundredth on each side, so that one spike does not flatten the rest."""
    values = sorted(p.value for p in series.points)
    cut = len(values) // 100 if series.role == "raw" else 0
    return values[cut], values[-1 - cut]


def _grid(frame: _Frame, axis: Axis) -> str:
    right, bottom = frame.width - _RIGHT, frame.height - _BOTTOM
    parts = []
    for value in ticks(*frame.values):
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{axis.show(value)}</text>')
    for step in ticks(*frame.steps, about=max(3, frame.width // 120)):
        if step == int(step):
            x = frame.x(step)
            parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{step:,.0f}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(
        f'<text class="label" transform="translate(13 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{escape(axis.label)}</text>"
    )
    parts.append(f'<text class="label" x="{right}" y="{frame.height - 6}" text-anchor="end">optimizer step</text>')
    return "".join(parts)


def _draw(series: Series, frame: _Frame, axis: Axis) -> str:
    points = _thin(series.points, MOST_POINTS)
    places = [(frame.x(p.step), frame.y(p.value)) for p in points]
    line = "".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(places))
    parts = [f'<path class="{series.role}" d="{line}"/>'] if len(points) > 1 else []
    if series.role != "raw":
        radius = 4 if series.role == "dots" else 7
        spots = points if series.role == "dots" else _thin(points, MOST_TITLES)
        name = "dot" if series.role == "dots" or len(points) == 1 else "spot"
        parts += [
            f'<circle class="{name}" cx="{frame.x(p.step):.1f}" cy="{frame.y(p.value):.1f}" r="{radius}">'
            f"<title>{escape(series.name)} {axis.show(p.value)} at step {p.step:,.0f}</title></circle>"
            for p in spots
        ]
    return "".join(parts)


def _thin(points: Sequence[Point], most: int) -> list[Point]:
    """Averages of equal buckets; the first and the last point stay as they are."""
    if len(points) <= most:
        return list(points)
    size = (len(points) - 2) / (most - 2)
    edges = [1 + round(i * size) for i in range(most - 1)]
    inner = [
        Point(sum(p.step for p in part) / len(part), sum(p.value for p in part) / len(part))
        for a, b in pairwise(edges)
        if (part := points[a:b])
    ]
    return [points[0], *inner, points[-1]]


def _finite(series: Series) -> Series:
    return Series(name=series.name, role=series.role, points=tuple(p for p in series.points if math.isfinite(p.value)))
