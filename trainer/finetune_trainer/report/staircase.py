"""The ladder of a run as a staircase: a step for each rung with its score, interval and cost, and why it stopped."""

from __future__ import annotations

from html import escape

from finetune_api.ladder import LadderStatus, RungStatus

from .plots import ticks

_STEP, _LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 150, 64, 16, 20, 40, 230


def section(ladder: LadderStatus | None) -> str:
    """The section's HTML; empty for a run without a ladder."""
    if ladder is None:
        return ""
    rule = f"Rule: {ladder.rule} ({ladder.rule_reason})."
    costs = f"All rungs together cost {ladder.costs()}."
    words = f'<p>{escape(ladder.story)} {escape(costs)}</p><p class="note">{escape(rule)}</p>'
    return f'<div class="panel">{_stairs(ladder)}{_table(ladder)}</div><div class="panel">{words}</div>'


def _table(ladder: LadderStatus) -> str:
    names = ("rung", "score", "gain", "interval", "GPU hours", "decision")
    head = "".join(f"<th>{name}</th>" for name in names)
    base = ("base", _number(ladder.base_score), "", "", "", "")
    rows = [base, *(_cells(rung) for rung in ladder.rungs)]
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(rung: RungStatus) -> tuple[str, ...]:
    between = "" if rung.low is None or rung.high is None else f"[{rung.low:+.3g}, {rung.high:+.3g}]"
    gain = "" if rung.gain is None else f"{rung.gain:+.3g}"
    return rung.name, _number(rung.score), gain, between, _number(rung.cost), rung.decision or rung.state


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _stairs(ladder: LadderStatus) -> str:
    """The score of the base model and of each rung that was run; a line holds the interval of a rung's gain."""
    if ladder.base_score is None:
        return ""
    steps: list[tuple[str, float, float | None, float | None, str]] = [("base", ladder.base_score, None, None, "done")]
    best = ladder.base_score
    for rung in ladder.rungs:
        if rung.score is None:
            continue
        sign = 1.0 if rung.gain is None or rung.gain * (rung.score - best) >= 0 else -1.0
        low, high = (None if end is None else best + sign * end for end in (rung.low, rung.high))
        steps.append((rung.name, rung.score, low, high, rung.decision or ""))
        best = rung.score if rung.decision == "taken" else best
    seen = [v for _, score, low, high, _ in steps for v in (score, low, high) if v is not None]
    least, most = min(seen), max(seen)
    margin = (most - least) * 0.1 or 0.1
    least, most = least - margin, most + margin
    width, floor = _LEFT + _STEP * len(steps) + _RIGHT, _HEIGHT - _BOTTOM

    def y(value: float) -> float:
        return floor - (value - least) / (most - least) * (floor - _TOP)

    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="{_LEFT - 8}" y="{y(t) + 4:.1f}" text-anchor="end">{t:.3g}</text>'
        for t in ticks(least, most)
    ]
    for place, (name, score, low, high, decision) in enumerate(steps):
        left, style = _LEFT + _STEP * place, "better" if decision == "taken" else "same"
        middle = left + _STEP / 2
        bar = "" if low is None or high is None else _line(middle, middle, y(low), y(high))
        parts.append(
            f'<g class="effect {style}"><title>{escape(f"{name}: {score:.3g} {decision}")}</title>'
            f"{_line(left, left + _STEP, y(score), y(score))}{bar}"
            f'<circle cx="{middle:.1f}" cy="{y(score):.1f}" r="5"/></g>'
            f'<text x="{middle:.1f}" y="{floor + 20}" text-anchor="middle">{escape(name)}</text>'
        )
    label = escape(f"{ladder.metric or 'score'} of each rung")
    return f'<svg viewBox="0 0 {width} {_HEIGHT}" role="img" aria-label="{label}" class="plot">{"".join(parts)}</svg>'


def _line(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'
