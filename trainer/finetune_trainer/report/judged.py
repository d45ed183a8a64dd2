"""The page's parts about what tuning changed: verdict, cards, forest plots, the table, and what could not be seen."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from finetune_api.measurements import Measurement

from .compare import METRICS, WORDS, Row, compare, difference, headline, interval, number, sentences, unseen
from .forest import forest
from .record import RunRecord

_MARKS = {"better": "✓", "worse": "✗", "equivalent": "≈", "inconclusive": "?"}
_STYLE = {"better": "better", "worse": "worse"}


def rows_of(report: RunRecord) -> tuple[Row, ...]:
    """Data sets with all metrics; with the main one alone in older records."""
    return compare((*(report.measurements or report.evaluation.data), *report.sources))


def verdict(report: RunRecord, rows: tuple[Row, ...]) -> str:
    """The first thing on the page."""
    judged = headline(rows)
    words = sentences(rows) or ("No scores: the data set has neither validation nor test rows.",)
    if report.evaluation.scale is not None and report.evaluation.scale.chosen != 1:
        told = report.evaluation.scale.told()
        words = (*words, f"{told[0].upper()}{told[1:]}.")
    if report.evaluation.kl_to_base is not None:
        words = (*words, f"{report.evaluation.kl_to_base.told()}.")
    if report.evaluation.prior_gain is not None:
        told = report.evaluation.prior_gain.told()
        words = (*words, f"{told[0].upper()}{told[1:]}.")
    for each in report.evaluation.negative_transfer:
        told = each.told()
        words = (*words, f"{told[0].upper()}{told[1:]}.")
    if report.refused:
        words = (*words, f"This artifact was kept back: {report.refused}.")
    style = _STYLE.get(judged.verdict or "", "same") if judged else "same"
    return f'<div class="verdict {style}">{"".join(f"<p>{escape(w)}</p>" for w in words)}</div>'


def cards(rows: tuple[Row, ...]) -> Iterator[str]:
    if judged := headline(rows):
        yield from (_card(judged.name, change) for metric in METRICS[:2] if (change := judged.change(metric)))
    yield from (_card(row.name, row.main) for row in rows if row.kind == "general" and not row.part)


def changes(rows: tuple[Row, ...]) -> str:
    """Forest plots."""
    panels = []
    for metric in METRICS:
        wide, narrow = (forest(metric, rows, width=width) for width in (940, 440))
        if wide:
            plots = f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'
            panels.append(f'<div class="panel"><h3>{WORDS[metric].capitalize()}</h3>{plots}</div>')
    if not panels:
        return ""
    note = (
        "A dot is the change from base to tuned model on the same rows, its line the 95 % interval; those of slices "
        "are adjusted for their number. An interval that crosses the line of no change shows no direction."
    )
    return f'{"".join(panels)}<p class="note">{note}</p>'


def comparison(rows: tuple[Row, ...]) -> str:
    if not rows:
        return ""
    metrics = [m for m in METRICS if any(r.change(m) for r in rows)]
    groups = "".join(f'<th colspan="4" class="group">{WORDS[m]}</th>' for m in metrics)
    units = ["points" if m == "accuracy" else "change" for m in metrics]
    heads = "".join(f'<th class="group">base</th><th>tuned</th><th>{u}</th><th>95 % interval</th>' for u in units)
    body = "".join(
        f'<tr><td class="name">{escape(r.name)}<small>{_what(r)}</small></td><td>{_counted(r)}</td>'
        f"{''.join(_cells(r.change(m)) for m in metrics)}</tr>"
        for r in rows
    )
    table = (
        f"<table><thead><tr><th></th><th></th>{groups}</tr><tr><th>data set</th><th>rows</th>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )
    note = (
        "Both models used the same rows; intervals are of the paired difference. Equivalent: the 90 % interval lies "
        "within 1 point of accuracy, 0.02 of loss or 0.01 bits per byte. Better or worse: the 95 % interval excludes "
        "no change. Inconclusive: neither."
    )
    return f'<div class="panel"><div class="scroll">{table}</div><p class="note">{note}</p></div>'


def guarded(report: RunRecord) -> str:
    """A line for each guard of the manifest."""
    styles = {"passed": "better", "violated": "worse"}
    rows = "".join(
        f'<tr><td class="name">{each.name}</td><td>{each.bound:g}</td><td>{_plain(each.value)}</td>'
        f"<td>{'' if each.low is None else f'[{_plain(each.low)}, {_plain(each.high)}]'}</td>"
        f'<td><span class="chip {styles.get(each.verdict, "same")}">{each.verdict}</span></td>'
        f"<td>{f'{each.rows_needed:,}' if each.rows_needed else ''}</td></tr>"
        for each in report.evaluation.guards
    )
    if not rows:
        return ""
    names = ("guard", "bound", "measured", "interval", "verdict", "rows needed")
    head = "".join(f"<th>{name}</th>" for name in names)
    note = (
        "minGain bounds the gain from below, the others what may be lost. Passed: the whole interval keeps the bound. "
        "Violated: none of it does. Inconclusive: neither; about so many rows would decide."
    )
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f'<div class="panel">{table}<p class="note">{note}</p></div>'


def _plain(value: float | None) -> str:
    return "" if value is None else f"{value:+.4g}".replace("-", "−")


def not_seen(rows: tuple[Row, ...]) -> str:
    """Smallest changes that the rows would have shown, in plain words."""
    told = "".join(f"<dt>{escape(name)}</dt><dd>{escape(words)}</dd>" for name, words in unseen(rows))
    if not told:
        return ""
    note = "A change of that size shows in four of five such data sets (80 % power); more rows show smaller ones."
    return f'<div class="panel"><dl>{told}</dl><p class="note">{note}</p></div>'


def _card(name: str, change: Measurement) -> str:
    base = f"<span>from {number(change.metric, change.base)}</span> " if change.base is not None else ""
    return (
        f'<div class="card"><h3>{escape(name)} · {WORDS[change.metric]}</h3>'
        f"<b>{number(change.metric, change.tuned)}</b>{base}{_chip(change)}</div>"
    )


def _chip(change: Measurement, *, unit: bool = True) -> str:
    shown = difference(change, unit=unit)
    if change.verdict is None or not shown:
        return ""
    if not any(digit in shown for digit in "123456789"):  # nothing of it is left after rounding
        arrow, shown = "=", shown.lstrip("+−")
    else:
        arrow = "▲" if shown.startswith("+") else "▼"
    words = f"{arrow} {shown} {_MARKS[change.verdict]}"
    return f'<span class="chip {_STYLE.get(change.verdict, "same")}" title="{change.verdict}">{escape(words)}</span>'


def _what(row: Row) -> str:
    return {"slice": "held-out slice", "task": "earlier task", "general": "measures forgetting"}.get(
        row.kind, "held out"
    )


def _counted(row: Row) -> str:
    return f"{row.rows:,}" + (f" in {row.groups:,} groups" if row.groups < row.rows else "")


def _cells(change: Measurement | None) -> str:
    if change is None:
        return '<td class="group"></td><td></td><td></td><td></td>'
    base, tuned = number(change.metric, change.base), number(change.metric, change.tuned)
    chip = _chip(change, unit=False)
    return f'<td class="group base">{base}</td><td>{tuned}</td><td>{chip}</td><td>{interval(change)}</td>'
