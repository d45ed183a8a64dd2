"""Failures, scores and numbers as plain text, the same for terminals, logs and `status`."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence

from finetune_api.generated_text import Generation
from finetune_api.ladder import LadderStatus, RungStatus
from finetune_api.manifest import Problem
from finetune_api.measurements import Evaluation, Measurement, shown
from finetune_api.progress_text import progress_line
from finetune_api.reasons import FailureClass
from finetune_api.restarts import BUDGETS
from finetune_api.status import Artifact, FineTuneJobStatus, LastFailure, Phase, Restarts, Usage
from finetune_trainer.report import generated
from finetune_trainer.report.compare import WORDS, Row, compare, difference, interval_or_why, number

WIDTH = 100


def failure_block(failure: LastFailure, *, logs: str = "") -> str:
    """Describes a failure: class, reason, location, message, hint, page of the docs, and the log to read."""
    rows = [("reason", f"{failure.reason} (class {failure.failure_class})")]
    if failure.rank is not None or failure.node is not None:
        rank = "" if failure.rank is None else f"rank {failure.rank}"
        node = "" if failure.node is None else f"node {failure.node}"
        rows.append(("location", ", ".join(part for part in (rank, node, f"attempt {failure.attempt}") if part)))
    rows += [("message", failure.message), ("hint", failure.hint), ("docs", runbook(failure.failure_class))]
    if logs:
        rows.append(("logs", logs))
    return aligned((name, value) for name, value in rows if value)


def runbook(name: FailureClass) -> str:
    """Where the docs say what happens after such a failure, and list all fixes."""
    return f"docs/runbooks.md#{name.lower()}"


def aligned(rows: Iterable[tuple[str, str]], *, indent: str = "  ") -> str:
    """Formats rows with names on the left and wrapped values on the right."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    most = max(40, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))
    lines = []
    for name, value in rows:
        head = f"{indent}{name:<{width}}  "
        paragraphs = value.splitlines() or [""]
        for line, paragraph in enumerate(paragraphs):
            first = head if line == 0 else " " * len(head)
            lines.append(
                textwrap.fill(
                    paragraph, most, initial_indent=first, subsequent_indent=" " * len(head), break_long_words=False,
                    break_on_hyphens=False,
                )
            )  # fmt: skip
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = "  ") -> str:
    """Formats a table: the first column is aligned left, the others right."""
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        rest = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True))
        return f"{indent}{cells[0]:<{widths[0]}}  {rest}".rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *(line(row) for row in rows)])


def evaluation_table(rows: Sequence[Row], generation: Generation | None = None) -> str:
    """Before and after on the same rows, a line for each data set and each metric of generated text; empty text when
    nothing was measured."""
    head = ("", "rows", "metric", "base", "tuned", "change", "95 % interval", "verdict")
    lines = [_measured_line(row, change) for row in rows for change in row.changes]
    lines += [
        (f"{generation.name}, generated", f"{generation.rows:,}", each.metric, each.base, each.tuned, each.change,
         each.interval, each.verdict)
        for each in generated.lines(generation) if generation is not None
    ]  # fmt: skip
    return table(head, lines) if lines else ""


def guard_lines(evaluation: Evaluation | None) -> str:
    """A line for each guard, slice with negative transfer, KL to the base and scale; empty where there are none."""
    if evaluation is None:
        return ""
    lines = [f"  guard {each.told()}" for each in evaluation.guards]
    lines += [f"  run {each.told()}" for each in evaluation.remedies]
    lines += [f"  {each.told()}" for each in evaluation.negative_transfer]
    lines += [f"  {evaluation.calibration.told()}"] if evaluation.calibration else []
    lines += [f"  {evaluation.kl_to_base.told()}"] if evaluation.kl_to_base else []
    lines += [f"  {evaluation.continual.told()}"] if evaluation.continual else []
    lines += [f"  {evaluation.prior_gain.told()}"] if evaluation.prior_gain else []
    lines += [f"  scale: {evaluation.scale.told()}"] if evaluation.scale else []
    lines += [f"  collapse: {evaluation.collapse.told()}"] if evaluation.collapse else []
    if evaluation.omitted:
        lines.append(f"  {evaluation.omitted} more data sets did not fit into the status: see run.json in the artifact")
    return "\n".join(lines)


def _measured_line(row: Row, change: Measurement) -> tuple[str, ...]:
    name = shown(row.kind, row.name)
    values = number(change.metric, change.base), number(change.metric, change.tuned)
    return (
        name,
        f"{row.rows:,}",
        WORDS[change.metric],
        *values,
        difference(change),
        interval_or_why(change),
        change.verdict or "",
    )


def ladder_text(ladder: LadderStatus) -> str:
    """The rungs of a ladder, and why it stopped."""
    head = ("rung", "state", "score", "gain", "interval", "GPU hours", "decision")
    base = "" if ladder.base_score is None else f"{ladder.base_score:.3g}"
    rows = [("base", "done" if base else "planned", base, "", "", "", ""), *map(_rung_row, ladder.rungs)]
    text = [table(head, rows), f"  cost so far: {ladder.costs()}"]
    return "\n".join([*text, *textwrap.wrap(ladder.story, WIDTH, initial_indent="  ", subsequent_indent="  ")])


def _rung_row(rung: RungStatus) -> tuple[str, ...]:
    interval = "" if rung.low is None or rung.high is None else f"[{rung.low:+.3g}, {rung.high:+.3g}]"
    return (
        rung.name,
        rung.state,
        "" if rung.score is None else f"{rung.score:.3g}",
        "" if rung.gain is None else f"{rung.gain:+.3g}",
        interval,
        "" if rung.cost is None else f"{rung.cost:.3g}",
        rung.decision or "",
    )


def usage_line(usage: Usage) -> str:
    """`12.5 GPU hours (1.2 wasted), 31.25 EUR`."""
    cost = "" if usage.money is None else f", {usage.money:,.2f} {usage.currency or ''}".rstrip()
    return f"{usage.gpu_hours:,.1f} GPU hours ({usage.wasted_gpu_hours:,.1f} wasted){cost}"


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def artifact_rows(artifact: Artifact) -> list[tuple[str, str]]:
    uri = artifact.uri.rstrip("/")
    report = f"{uri}/report.html".removeprefix("file://")
    kind = f"{artifact.servable or artifact.kind}, {size(artifact.size_bytes)}, {artifact.digest[:19]}"
    rows = [("artifact", f"{uri} ({kind})"), ("report", report)]
    return rows + ([("switch test", artifact.switch_test.told())] if artifact.switch_test else [])


def problems_text(file: str, problems: Sequence[Problem]) -> str:
    """Formats validation errors, one per line, each with the path of its field."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{file}: {count}", *(f"  {problem}" for problem in problems)])


def why(status: FineTuneJobStatus) -> str:
    """Explains why a job is not running, as far as its last failure does not explain it already."""
    type = "Failed" if status.phase is Phase.Failed else "Running"
    found = next((c for c in status.conditions if c.type == type), None)
    failure = status.last_failure
    if found is None or status.phase in (None, Phase.Running, Phase.Succeeded):
        return ""
    if failure is None or not failure.message or failure.message not in found.message:
        return found.message
    beyond = found.message.partition(failure.message)[2]
    return beyond.removesuffix(f"({failure.hint})").strip(" ;")


def _restarts(restarts: Restarts | None) -> str:
    """Formats the number of restarts: ` (1 counted, 0 free restarts)`, and those of other budgets if there were any."""
    if restarts is None:
        return ""
    paid = [(restarts.paid_by(budget), budget) for budget in BUDGETS]
    counts = [f"{count} {budget.told}" for count, budget in paid if count or budget.always_told]
    return f" ({', '.join(counts)} restarts)"


def status_text(name: str, status: FineTuneJobStatus, *, logs: str = "") -> str:
    """Formats the status of a job for a terminal."""
    rows = [("job", name), ("phase", str(status.phase or "Pending"))]
    if reason := why(status):
        rows.append(("why", reason))
    if status.attempt is not None:
        rows.append(("attempt", f"{status.attempt}{_restarts(status.restarts)}"))
    if status.nodes is not None:
        rows.append(("nodes", str(status.nodes)))
    if avoided := [f"{node.name} (until {node.until})" for node in status.avoided_nodes or () if node.until]:
        rows.append(("avoided", ", ".join(avoided)))
    if status.progress is not None:
        rows.append(("progress", progress_line("", status.progress).strip()))
    if status.usage is not None:
        rows.append(("usage", usage_line(status.usage)))
    if (plan := status.plan) is not None:
        layers = f" of the last {plan.trained_layers} layers" if plan.trained_layers else ""
        parts = [f"{plan.method}{layers}", plan.strategy, plan.precision]
        parts += [f"{plan.world_size} process(es)"] if plan.world_size else []
        parts += [f"rate {plan.learning_rate:g}"] if plan.learning_rate else []
        parts += [f"{plan.trainable_parameters:,} trained parameters"] if plan.trainable_parameters else []
        rows.append(("plan", ", ".join(part for part in parts if part)))
    rows += artifact_rows(status.artifact) if status.artifact else []
    rows += [("candidate", f"{status.candidate.uri} (kept back by a guard)")] if status.candidate else []
    text = [aligned(rows, indent="")]
    if status.conditions:
        text.append(table(
            ("condition", "status", "reason", "since"),
            [(c.type, c.status, c.reason, f"{c.last_transition_time[:19]}Z") for c in status.conditions],
        ))  # fmt: skip
    if status.ladder is not None:
        text.append(ladder_text(status.ladder))
    if (found := status.evaluation) is not None and (scores := evaluation_table(compare(found.data), found.generation)):
        text.append(scores)
    if guards := guard_lines(status.evaluation):
        text.append(guards)
    if status.last_failure is not None:
        text.append("last failure\n" + failure_block(status.last_failure, logs=logs))
    return "\n\n".join(text)
