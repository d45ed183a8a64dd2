"""From SIGKILL of a rank to the whole next gang running, on a real kubelet: two pods, a tiny model, a real bucket.

    python -m tests.benchmarks.operator.bench_restart [--jobs 5]

Needs what the cluster tests need (root, Go). Each job is killed once, after its first checkpoint, and then deleted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from finetune_api import names
from tests.cluster.jobs import Json, Place, example, rank_of
from tests.cluster.operator_process import Operator
from tests.cluster.rig import build, lifecycle
from tests.cluster.rig.state import Paths
from tests.support.tiny_model import tiny_corpus, tiny_model

from .api import Api, Raw

ENDED, CREATED, RUNNING = "a pod has failed", "the next pods", "all of them run"
TARGET = 2.5
"""Seconds."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=5)
    options = parser.parse_args()
    paths = Paths()
    rig = lifecycle.join(paths, say=build.say_on_stderr)
    try:
        lifecycle.add_node(rig, say=build.say_on_stderr)
        namespace = rig.create_namespace("restart", labels={"pod-security.kubernetes.io/enforce": "restricted"})
        with tempfile.TemporaryDirectory() as folder:
            place = _place(rig, namespace, Path(folder))
            operator = Operator.of(rig, Path(folder))
            operator.start()
            try:
                taken = asyncio.run(_measure(place, Path(folder), options.jobs))
            finally:
                operator.stop()
        rig.delete_namespace(namespace)
    finally:
        lifecycle.leave(paths)
    print(f"Kubernetes {build.KUBERNETES}; seconds from SIGKILL to")
    for what, times in taken.items():
        print(f"  {what:<18} median {statistics.median(times):.2f}, all {', '.join(f'{t:.2f}' for t in times)}")
    missed = statistics.median(taken[RUNNING]) > TARGET
    print(f"target {TARGET} s{' (missed)' if missed else ''}")
    return 1 if missed else 0


def _place(rig: Any, namespace: str, folder: Path) -> Place:
    folder.chmod(0o755)
    for file in tiny_model(folder / "model").iterdir():
        file.chmod(0o644)
    tiny_corpus(folder / "corpus", rows=256)
    place = Place.of(rig, rig.s3, namespace, models=folder / "model")
    place.upload(folder / "corpus", "tiny")
    return place


def _job(place: Place, folder: Path, name: str) -> Json:
    manifest = example()
    manifest["metadata"]["name"] = name
    spec = manifest["spec"]
    secret = {"secretName": "corp-s3"}
    spec["data"] = {"train": [{"uri": "s3://corp/tiny/train.jsonl"}], "sequenceLength": 128, "credentials": secret}
    spec["training"] = {"epochs": 1000, "maxSteps": 100000, "batchSize": 16}
    spec["checkpoint"] = {"every": 5}
    spec["output"]["uri"] = f"s3://corp/models/{name}"
    return place.on_this_rig(manifest, model=folder / "model")


async def _measure(place: Place, folder: Path, jobs: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {ENDED: [], CREATED: [], RUNNING: []}
    async with Api.of(place.rig) as api:
        for number in range(jobs):
            name = f"killed-{number}"
            for what, seconds in (await _one(api, place, _job(place, folder, name), name)).items():
                taken[what].append(seconds)
            place.rig.kubectl("delete", "finetunejob", name, "-n", place.namespace, "--wait=false")
    return taken


async def _one(api: Api, place: Place, job: Json, name: str) -> dict[str, float]:
    running: dict[tuple[str, str], float] = {}
    """When a pod of (attempt, name) was first seen to run."""
    first: dict[str, float] = {}

    def seen(kind: str, pod: Raw, at: float) -> None:
        labels = pod["metadata"].get("labels", {})
        if labels.get(names.LABEL_JOB) != name or kind == "DELETED":
            return
        if pod.get("status", {}).get("phase") == "Running":
            running.setdefault((labels[names.LABEL_ATTEMPT], pod["metadata"]["name"]), at)
        if pod.get("status", {}).get("phase") == "Failed":
            first.setdefault(ENDED, at)
        if labels[names.LABEL_ATTEMPT] == "2":
            first.setdefault(CREATED, at)

    def gang(attempt: str) -> dict[str, float]:
        return {pod: at for (number, pod), at in running.items() if number == attempt}

    async with api.watching(pods=(f"/api/v1/namespaces/{place.namespace}/pods", seen)) as waiter:
        await asyncio.to_thread(place.apply, job)
        await waiter.until(lambda: len(gang("1")) == 2, what="the first gang runs", seconds=120)
        await asyncio.to_thread(place.wait, name, lambda s: s.get("progress", {}).get("step", 0) >= 8, what="step 8")
        pid = await asyncio.to_thread(rank_of, place, sorted(gang("1"))[1])
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        await waiter.until(lambda: len(gang("2")) == 2, what="the second gang runs", seconds=120)
        return {what: at - killed for what, at in (*first.items(), (RUNNING, max(gang("2").values())))}


if __name__ == "__main__":
    sys.exit(main())
