"""The runs of a job with guards.maxAttempts, as a table: what each changed, what its guards said, and what it cost."""

from __future__ import annotations

from html import escape

from finetune_api.measurements import RemedyRun

HEADS = ("run", "what differs", "outcome", "guards", "process hours")
NOTE = (
    "A run follows only if the one before it violates a guard at every scale of the adapter. All runs are judged on "
    "the same rows, so one of several passes by chance more often than one alone. Process hours are those of "
    "optimizer steps."
)


def section(runs: tuple[RemedyRun, ...]) -> str:
    """The section's HTML; empty for a job without guards.maxAttempts."""
    if not runs:
        return ""
    head = "".join(f"<th>{name}</th>" for name in HEADS)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells(run))}</tr>" for run in runs)
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return f'<div class="panel">{table}<p class="note">{NOTE}</p></div>'


def cells(run: RemedyRun) -> tuple[str, ...]:
    """A row of the table."""
    cost = "" if run.cost is None else f"{run.cost:.3g}"
    return run.name, run.settings or "the manifest as it is", run.outcome, run.reason, cost
