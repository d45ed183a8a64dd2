"""The page of an analysis: curves over a model's layers, then all that was printed. Self-contained, as the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from .style import CSS
from .xy import Line, chart


@dataclass(frozen=True, kw_only=True)
class Curves:
    """One chart. The points of a line are (layer, value)."""

    title: str
    up: str
    show: Callable[[float], str]
    lines: tuple[Line, ...]


def page(*, title: str, lead: str, curves: Sequence[Curves], text: str) -> str:
    """The page's HTML; text: as on a terminal."""
    panels = "".join(panel(each) for each in curves)
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        '<meta name="color-scheme" content="light dark"/>'
        f"<title>{escape(title)} · analysis</title><style>{CSS}</style></head>"
        f'<body><main><header><p class="eyebrow">Analysis</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{escape(lead)}</p></header><section><div class="small">{panels}</div></section>'
        f"<section><h2>All numbers</h2><pre>{escape(text)}</pre></section></main></body></html>\n"
    )


def panel(curves: Curves) -> str:
    """The chart, with its title and legend."""
    legend = "".join(f'<span><i class="key {line.role}"></i>{escape(line.name)}</span>' for line in curves.lines)
    drawn = chart(curves.lines, across="layer", up=curves.up, show=curves.show)
    return f'<div class="panel"><h3>{escape(curves.title)}</h3><p class="legend">{legend}</p>{drawn}</div>'
