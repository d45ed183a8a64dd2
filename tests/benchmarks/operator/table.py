"""The figures as tables that people read, with the ratios that count."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]
COLUMNS = (
    ("create → Job p50, s", lambda row: row["create_to_job_s"]["p50"]),
    ("p99, s", lambda row: row["create_to_job_s"]["p99"]),
    ("all pods run, s", lambda row: row["all_pods_running_s"]),
    ("all running, s", lambda row: row["all_running_s"]),
    ("all ended, s", lambda row: row.get("all_terminal_s", float("nan"))),
    ("controllers' CPU, ms a job", lambda row: row["controllers_cpu_ms_a_job"]),
    ("their peak, MiB", lambda row: row["controllers_peak_mib"]),
    ("writes a job", lambda row: row["writes_a_job"]["all"]),
    ("API server's CPU, ms a job", lambda row: row["apiserver_cpu_ms_a_job"]),
)
"""Of bursts; a figure of several rounds is their median."""

RESTART_TARGETS = {("ours", "failed_pod_to_job_s", "p50"): 0.5, ("ours", "failed_pod_to_job_s", "p99"): 1.0}

TARGETS: dict[tuple[str, str], tuple[float, int]] = {
    ("ours / kubeflow", "p99, s"): (0.15, 500),
    ("ours / kubeflow", "controllers' CPU, ms a job"): (0.6, 0),
    ("ours / kubeflow", "their peak, MiB"): (0.8, 0),
    ("ours / kubeflow", "API server's CPU, ms a job"): (0.6, 0),
    ("ours / bare", "all running, s"): (1.3, 0),
    ("ours", "writes a job"): (6.0, 0),
}
"""At most so much, of a line and a column, in bursts of so many jobs or more."""


def print_bursts(rows: Sequence[Row]) -> None:
    lines = []
    for count in dict.fromkeys(row["jobs"] for row in rows):
        figures = {
            side: [
                statistics.median(read(r) for r in rows if (r["jobs"], r["side"]) == (count, side))
                for _, read in COLUMNS
            ]
            for side in dict.fromkeys(row["side"] for row in rows if row["jobs"] == count)
        }
        lines += [_line(count, side, map(_number, found), found) for side, found in figures.items()]
        for other in ("kubeflow", "bare"):
            if "ours" in figures and other in figures:
                pairs = list(zip(figures["ours"], figures[other], strict=True))
                ratios = [a / b if b else 0.0 for a, b in pairs]
                lines.append(_line(count, f"ours / {other}", (_ratio(a, b) for a, b in pairs), ratios))
    print_table(("jobs", "", *(title for title, _ in COLUMNS)), lines)


def _line(count: int, what: str, texts: Iterable[str], figures: Sequence[float]) -> tuple[str, ...]:
    told = []
    for (title, _), text, figure in zip(COLUMNS, texts, figures, strict=True):
        target, least = TARGETS.get((what, title), (math.inf, 0))
        told.append(judged(text, figure, target) if count >= least else text)
    return str(count), what, *told


def judged(text: str, figure: float, target: float) -> str:
    """Says so beside it where a target is missed."""
    return f"{text} **missed** ({target:g})" if figure > target else text


def print_restarts(rows: Sequence[Row]) -> None:
    """From the failed pod to the next Job and to the whole gang running."""
    parts = (("Job", "failed_pod_to_job_s"), ("gang", "failed_pod_to_gang_s"))
    points = ("p50", "p99", "max")
    lines = [
        (
            row["side"],
            str(row["running"]),
            *(
                judged(
                    f"{row[key][point]:.2f}", row[key][point], RESTART_TARGETS.get((row["side"], key, point), math.inf)
                )
                for _, key in parts
                for point in points
            ),
        )
        for row in rows
    ]
    print_table(("", "running", *(f"{what} {point}, s" for what, _ in parts for point in points)), lines)


def print_existing(rows: Sequence[Row]) -> None:
    """From the operator's start to the last job looked at."""
    lines = [
        (
            str(row["jobs"]),
            str(row["running"]),
            judged(f"{row['first_pass_s']:.1f}", row["first_pass_s"], 30),
            f"{sum(row['first_pass_cpu_s'].values()):.1f}",
            judged(str(peak := sum(row["first_pass_peak_mib"].values())), peak, 300),
        )
        for row in rows
    ]
    print_table(("jobs", "of them running", "first pass, s", "CPU s", "peak, MiB"), lines)


def print_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for line in lines:
        print("| " + " | ".join(line) + " |")


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _ratio(ours: float, other: float) -> str:
    return f"{ours / other:.2f}" if other else "-"
