"""Forest plots: the change of each data set with its interval, next to the line of no change; one plot a metric."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from finetune_api.measurements import HIGHER_IS_BETTER, Metric

from .compare import WORDS, Row, difference, interval
from .plots import ticks

_LINE = 30
_TOP, _BOTTOM, _RIGHT = 10, 46, 18


def forest(metric: Metric, rows: Sequence[Row], *, width: int) -> str:
    """The SVG of the rows whose main metric this is; empty text where none has an interval."""
    drawn = [(row, row.main) for row in rows if row.main.metric == metric and row.main.low is not None]
    if not drawn:
        return ""
    scale = 100.0 if metric == "accuracy" else 1.0
    values = [0.0] + [scale * v for _, change in drawn for v in (change.low, change.high) if v is not None]
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or 1.0
    low, high = low - margin, high + margin
    left = min(220, max(90, width // 4))
    height = _TOP + _LINE * len(drawn) + _BOTTOM
    bottom = height - _BOTTOM

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - _RIGHT)

    parts = []
    for tick in ticks(low, high):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{_TOP}" y2="{bottom}"/>')
        shown = f"{tick:+.3g}".replace("-", "−") if tick else "0"
        parts.append(f'<text x="{x(tick):.1f}" y="{bottom + 17}" text-anchor="middle">{shown}</text>')
    parts.append(f'<line class="mark" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="{_TOP}" y2="{bottom}"/>')
    for place, (row, change) in enumerate(drawn):
        y = _TOP + _LINE * (place + 0.5)
        start, end, middle = (x(scale * (v or 0.0)) for v in (change.low, change.high, change.difference))
        style = change.verdict if change.verdict in ("better", "worse") else "same"
        told = f"{row.name}: {difference(change)} {interval(change)}, {change.verdict}"
        parts.append(
            f'<text x="{left - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(_short(_label(row), left))}</text>'
        )
        parts.append(
            f'<g class="effect {style}"><title>{escape(told)}</title>'
            f'<line x1="{start:.1f}" x2="{end:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<circle cx="{middle:.1f}" cy="{y:.1f}" r="5"/></g>'
        )
    unit = "points of accuracy" if metric == "accuracy" else WORDS[metric]
    good = "right" if HIGHER_IS_BETTER[metric] else "left"
    label = f"change of {unit}, 95 % interval; better is to the {good}"
    parts.append(f'<text class="label" x="{width - _RIGHT}" y="{height - 8}" text-anchor="end">{label}</text>')
    summary = "; ".join(f"{row.name} {difference(c)} {interval(c)} {c.verdict}" for row, c in drawn)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(f"Change of {unit}: {summary}")}" '
        f'class="plot">{"".join(parts)}</svg>'
    )


def _label(row: Row) -> str:
    """Files of general text come right below it and do not need its name as well."""
    return row.name.partition(": ")[2] if row.part else row.name


def _short(name: str, room: int) -> str:
    """As much of a name as fits next to the plot."""
    most = max(8, (room - 14) // 7)
    return name if len(name) <= most else f"{name[: most - 1]}…"
