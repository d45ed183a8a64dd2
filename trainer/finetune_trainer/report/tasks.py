"""The page's part about tasks in sequence: the R-matrix as a heat map that is a table."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from finetune_api.measurements import HIGHER_IS_BETTER, Metric, Scores
from finetune_trainer.store.sequence import Sequence, value_of

from .compare import WORDS, number
from .record import RunRecord

_NOTE = (
    "Each row is one model, each column the test data of one task. Down a column from the task's own row: what later "
    "tasks cost it. The cell above its own row is the model that it started from. Darker is better, among all cells. "
    "The numbers are of one run with one seed; Before and after has an interval for each change by this job."
)


def section(report: RunRecord) -> str:
    """Empty for a run that does not continue from another."""
    sequence = report.continual
    if sequence is None:
        return ""
    metric = sequence.metric
    shades = _Shades(sequence, metric)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in sequence.names)
    body = "".join(_rows(sequence, metric, shades))
    told = f"<p>{escape(report.evaluation.continual.told())}.</p>" if report.evaluation.continual else ""
    caption = f"<caption>{WORDS[metric]} after each task, on the test data of each task</caption>"
    table = f'<table class="heat">{caption}<thead><tr><th scope="col">after</th>{head}</tr></thead><tbody>{body}'
    note = f'<p class="note">{_NOTE}</p>'
    return f'<div class="panel">{told}<div class="scroll">{table}</tbody></table></div>{note}</div>'


class _Shades:
    """How good a value is among all of the matrix, from 0 to 1."""

    def __init__(self, sequence: Sequence, metric: Metric) -> None:
        cells = [each for row in (sequence.base, *sequence.scores) for each in row if each is not None]
        values = [value for each in cells if (value := value_of(each, metric)) is not None]
        self.low, self.high, self.up = min(values), max(values), HIGHER_IS_BETTER[metric]

    def of(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return share if self.up else 1 - share


def _rows(sequence: Sequence, metric: Metric, shades: _Shades) -> Iterator[str]:
    if any(each is not None for each in sequence.base):
        yield _row("the original base model", sequence.base, metric, shades)
    for name, scores in zip(sequence.names, sequence.scores, strict=True):
        yield _row(name, scores, metric, shades, own=sequence.names.index(name))


def _row(name: str, scores: tuple[Scores | None, ...], metric: Metric, shades: _Shades, own: int = -1) -> str:
    cells = "".join(_cell(each, metric, shades, own=at == own) for at, each in enumerate(scores))
    return f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>'


def _cell(scores: Scores | None, metric: Metric, shades: _Shades, *, own: bool) -> str:
    value = None if scores is None else value_of(scores, metric)
    if value is None:
        return '<td title="not measured">–</td>'
    shade = round(100 * shades.of(value))
    shown = f"<b>{number(metric, value)}</b>" if own else number(metric, value)
    return f'<td style="--shade:{shade}%">{shown}</td>'
