"""Generated text in words and on the page: scores with intervals, the collapse check, and some of the answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

from finetune_api.generated_text import Collapse, Generation, GenerationScore
from finetune_api.generation import GenerationMetric

from .record import AnswerSample, RunRecord

WORDS: dict[GenerationMetric, str] = {
    "exactMatch": "exact match",
    "rougeL": "ROUGE-L",
    "jsonValid": "valid JSON",
    "jsonSchema": "valid by schema",
    "regex": "pattern matches",
    "stops": "ends by itself",
    "length": "length in tokens",
}
_BREAKS = re.compile(r"\s*\n\s*\n\s*\n\s*")
_PLAIN: dict[GenerationMetric, str] = {"rougeL": ".3f", "length": ".1f"}
"""Of what is not a share."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One metric, as people read it."""

    metric: str
    base: str
    tuned: str
    change: str
    interval: str
    verdict: str


def lines(found: Generation | None) -> Iterator[Line]:
    """In the order of evaluation.generate.metrics."""
    for score in found.scores if found is not None else ():
        unit = " points" if _share(score) and score.difference is not None else ""
        yield Line(
            metric=WORDS[score.metric],
            base=_value(score, score.base),
            tuned=_value(score, score.tuned),
            change=f"{_change(score, score.difference)}{unit}",
            interval="" if score.low is None else f"[{_change(score, score.low)}, {_change(score, score.high)}]",
            verdict=score.verdict or "",
        )


def sentence(found: Collapse | None) -> str:
    """The collapse check; empty text without one."""
    if found is None:
        return ""
    told = found.told().replace("-", "−")
    return f"{told[0].upper()}{told[1:]}."


def section(report: RunRecord) -> str:
    """The page's part; empty text where nothing was generated."""
    found = report.evaluation.generation
    if found is None:
        return ""
    head = ("metric", "base", "tuned", "change", "95 % interval", "verdict")
    body = ((each.metric, each.base, each.tuned, each.change, each.interval, each.verdict) for each in lines(found))
    note = (
        f"Greedy answers of both models to {found.rows:,} prompts of the {found.name} rows; intervals are of the "
        "paired difference."
    )
    scores = f'<div class="panel">{_table(head, body)}<p class="note">{note}</p></div>'
    return "".join([scores, _collapse(report.evaluation.collapse), *_shown(report)])


def _shown(report: RunRecord) -> Iterator[str]:
    for why, title in _TITLES.items():
        if shown := [each for each in report.answers if each.why == why]:
            named = escape(title.format(metric=_named(shown[0])))
            yield f'<div class="panel"><h3>{named}</h3>{_answers(shown)}</div>'


_TITLES = {
    "sample": "Answers side by side",
    "gained": "Answers that improved most ({metric})",
    "lost": "Answers that got worse most ({metric})",
}


def _collapse(found: Collapse | None) -> str:
    if found is None:
        return ""
    head = ("variety", "base", "tuned", "drop", "interval")
    body = [
        (
            f"{each.mode} {each.name}",
            f"{each.base:.3f}",
            f"{each.tuned:.3f}",
            f"{each.drop:+.3f}",
            f"[{each.low:+.3f}, {each.high:+.3f}]",
        )
        for each in found.figures
    ]
    body += [
        (f"{each.mode} {name}", before, after, "", "")
        for each in found.endings
        for name, before, after in (
            ("length in tokens", f"{each.base_length:.1f}", f"{each.tuned_length:.1f}"),
            ("ends by itself", f"{each.base_stops * 100:.1f} %", f"{each.tuned_stops * 100:.1f} %"),
        )
    ]
    note = (
        "Different n-grams by n-grams, and bits per token of each answer's own tokens. The drop is from the base "
        "model's answers, cut to the same length, or from the reference answers, whichever is smaller; intervals are "
        "adjusted for the number of figures."
    )
    table = _table(head, ((name, *(cell.replace("-", "−") for cell in cells)) for name, *cells in body))
    return f'<div class="panel"><p>{escape(sentence(found))}</p>{table}<p class="note">{note}</p></div>'


def _answers(shown: list[AnswerSample]) -> str:
    head = ("prompt", "reference", "base", "tuned")
    heads = "".join(f"<th>{name}</th>" for name in head)
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(_seen(getattr(each, name)))}</td>' for name in head)}</tr>" for each in shown
    )
    return (
        f'<div class="scroll"><table class="answers"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _seen(text: str) -> str:
    """Without the pages of line breaks that some models write, and with words in place of what cannot be seen."""
    if not text.strip():
        return f"({len(text)} characters of white space)" if text else "(nothing)"
    return _BREAKS.sub(lambda found: f"\n({found[0].count(chr(10))} line breaks)\n", text)


def _table(head: tuple[str, ...], body: Iterator[tuple[str, ...]]) -> str:
    rows = "".join(
        f'<tr><td class="name">{escape(name)}</td>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in body
    )
    heads = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _named(sample: AnswerSample) -> str:
    return next((words for metric, words in WORDS.items() if metric == sample.metric), sample.metric or "")


def _share(score: GenerationScore) -> bool:
    return score.metric not in _PLAIN


def _value(score: GenerationScore, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value * 100:.1f} %" if _share(score) else format(value, _PLAIN[score.metric])


def _change(score: GenerationScore, value: float | None) -> str:
    if value is None:
        return ""
    shown = f"{value * 100:+.1f}" if _share(score) else format(value, f"+{_PLAIN[score.metric]}")
    return shown.replace("-", "−")
