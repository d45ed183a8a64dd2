"""What the operator shows, and that it is quiet: no writes while nothing happens, few series, a story to read."""

from __future__ import annotations

import re
import time
from collections import Counter

from prometheus_client import generate_latest

from finetune_api import names
from finetune_operator.kube.resources import EVENTS, FINETUNEJOBS, PODS
from tests.cluster.rig import Rig
from tests.support.kube_client import Kube, manifest, wait_for
from tests.support.operator_harness import Start
from tests.support.operator_rbac import ACCOUNT
from tests.support.operator_scenarios import BROKEN, DONE

FINISHED, RUNNING = 100, 50
WINDOW = 60.0
NOW = "2026-01-01T00:00:00Z"
SERIES = 40
"""Of one job, at most."""


def test_finished_and_running_jobs_cost_no_writes(start: Start, kube: Kube, control_plane: Rig) -> None:
    """100 finished and 50 running jobs without progress: nothing is written in a minute, by anybody's account."""
    for number in range(FINISHED):
        kube.create(manifest(f"done-{number}", nodes=1))
        kube.patch(f"done-{number}", {"status": ended()}, subresource="status")
    operator = start()
    for number in range(RUNNING):
        kube.create(manifest(f"runs-{number}", nodes=1))
    wait_for(lambda: len(kube.list(PODS)) == RUNNING, what="the pods", seconds=240)
    for pod in kube.list(PODS):
        kube.set_pod(pod, {"phase": "Running", "podIP": "192.0.2.1", "podIPs": [{"ip": "192.0.2.1"}]})
    wait_for(lambda: phases(kube)["Running"] == RUNNING, what="all run", seconds=240)
    operator.settle()
    mark = control_plane.audit.mark()
    kube.patch("runs-0", {"metadata": {"labels": {"touched": "yes"}}})
    time.sleep(WINDOW)
    written = control_plane.audit.writes(ACCOUNT, since=mark)
    assert written == Counter()
    assert phases(kube) == {"Succeeded": FINISHED, "Running": RUNNING}
    assert not operator.stopped


def ended() -> dict[str, object]:
    complete = {"type": "Complete", "status": "True", "reason": "Succeeded", "message": "", "lastTransitionTime": NOW}
    seen = {"phase": "Succeeded", "attempt": 1, "observedGeneration": 1, "completionTime": NOW}
    return {**seen, "conditions": [complete]}


def phases(kube: Kube) -> Counter[str]:
    return Counter(job.get("status", {}).get("phase", "") for job in kube.list(FINETUNEJOBS))


def test_the_story_of_a_job_can_be_read_in_order(start: Start, kube: Kube) -> None:
    start()

    def told_of(reason: str) -> None:
        wait_for(lambda: any(event["reason"] == reason for event in kube.list(EVENTS)), what=f"the event {reason}")
        time.sleep(1)  # kubectl puts events in order by their seconds

    kube.create(manifest("a", nodes=1, retry={"maxRestarts": 5}))
    (pod,) = kube.run("a", 1)
    kube.end(pod, code=70, words=BROKEN)
    kube.run("a", 2)
    told_of("Restarting")
    kube.set_spec("a", suspend=True)
    wait_for(lambda: kube.phase("a") == "Suspended" and not kube.jobs(), what="suspended")
    told_of("Suspended")
    kube.set_spec("a", suspend=False)
    (pod,) = kube.run("a", 3)
    told_of("Resumed")
    kube.end(pod, words=DONE)
    wait_for(lambda: kube.phase("a") == "Succeeded", what="success")
    told_of("Succeeded")

    told = kube.rig.kubectl("describe", "ftj", "a", "-n", kube.namespace).partition("Events:")[2]
    story = re.findall(r"^\s+(?:Normal|Warning)\s+(\w+)", told, re.MULTILINE)
    assert story == ["Restarting", "Suspended", "Resumed", "Succeeded"], told
    assert "Attempt 1 failed: UnexpectedError: boom; attempt 2 follows" in told


def test_the_same_thing_again_is_counted_and_no_new_event(start: Start, kube: Kube) -> None:
    start()
    kube.create(manifest("a", nodes=1, suspend=True))
    wait_for(lambda: kube.phase("a") == "Suspended" and events_of(kube), what="suspended")
    (before,) = events_of(kube)
    kube.patch("a", {"status": {"phase": "Pending"}}, subresource="status")
    wait_for(lambda: kube.phase("a") == "Suspended", what="again")
    again = wait_for(lambda: [e for e in events_of(kube) if e["count"] == 2], what="counted")
    assert [event["metadata"]["name"] for event in events_of(kube)] == [before["metadata"]["name"]]
    assert again[0]["firstTimestamp"] == before["firstTimestamp"]


def events_of(kube: Kube) -> list[dict[str, object]]:
    return [e for e in kube.list(EVENTS) if e["involvedObject"]["kind"] == names.KIND]  # type: ignore[index]


def test_a_job_has_few_series_and_the_operators_own_do_not_grow_with_jobs(start: Start, kube: Kube) -> None:
    operator = start()

    def series() -> Counter[str]:
        text = generate_latest(operator.service.counters.registry).decode()
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        own = [line for line in lines if f'namespace="{kube.namespace}"' in line and 'name="' in line]
        named = Counter(found[1] for line in own if (found := re.search(r'name="([^"]+)"', line)))
        named[""] = len(lines) - len(own)
        return named

    def live(job: str) -> None:
        kube.create(manifest(job, nodes=1))
        (pod,) = kube.run(job, 1)
        kube.end(pod, code=70, words=BROKEN)
        (pod,) = kube.run(job, 2)
        kube.end(pod, words=DONE)
        wait_for(lambda: kube.phase(job) == "Succeeded", what="success")

    live("a")
    wait_for(lambda: any(event["reason"] == "Succeeded" for event in events_of(kube)), what="told")
    operator.settle()
    before = series()
    assert 0 < before["a"] <= SERIES
    for job in ("b", "c"):
        live(job)
    operator.settle()
    after = series()
    assert after["b"] == after["c"] == after["a"]
    assert after[""] - before[""] <= 12  # codes and verbs that were new
    kube.delete("a")
    wait_for(lambda: "a" not in series(), what="a deleted job's series are gone")
