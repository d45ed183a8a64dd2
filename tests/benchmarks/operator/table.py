"""The figures as tables that people read, with the ratios that count."""

from __future__ import annotations

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
        lines += [(str(count), side, *map(_number, found)) for side, found in figures.items()]
        for other in ("kubeflow", "bare"):
            if "ours" in figures and other in figures:
                pairs = zip(figures["ours"], figures[other], strict=True)
                lines.append((str(count), f"ours / {other}", *(_ratio(a, b) for a, b in pairs)))
    print_table(("jobs", "", *(title for title, _ in COLUMNS)), lines)


def print_restarts(rows: Sequence[Row]) -> None:
    """From the failed pod to the next Job and to the whole gang running."""
    parts = (("Job", "failed_pod_to_job_s"), ("gang", "failed_pod_to_gang_s"))
    points = ("p50", "p99", "max")
    lines = [
        (row["side"], str(row["running"]), *(f"{row[key][point]:.2f}" for _, key in parts for point in points))
        for row in rows
    ]
    print_table(("", "running", *(f"{what} {point}, s" for what, _ in parts for point in points)), lines)


def print_existing(rows: Sequence[Row]) -> None:
    """From the operator's start to the last job looked at."""
    lines = [
        (
            str(row["jobs"]),
            str(row["running"]),
            f"{row['first_pass_s']:.1f}",
            f"{sum(row['first_pass_cpu_s'].values()):.1f}",
            str(sum(row["first_pass_peak_mib"].values())),
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
