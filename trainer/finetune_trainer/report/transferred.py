"""The page's part about negative transfer: each slice against the base model and against earlier artifacts."""

from __future__ import annotations

from html import escape
from typing import cast

from finetune_api.measurements import Metric

from .compare import METRICS, WORDS, number
from .record import RunRecord, SliceAgainst

_NOTE = (
    "Both models on the rows that both measured. The interval is of the difference and adjusted for the number of "
    "comparisons; p is one-sided, of a regression within the practical margin, and adjusted by Holm's method. Below "
    "0.05 the reference is better: negative transfer."
)


def section(report: RunRecord) -> str:
    """Empty without earlier artifacts: of the base model the table of all data sets says as much."""
    body = "".join(map(_row, report.against))
    if not body:
        return ""
    names = ("slice", "reference", "rows", "metric", "reference", "tuned", "difference", "interval", "p", "")
    head = "".join(f"<th>{name}</th>" for name in names)
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return f'<div class="panel">{table}<p class="note">{_NOTE}</p></div>'


def _row(found: SliceAgainst) -> str:
    known = found.metric in METRICS
    shown = [
        number(cast(Metric, found.metric), each) if known else _plain(each)
        for each in (found.reference_value, found.tuned_value)
    ]
    interval = "" if found.low is None or found.high is None else f"[{_plain(found.low)}, {_plain(found.high)}]"
    chip = '<span class="chip worse">negative transfer</span>' if found.flagged else ""
    cells = [
        f"{found.rows:,}",
        WORDS[cast(Metric, found.metric)] if known else escape(found.metric),
        *shown,
        _plain(found.difference),
        interval,
        "too few rows" if found.p_value is None else f"{found.p_value:.2g}",
        chip,
    ]
    names = f'<td class="name">{escape(found.slice)}</td><td class="name">{escape(found.reference)}</td>'
    return f"<tr>{names}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:+.4g}".replace("-", "−")
