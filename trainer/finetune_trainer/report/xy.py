"""A small chart of points over a horizontal axis that starts at 0: the curve of scales, and reliability."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from .plots import Point, ticks

_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 12, 40


@dataclass(frozen=True, kw_only=True)
class Line:
    """Points by rising x; `role` is a class of the style sheet: line or dots."""

    name: str
    points: tuple[Point, ...]
    role: str = "line"


def chart(
    lines: Sequence[Line],
    *,
    across: str,
    up: str,
    show: Callable[[float], str],
    diagonal: bool = False,
    width: int = 440,
    height: int = 300,
) -> str:
    """The SVG element; empty text without points. diagonal: both axes are shares, and x = y is drawn."""
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    right = 1.0 if diagonal else max(point.step for point in points) or 1.0
    low, high = min(0.0, *(p.value for p in points)), max(0.0, *(p.value for p in points))
    if diagonal:
        low, high = 0.0, 1.0
    margin = 0.0 if diagonal else (high - low) * 0.06 or 1.0
    low, high = low - margin, high + margin

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + x / right * (width - _LEFT - _RIGHT),
            height - _BOTTOM - (y - low) / (high - low) * (height - _TOP - _BOTTOM),
        )

    parts = []
    for tick in ticks(low, high):
        y = place(0, tick)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{show(tick)}</text>')
    for tick in ticks(0.0, right, about=4):
        x = place(tick, 0)[0]
        parts.append(f'<text x="{x:.1f}" y="{height - _BOTTOM + 17}" text-anchor="middle">{tick:g}</text>')
    if diagonal:
        (x1, y1), (x2, y2) = place(0, 0), place(1, 1)
        parts.append(f'<line class="axis" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    for line in lines:
        places = [place(*point) for point in line.points]
        path = "".join(f"{'L' if at else 'M'}{x:.1f} {y:.1f}" for at, (x, y) in enumerate(places))
        parts.append(f'<path class="{line.role}" d="{path}"/>')
        for (x, y), point in zip(places, line.points, strict=True):
            told = f"{line.name}: {show(point.value)} at {point.step:.3g}"
            style = "dot" if line.role == "dots" else "effect"
            parts.append(
                f'<g class="{style}"><title>{escape(told)}</title><circle class="dot" cx="{x:.1f}" cy="{y:.1f}" '
                'r="4"/></g>'
            )
    parts.append(
        f'<text class="label" x="{width - _RIGHT}" y="{height - 6}" text-anchor="end">{escape(across)}</text>'
        f'<text class="label" transform="translate(13 {(height - _BOTTOM + _TOP) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(up)}</text>'
    )
    told = "; ".join(
        f"{line.name}: {', '.join(f'{show(p.value)} at {p.step:.3g}' for p in line.points)}" for line in lines
    )
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(f"{up} by {across}: {told}")}" '
        f'class="plot">{"".join(parts)}</svg>'
    )
