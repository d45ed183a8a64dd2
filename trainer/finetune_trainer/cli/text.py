"""Failures, scores and numbers as plain text, the same for terminals, logs and `status`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from finetune_api.manifest import Problem
from finetune_api.status import Artifact, Evaluation, FineTuneJobStatus, LastFailure, Phase, Progress, Restarts, Scores

WIDTH = 100


def failure_block(failure: LastFailure, *, logs: str = "") -> str:
    """What a person needs to see when a job has failed: class, reason, message, hint, and where to read on."""
    rows = [("reason", f"{failure.reason} (class {failure.failure_class})")]
    if failure.rank is not None or failure.node is not None:
        rank = "" if failure.rank is None else f"rank {failure.rank}"
        node = "" if failure.node is None else f"node {failure.node}"
        rows.append(("where", ", ".join(part for part in (rank, node, f"attempt {failure.attempt}") if part)))
    rows += [("what", failure.message), ("do", failure.hint)]
    if logs:
        rows.append(("logs", logs))
    return aligned((name, value) for name, value in rows if value)


def aligned(rows: Iterable[tuple[str, str]], *, indent: str = "  ") -> str:
    """Names on the left, wrapped values on the right."""
    rows = list(rows)
    width = max((len(name) for name, _ in rows), default=0)
    lines = []
    for name, value in rows:
        head = f"{indent}{name:<{width}}  "
        paragraphs = value.splitlines() or [""]
        for number, paragraph in enumerate(paragraphs):
            first = head if number == 0 else " " * len(head)
            lines.append(
                textwrap.fill(
                    paragraph, WIDTH, initial_indent=first, subsequent_indent=" " * len(head), break_long_words=False,
                    break_on_hyphens=False,
                )
            )  # fmt: skip
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = "  ") -> str:
    """Columns: the first to the left, the others to the right."""
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        rest = "  ".join(f"{cell:>{width}}" for cell, width in zip(cells[1:], widths[1:], strict=True))
        return f"{indent}{cells[0]:<{widths[0]}}  {rest}".rstrip()

    return "\n".join([line(head), line(["-" * width for width in widths]), *(line(row) for row in rows)])


def evaluation_table(evaluation: Evaluation) -> str:
    """Before and after on the same rows; empty text when nothing was measured."""
    pairs = [
        (name, getattr(evaluation.base, name), getattr(evaluation.tuned, name))
        for name in ("validation", "test", "general")
    ]
    pairs += [(f"slice {s.name}", s.base, s.tuned) for s in evaluation.slices]
    measured = [(name, base, tuned) for name, base, tuned in pairs if base is not None or tuned is not None]
    rows = [row for name, base, tuned in measured for row in _score_rows(name, base, tuned)]
    return table(("", "base", "tuned", "change"), rows) if rows else ""


def _score_rows(name: str, base: Scores | None, tuned: Scores | None) -> list[tuple[str, str, str, str]]:
    rows = []
    for label, field in (("loss", "loss"), ("bits/byte", "bits_per_byte"), ("accuracy", "accuracy")):
        before = getattr(base, field) if base else None
        after = getattr(tuned, field) if tuned else None
        if before is None and after is None:
            continue
        change = "" if before is None or after is None else f"{after - before:+.4f}"
        rows.append((f"{name} {label}", _number(before), _number(after), change))
    return rows


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def progress_line(phase: str, progress: Progress) -> str:
    """`training  step 120/600 (20 %)  loss 1.2340  eval 1.3000  1,234 tok/s  3m10s left`."""
    parts = [phase]
    if progress.total_steps:
        parts.append(f"step {progress.step}/{progress.total_steps} ({percent(progress)} %)")
    elif progress.percent is not None:
        parts.append(f"{progress.percent} %")
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.4f}")
    if progress.eval_loss is not None:
        parts.append(f"eval {progress.eval_loss:.4f}")
    if progress.tokens_per_second:
        parts.append(f"{progress.tokens_per_second:,.0f} tok/s")
    if progress.eta_seconds is not None and phase == "training":
        parts.append(f"{span(progress.eta_seconds)} left")
    return "  ".join(parts)


def percent(progress: Progress) -> int:
    if progress.percent is not None:
        return progress.percent
    return 100 * progress.step // progress.total_steps if progress.total_steps else 0


def span(seconds: float) -> str:
    """3785 → `1h03m`."""
    whole = int(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


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
    return [("artifact", f"{uri} ({kind})"), ("report", report)]


def problems_text(file: str, problems: Sequence[Problem]) -> str:
    """One line a problem, each with the path of its field."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{file}: {count}", *(f"  {problem}" for problem in problems)])


def _why(status: FineTuneJobStatus) -> str:
    """What a job that does not run waits for, or why it ended: what its last failure does not tell already."""
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
    """` (1 counted, 0 free restarts)`, and those of a budget of their own where there were any."""
    if restarts is None:
        return ""
    own = (
        ("after memory ran out", restarts.out_of_memory),
        ("not finite", restarts.non_finite),
        ("resized", restarts.resized),
    )
    counts = [f"{restarts.counted} counted", f"{restarts.free} free", *(f"{n} {what}" for what, n in own if n)]
    return f" ({', '.join(counts)} restarts)"


def status_text(name: str, status: FineTuneJobStatus, *, logs: str = "") -> str:
    """The whole of a status, for people."""
    rows = [("job", name), ("phase", str(status.phase or "Pending"))]
    if why := _why(status):
        rows.append(("why", why))
    if status.attempt is not None:
        rows.append(("attempt", f"{status.attempt}{_restarts(status.restarts)}"))
    if status.nodes is not None:
        rows.append(("nodes", str(status.nodes)))
    if avoided := [f"{node.name} (until {node.until})" for node in status.avoided_nodes or () if node.until]:
        rows.append(("avoided", ", ".join(avoided)))
    if status.progress is not None:
        rows.append(("progress", progress_line("", status.progress).strip()))
    if (plan := status.plan) is not None:
        layers = f" of the last {plan.trained_layers} layers" if plan.trained_layers else ""
        parts = [f"{plan.method}{layers}", plan.strategy, plan.precision]
        parts += [f"{plan.world_size} process(es)"] if plan.world_size else []
        parts += [f"rate {plan.learning_rate:g}"] if plan.learning_rate else []
        parts += [f"{plan.trainable_parameters:,} trained parameters"] if plan.trainable_parameters else []
        rows.append(("plan", ", ".join(part for part in parts if part)))
    rows += artifact_rows(status.artifact) if status.artifact else []
    text = [aligned(rows, indent="")]
    if status.conditions:
        text.append(table(
            ("condition", "status", "reason", "since"),
            [(c.type, c.status, c.reason, f"{c.last_transition_time[:19]}Z") for c in status.conditions],
        ))  # fmt: skip
    if status.evaluation is not None and (scores := evaluation_table(status.evaluation)):
        text.append(scores)
    if status.last_failure is not None:
        text.append("last failure\n" + failure_block(status.last_failure, logs=logs))
    return "\n\n".join(text)
