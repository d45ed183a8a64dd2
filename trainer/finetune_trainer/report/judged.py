"""The page's parts about what tuning changed: verdict, cards, forest plots, the table, and what could not be seen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape

from finetune_api.measurements import Measurement

from .compare import METRICS, WORDS, Row, compare, difference, headline, interval_or_why, number, sentences, unseen
from .forest import forest
from .record import RunRecord

_MARKS = {"better": "✓", "worse": "✗", "equivalent": "≈", "inconclusive": "?"}
_STYLE = {"better": "better", "worse": "worse"}
_MINUS = re.compile(r"(?<!\w)-(?=\d)")


def rows_of(report: RunRecord) -> tuple[Row, ...]:
    """Data sets with all metrics; with the main one alone in older records."""
    return compare((*(report.measurements or report.evaluation.data), *report.sources))


def verdict(report: RunRecord, rows: tuple[Row, ...]) -> str:
    """The first thing on the page."""
    judged, found = headline(rows), report.evaluation
    gained, *others = sentences(rows) or ("No scores: the data set has neither validation nor test rows.",)
    told = [each.told() for each in found.negative_transfer]
    told += [found.scale.told()] if found.scale is not None and found.scale.chosen != 1 else []
    told += [found.kl_to_base.told()] if found.kl_to_base is not None else []
    told += [found.prior_gain.told()] if found.prior_gain is not None else []
    words = (gained, *_of_guards(report), *others, *map(_sentence, told))
    style = _STYLE.get(judged.verdict or "", "same") if judged else "same"
    if any(each.verdict == "violated" for each in found.guards):
        style = "worse"
    return f'<div class="verdict {style}">{"".join(f"<p>{escape(w)}</p>" for w in words)}</div>'


def _of_guards(report: RunRecord) -> Iterator[str]:
    """What they say of this artifact; nothing of those that are passed."""
    by = {
        verdict: ", ".join(each.name for each in report.evaluation.guards if each.verdict == verdict)
        for verdict in ("violated", "inconclusive")
    }
    if report.refused:
        yield f"This artifact was kept back: {report.refused}."
    elif by["violated"]:
        yield f"Published although it violates guards ({by['violated']}): guards.onViolation is warn."
    if by["inconclusive"]:
        yield f"Inconclusive guards: {by['inconclusive']}."


def _sentence(told: str) -> str:
    """With a capital, real minus signs and a full stop."""
    return f"{told[0].upper()}{_MINUS.sub('−', told[1:])}."


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
        "are adjusted for their number. An interval that crosses the line of no change shows no direction. Data sets "
        "with too few rows for an interval are in the table alone."
    )
    return f'{"".join(panels)}<p class="note">{note}</p>'


def comparison(rows: tuple[Row, ...]) -> str:
    if not rows:
        return ""
    others = "".join(f"<th>{head}</th>" for head in ("change", "95 % interval", "base", "tuned"))
    heads = f'<th>data set</th><th class="metric">metric</th>{others}'
    body = "".join(_lines(row) for row in rows)
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
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
        f'<tr><td class="name">{each.name}</td>'
        f'<td><span class="chip {styles.get(each.verdict, "same")}">{each.verdict}</span></td>'
        f"<td>{each.limit}</td><td>{_plain(each.value) or 'not measured'}</td>"
        f"<td>{'' if each.low is None else f'[{_plain(each.low)}, {_plain(each.high)}]'}</td>"
        f"<td>{f'{each.rows_needed:,}' if each.rows_needed else ''}</td></tr>"
        for each in report.evaluation.guards
    )
    if not rows:
        return ""
    names = ("guard", "verdict", "bound", "measured", "interval", "rows needed")
    head = "".join(f"<th>{name}</th>" for name in names)
    note = (
        "Passed: the whole interval keeps the bound. Violated: none of it does. Inconclusive: neither; about so many "
        "rows would decide."
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


def _chip(change: Measurement) -> str:
    shown = difference(change)
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
    return f"{row.rows:,} rows" + (f" in {row.groups:,} groups" if row.groups < row.rows else "")


def _lines(row: Row) -> str:
    """One for each metric, the main one first, next to the name of the data set."""
    name = (
        f'<td class="name" rowspan="{len(row.changes)}">{escape(row.name)}'
        f"<small>{_what(row)}, {_counted(row)}</small></td>"
    )
    return "".join(
        f'<tr>{"" if place else name}<td class="metric">{WORDS[change.metric]}</td><td>{_chip(change)}</td>'
        f"<td>{interval_or_why(change)}</td>"
        f'<td class="base">{number(change.metric, change.base)}</td><td>{number(change.metric, change.tuned)}</td></tr>'
        for place, change in enumerate(row.changes)
    )
