"""What keeps a gang from running is told within a minute, with what to do, and taken back when it has passed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from finetune_api.status import Phase
from finetune_operator.decide import decide
from finetune_operator.diagnosis.startup_blockers import lacks_pods
from finetune_operator.inquiries.event_throttle import BETWEEN, EventThrottle
from finetune_operator.inquiries.inquiry import Answer
from finetune_operator.inquiries.job_events import INTERVAL, JobEvents
from finetune_operator.inquiries.pod_events import INTERVAL as PREPARING
from finetune_operator.inquiries.pod_events import PodEvents
from finetune_operator.kube.client import Listing, NotFound
from finetune_operator.kube.resources import Key, Raw
from finetune_operator.state.cache import Cache
from finetune_operator.state.notes import PodEvent
from finetune_operator.state.parsing import view_pod
from finetune_operator.state.status import find, rfc3339
from finetune_operator.state.views import Pod, Waiting
from tests.support.operator_objects import NOW, child, job, later, pod, raw_pod, seen, status

QUOTA = "0 of 2 pods could be created: forbidden: exceeded quota"


def held(reason: str, message: str = "") -> Pod:
    return pod(0, scheduled=NOW, waiting=Waiting(reason, message))


TROUBLES: list[tuple[str, tuple[Pod, ...], str, float, str | None, str]] = [
    ("no image", (held("ErrImagePull", "x: not found"), pod(1)), "", 0, "ImageUnavailable", "x: not found"),
    ("no image, between two tries",
     (held("ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: x: not found'), pod(1)), "", 0,
     "ImageUnavailable", "ImagePullBackOff: x: not found"),
    ("no image by that name", (held("InvalidImageName", "invalid"), pod(1)), "", 0, "ImageUnavailable", "invalid"),
    ("no Secret", (held("CreateContainerConfigError", 'secret "corp-s3" not found'), pod(1)), "", 0, "ReferenceMissing",
     'secret "corp-s3" not found'),
    ("no node, but the scheduler has only begun", (pod(0, unschedulable="0/3 nodes"), pod(1)), "", 5, None, ""),
    ("no node", (pod(0, unschedulable="0/3 nodes are available"), pod(1)), "", 10, "Unschedulable", "0/3 nodes"),
    ("being made", (held("ContainerCreating"), pod(1, scheduled=NOW)), "", 59, None, ""),
    ("being made for a minute", (held("ContainerCreating"), pod(1)), "", 60, "SlowStart", "still starting"),
    ("no claim", (pod(0, unschedulable='0/3 nodes: persistentvolumeclaim "notes" not found'), pod(1)), "", 10,
     "ReferenceMissing", 'persistentvolumeclaim "notes" not found'),
    ("no pods, nobody knows why", (), "", 30, None, ""),
    ("no pods, the namespace is full", (), "forbidden: exceeded quota", 10, "PodsRefused", QUOTA),
    ("a missing Secret counts more than a full cluster",
     (held("CreateContainerConfigError", "no key"), pod(1, unschedulable="0/3 nodes")), "", 60, "ReferenceMissing",
     "no key"),
    ("all is well", (pod(0, "Running"), pod(1, scheduled=NOW)), "", 5, None, ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("pods", "refusal", "at", "reason", "words"), [t[1:] for t in TROUBLES], ids=[t[0] for t in TROUBLES]
)
def test_what_is_told(pods: tuple[Pod, ...], refusal: str, at: float, reason: str | None, words: str) -> None:
    given = seen(job(status(Phase.Pending)), children=(child(),), pods=pods, pods_refused=refusal)
    after = decide(given, later(at)).status
    running = find(after, "Running")
    if reason is None:
        assert (after.last_failure, running) == (None, None)
        return
    assert running is not None
    assert after.last_failure is not None
    assert (running.status, running.reason, after.last_failure.reason) == ("False", reason, reason)
    assert words in running.message
    assert after.last_failure.hint in running.message
    assert after.phase in (Phase.Pending, Phase.Starting), "waiting is no failure"


VOLUMES = [
    ("FailedMount", 'MountVolume.SetUp failed for volume "keys" : secret "own" not found', 16, "ReferenceMissing"),
    ("FailedMount", 'MountVolume.SetUp failed for volume "a" : configmap "own" not found', 16, "ReferenceMissing"),
    ("FailedMount", "MountVolume.SetUp failed: references non-existent secret key: a", 16, "ReferenceMissing"),
    ("FailedMount", "MountVolume.SetUp failed: mount.nfs: Connection timed out", 16, "VolumeUnavailable"),
    ("FailedAttachVolume", 'Multi-Attach error for volume "pvc-1"', 16, "VolumeUnavailable"),
    ("Pulling", 'Pulling image "trainer:test"', 16, None),
    ("Pulling", 'Pulling image "trainer:test"', 60, "SlowStart"),
    ("FailedCreatePodSandBox", "no address is left", 60, "SlowStart"),
]


@pytest.mark.parametrize(("event", "message", "at", "reason"), VOLUMES)
def test_a_pods_events_tell_what_its_containers_do_not(event: str, message: str, at: float, reason: str | None) -> None:
    pods = (pod(0, scheduled=NOW, waiting=Waiting("ContainerCreating", "")), pod(1, scheduled=NOW))
    told = PodEvent("p1-0", event, message)
    given = seen(job(status(Phase.Pending)), children=(child(),), pods=pods, pod_event=told)
    failure = decide(given, later(at)).status.last_failure
    assert (failure.reason if failure else None) == reason
    if failure:
        assert f"{event}: {message}" in failure.message


def test_an_event_of_another_pod_or_of_a_pod_that_goes_on_tells_nothing() -> None:
    told = PodEvent("p1-0", "FailedMount", 'secret "own" not found')
    for pods in (
        (pod(0, "Running"), pod(1, scheduled=NOW)),
        (pod(0, scheduled=NOW, uid="later"), pod(1, scheduled=NOW)),
        (held("ErrImagePull", "x: not found"), pod(1, scheduled=NOW)),
    ):
        given = seen(job(status(Phase.Pending)), children=(child(),), pods=pods, pod_event=told)
        failure = decide(given, later(16)).status.last_failure
        assert failure is None or failure.reason == "ImageUnavailable"


def test_it_is_looked_for_in_time() -> None:
    for pods, wait in (((), 10), ((pod(0, unschedulable="full"), pod(1)), 10), ((pod(0, scheduled=NOW), pod(1)), 60)):
        assert decide(seen(job(status(Phase.Pending)), children=(child(),), pods=pods), NOW).look_again_in == wait


def test_other_words_for_the_same_are_written_once_a_minute() -> None:
    def look(before: Any, words: str, at: float) -> Any:
        pods = (pod(0, unschedulable=words), pod(1))
        return decide(seen(job(before), children=(child(),), pods=pods), later(at))

    begun = look(status(Phase.Pending), "0/3 nodes", 10)
    first = begun.status
    assert [(event.type, event.reason.value) for event in begun.events] == [("Warning", "Unschedulable")]
    assert look(first, "0/3 nodes", 300).status == first
    soon = look(first, "0/4 nodes", 30)
    assert (soon.status, soon.look_again_in) == (first, 40)
    assert look(first, "0/4 nodes", 70).events == (), "the same reason is no other event"
    late = look(first, "0/4 nodes", 70).status.last_failure
    assert (late.time, "0/4 nodes" in late.message) == (rfc3339(later(70)), True)


def test_what_has_passed_is_taken_back() -> None:
    told = decide(
        seen(job(status(Phase.Pending)), children=(child(),), pods=(held("ErrImagePull"), pod(1))), NOW
    ).status
    pulled = decide(seen(job(told), children=(child(),), pods=(held("ContainerCreating"), pod(1))), NOW).status
    running = find(pulled, "Running")
    assert running is not None
    assert (running.reason, pulled.last_failure) == ("GangCreated", None)
    up = decide(seen(job(told), children=(child(),), pods=(pod(0, "Running"), pod(1, "Running"))), NOW).status
    assert (up.phase, up.last_failure) == (Phase.Running, None)


def test_a_jobs_events_are_asked_for_when_its_pods_do_not_come() -> None:
    starting = seen(job(status(Phase.Pending)), children=(child(),), pods=(pod(0),))
    assert not lacks_pods(starting, later(9))
    assert lacks_pods(starting, later(10))
    assert not lacks_pods(seen(job(status(Phase.Pending)), children=(child(),), pods=(pod(0), pod(1))), later(60))
    assert not lacks_pods(seen(job(status(Phase.Pending)), children=(child(deleting=True),)), later(60))


class Answers:
    """A client that knows events."""

    def __init__(self, *messages: str, reasons: tuple[str, ...] = ()) -> None:
        self.items = [{"message": text, "lastTimestamp": f"2026-01-02T03:04:0{n}Z"} for n, text in enumerate(messages)]
        for item, reason in zip(self.items, reasons, strict=False):
            item["reason"] = reason
        self.asked: list[str] = []

    async def get(self, resource: Any, key: Key) -> Raw:
        raise NotFound(f"no {resource.plural} {key}")

    async def list(self, resource: Any, namespace: str, *, selector: str = "", fields: str = "") -> Listing:
        if selector:
            return Listing([], "1")  # the pods that a live read asks for
        self.asked.append(f"{resource.plural} in {namespace}: {fields}")
        return Listing(self.items, "1")


def test_the_events_of_a_pod_are_read_when_it_has_had_time_and_the_latest_counts() -> None:
    client, cache, clock = Answers("Pulling", "", reasons=("Pulling", "FailedMount")), Cache(), [100.0]
    ask = PodEvents(client, cache, lambda: clock[0]).ask  # type: ignore[arg-type]
    waits = seen(job(status(Phase.Pending)), children=(child(),), pods=(pod(0, scheduled=NOW), pod(1)))

    assert asyncio.run(ask(waits, later(5))) == Answer(10)
    assert client.asked == []
    clock[0] += 10
    assert asyncio.run(ask(waits, later(15))) == Answer(PREPARING)
    assert client.asked == ["events in ml: involvedObject.uid=p1-0"]
    assert cache.of(("ml", "a")).pod_event == PodEvent("p1-0", "FailedMount", "")
    clock[0] += 5
    assert asyncio.run(ask(waits, later(20))) == Answer(PREPARING - 5)
    assert len(client.asked) == 1

    running = seen(job(status(Phase.Pending)), children=(child(),), pods=(pod(0, "Running"), pod(1)))
    assert asyncio.run(ask(running, later(25))) is None
    assert cache.notes == {}


def test_the_latest_refusal_is_kept_and_asked_for_now_and_then() -> None:
    client, cache, clock = (
        Answers("older", 'Error creating: pods "a-1-0-x7k2p" is forbidden: exceeded quota'),
        Cache(),
        [0.0],
    )
    job_events = JobEvents(client, cache, lambda: clock[0])  # type: ignore[arg-type]
    given = seen(job(status(Phase.Pending)), children=(child(),))

    assert asyncio.run(job_events.ask(given, later(9))) is None, "pods may still come"
    assert asyncio.run(job_events.ask(given, later(10))) == Answer(INTERVAL, live=True)
    assert (noted := cache.of(("ml", "a")).pods_refused) is not None
    assert noted.message == "Error creating: pods is forbidden: exceeded quota"
    assert client.asked == ["events in ml: involvedObject.uid=c1,reason=FailedCreate"]
    clock[0] = 5.0
    assert asyncio.run(job_events.ask(given, later(15))) == Answer(INTERVAL - 5)
    assert len(client.asked) == 1
    clock[0] = INTERVAL
    assert asyncio.run(job_events.ask(given, later(40))) == Answer(INTERVAL, live=True)
    assert len(client.asked) == 2


def test_questions_that_cost_much_are_put_one_after_the_other() -> None:
    clock = [0.0]
    turns = EventThrottle(lambda: clock[0])

    assert [turns.wait(uid) for uid in ("a", "b", "c")] == [0.0, BETWEEN, 2 * BETWEEN]
    turns.take("a", again_in=30)
    clock[0] = BETWEEN
    assert [turns.wait(uid) for uid in ("b", "c", "a")] == [0.0, BETWEEN, 30 - BETWEEN]
    clock[0] = 100.0
    turns.take("a", again_in=30)
    assert turns.wait("b") == 0.0, "it did not take its turn in time, and has the next"


def test_many_jobs_of_one_namespace_keep_no_other_waiting() -> None:
    turns = EventThrottle(lambda: 0.0)
    for number in range(1000):
        turns.wait(str(number), lane="crowd")
    assert turns.wait("alone", lane="ml") == 0.0


POD = [
    ({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1"}]},
     (None, "0/1", False)),
    ({"containerStatuses": [{"name": "trainer", "state": {"waiting": {"reason": "ErrImagePull", "message": "m"}}}]},
     (Waiting("ErrImagePull", "m"), "", False)),
    ({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}],
      "containerStatuses": [{"name": "trainer", "ready": True, "state": {"running": {}}}]}, (None, "", True)),
    ({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
      "containerStatuses": [{"name": "trainer", "ready": True, "state": {"running": {}}}]}, (None, "", False)),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "view"), POD)
def test_what_a_pod_shows(raw: dict[str, Any], view: tuple[Any, ...]) -> None:
    found = view_pod(raw_pod(status={"phase": "Pending"} | raw))
    assert (found.waiting, found.unschedulable, found.unreachable) == view
