"""What the operator costs with thousands of jobs: 5,000 that run, 10,000 that have ended, all in 200 namespaces.

    python -m tests.benchmarks.operator.bench_scale [--running 5000] [--finished 10000] [--seconds 60]

The operator is a process of its own, as people start it. The API server and the agents are canned (see canned.py), and
their cost is not counted. Each running job is of two pods, and its agent reports another step whenever it is asked."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from finetune_api import names
from finetune_api.spec import FineTuneJobSpec
from finetune_operator.kube.resources import FINETUNEJOBS, JOBS, PODS, Raw
from finetune_operator.objects import attempt_job
from finetune_operator.state.observe import Defaults
from finetune_operator.state.parsing import view_job
from tests.cluster.rig.state import free_ports

from .canned import address, filled
from .sides import finetunejob
from .table import judged, print_table
from .usage import cpu_seconds, peak_mebibytes

NOW = "2026-01-02T03:04:05Z"
NAMESPACES = 200
SETTLE = 25.0
"""Seconds after the first pass: agents are asked for the first time, and what that changes is written."""
TARGETS = {"peak, MiB": 400.0}


def job(number: int, *, phase: str) -> Raw:
    body = finetunejob(f"b{number:05d}")
    condition = {"type": "Running", "status": "True", "reason": "GangRunning", "lastTransitionTime": NOW}
    ended = {"type": "Complete", "status": "True", "reason": "Succeeded", "message": "", "lastTransitionTime": NOW}
    status: Raw = {
        "phase": phase, "attempt": 1, "nodes": 2, "startTime": NOW, "observedGeneration": 1,
        "restarts": {"counted": 0, "free": 0},
        "conditions": [{**condition, "message": "Attempt 1: all 2 pods run", "observedGeneration": 1}],
    }  # fmt: skip
    if phase == "Succeeded":
        status |= {"completionTime": NOW, "conditions": [ended]}
    meta = {
        "name": body["metadata"]["name"], "namespace": f"team-{number % NAMESPACES:03d}", "uid": f"u-{number:034d}",
        "generation": 1, "creationTimestamp": NOW, "resourceVersion": "1",
    }  # fmt: skip
    return {**body, "metadata": meta, "status": status}


def children(raw: Raw, number: int) -> Iterator[tuple[str, Raw]]:
    """The Job of attempt 1 and its two pods, which run."""
    spec = FineTuneJobSpec.model_validate(raw["spec"], strict=False)
    made = attempt_job(view_job(raw), spec, attempt=1, defaults=Defaults(image="none"))
    meta = {"uid": f"c-{number:034d}", "creationTimestamp": NOW}
    child = {**made, "metadata": made["metadata"] | meta, "status": {"active": 2, "ready": 2, "startTime": NOW}}
    yield JOBS.plural, child
    template = made["spec"]["template"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": made["metadata"]["name"], "uid": meta["uid"]}
    for index in range(2):
        yield PODS.plural, _pod(template, owner, raw["metadata"]["namespace"], index, address(2 * number + index))


def _pod(template: Raw, owner: Raw, namespace: str, index: int, ip: str) -> Raw:
    number = {names.LABEL_COMPLETION_INDEX: str(index)}
    name = f"{owner['name']}-{index}"
    conditions = [{"type": type, "status": "True", "lastTransitionTime": NOW} for type in ("PodScheduled", "Ready")]
    container = {"name": "node", "ready": True, "restartCount": 0, "state": {"running": {"startedAt": NOW}}}
    meta = template["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{name}-abcde",
            "namespace": namespace,
            "uid": f"p-{owner['uid']}-{index}",
            "creationTimestamp": NOW,
            "labels": meta["labels"] | number,
            "annotations": meta["annotations"] | number,
            "ownerReferences": [{**owner, "controller": True}],
        },
        "spec": {**template["spec"], "hostname": name, "nodeName": f"node-{index}"},
        "status": {"phase": "Running", "podIP": ip, "conditions": conditions, "containerStatuses": [container]},
    }


def objects(*, running: int, finished: int) -> Iterator[tuple[str, Raw]]:
    for number in range(running + finished):
        raw = job(number, phase="Running" if number < running else "Succeeded")
        yield FINETUNEJOBS.plural, raw
        if number < running:
            yield from children(raw, number)


async def measure(folder: Path, *, running: int, finished: int, seconds: float) -> dict[str, float]:
    cluster, (port,) = filled(objects(running=running, finished=finished)), free_ports(1)
    async with cluster.served(folder) as kubeconfig, aiohttp.ClientSession() as session:
        argv = ["-m", "finetune_operator", "--all-namespaces", "--listen", f"127.0.0.1:{port}"]
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        with (folder / "operator.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *argv, env=environment, stdout=log, stderr=log
            )
        try:
            await _ready(session, f"http://127.0.0.1:{port}/readyz", process, folder)
            row = {"running": running, "finished": finished, "first pass, CPU s": cpu_seconds(process.pid)}
            await asyncio.sleep(SETTLE if running else 3.0)
            before, writes, polls = cpu_seconds(process.pid), _writes(cluster.requests), cluster.polls
            await asyncio.sleep(seconds)
            spent, jobs = cpu_seconds(process.pid) - before, max(1, running) * seconds / 60
            row |= {
                "CPU, ms a job-minute": 1000 * spent / jobs if running else 0.0,
                "CPU, share of a core": spent / seconds,
                "statuses a job-minute": (_writes(cluster.requests) - writes) / jobs,
                "polls a job-minute": (cluster.polls - polls) / jobs,
            }
            print(row, file=sys.stderr, flush=True)
            before, began = cpu_seconds(process.pid), time.monotonic()
            text = await _scrape(f"http://127.0.0.1:{port}/metrics")
            meanwhile = (time.monotonic() - began) * spent / seconds
            row |= {
                "/metrics, MB": len(text) / 1e6,
                "/metrics, CPU s": cpu_seconds(process.pid) - before - meanwhile,
                "peak, MiB": peak_mebibytes(process.pid),
            }
            return row
        finally:
            process.terminate()
            await process.wait()


async def _scrape(url: str) -> bytes:
    """As Prometheus does, which asks again after a scrape that failed: the page is kept for a while."""
    for _ in range(5):
        try:
            async with aiohttp.ClientSession() as session, session.get(url) as answer:
                return await answer.read()
        except aiohttp.ClientError as error:
            print(f"scrape: {error}", file=sys.stderr, flush=True)
    raise SystemExit("/metrics does not answer")


def _writes(requests: Any) -> int:
    return sum(count for what, count in requests.items() if not what.startswith("GET"))


async def _ready(session: aiohttp.ClientSession, url: str, process: asyncio.subprocess.Process, folder: Path) -> None:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if process.returncode is not None:
            break
        try:
            async with session.get(url) as answer:
                if answer.status == 200 and "in sync" in (folder / "operator.log").read_text():
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.2)
    raise SystemExit(f"the operator is not ready:\n{(folder / 'operator.log').read_text()[-3000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--running", type=int, default=5000, metavar="JOBS")
    parser.add_argument("--finished", type=int, default=10_000, metavar="JOBS")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the quiet time that is measured")
    options = parser.parse_args()
    rows = []
    for running, finished in ((options.running, 0), (0, options.finished)):
        if running + finished:
            with tempfile.TemporaryDirectory() as folder:
                seconds = options.seconds if running else 10.0
                rows.append(asyncio.run(measure(Path(folder), running=running, finished=finished, seconds=seconds)))
                print(rows[-1], file=sys.stderr, flush=True)
    columns = list(rows[0])
    print_table(columns, [[_cell(title, row[title]) for title in columns] for row in rows])
    return 0


def _cell(title: str, value: float) -> str:
    text = f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"
    return judged(text, value, TARGETS.get(title, float("inf")))


if __name__ == "__main__":
    sys.exit(main())
