"""The cache: newest wins, what is gone stays gone; views of what the API server sends."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api import names
from finetune_api.failures import Reason
from finetune_api.plan import ProgressReport
from finetune_operator.kube.resources import FINETUNEJOBS, JOBS, PODS, Key, Resource
from finetune_operator.state.cache import Cache
from finetune_operator.state.notes import Report
from finetune_operator.state.observe import lacks_gang, observe
from finetune_operator.state.parsing import view_child_job, view_pod
from tests.support.operator_objects import DEFAULTS, SPEC, raw_job, raw_pod, words

KEY = ("ml", "a")


def test_an_event_names_the_job_it_belongs_to() -> None:
    cache = Cache()
    assert cache.feed(FINETUNEJOBS, "ADDED", raw_job()) == KEY
    assert cache.feed(PODS, None, raw_pod()) == KEY


def test_older_and_equal_versions_are_no_news() -> None:
    cache = Cache()
    cache.feed(PODS, "ADDED", raw_pod(5))
    assert cache.feed(PODS, "MODIFIED", raw_pod(4)) is None
    assert cache.feed(PODS, "MODIFIED", raw_pod(5)) is None
    assert cache.feed(PODS, "MODIFIED", raw_pod(6) | {"status": {"phase": "Succeeded"}}) == KEY


def test_a_version_that_changes_nothing_a_decision_uses_is_no_news_and_is_known() -> None:
    cache = Cache()
    cache.feed(PODS, "ADDED", raw_pod(5))
    assert cache.feed(PODS, "MODIFIED", raw_pod(6)) is None
    assert cache.pods.of(KEY)[0].version == 6


def test_what_was_deleted_does_not_come_back_by_a_late_event() -> None:
    cache = Cache()
    cache.feed(PODS, "ADDED", raw_pod(1))
    assert cache.feed(PODS, "DELETED", raw_pod(4)) == KEY
    assert cache.feed(PODS, "MODIFIED", raw_pod(3)) is None
    assert not cache.pods.of(KEY)


def test_a_label_that_was_taken_off_and_put_back_brings_its_pod_back() -> None:
    """A watch by that label tells the first as a deletion, the second as a new object."""
    cache = Cache()
    cache.feed(PODS, "ADDED", raw_pod(1))
    cache.feed(PODS, "DELETED", raw_pod(2))
    assert cache.feed(PODS, "ADDED", raw_pod(3)) == KEY
    assert len(cache.pods) == 1


def test_a_deletion_of_an_earlier_object_does_not_touch_its_namesake() -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, "ADDED", raw_job(9, uid="new"))
    assert cache.feed(FINETUNEJOBS, "DELETED", raw_job(8, uid="old")) is None
    assert len(cache.jobs) == 1


def listed(cache: Cache, resource: Resource, version: int, *raws: dict[str, Any], namespace: str = "ml") -> set[Key]:
    listing = cache.listing(resource, namespace)
    return listing.page(raws, version) | listing.end()


def named(uid: str, version: int) -> dict[str, Any]:
    raw = raw_pod(version, uid=uid)
    raw["metadata"]["name"] = uid
    return raw


def test_a_list_drops_what_went_away_unseen_and_keeps_what_came_after_it() -> None:
    cache = Cache()
    for uid, version in (("gone", 3), ("kept", 4)):
        cache.feed(PODS, "ADDED", named(uid, version))
    listing = cache.listing(PODS, "ml")
    cache.feed(PODS, "ADDED", named("newer", 9))
    assert listing.page([named("kept", 4)], 7) | listing.end() == {KEY}
    assert sorted(pod.uid for pod in cache.pods) == ["kept", "newer"]


def test_what_cannot_be_understood_is_left_alone_and_stops_nothing() -> None:
    cache = Cache()
    strange = raw_job(status="levitating")
    assert cache.feed(FINETUNEJOBS, "ADDED", strange) is None
    assert listed(cache, FINETUNEJOBS, 9, strange, raw_job(uid="v")) == {KEY}


def test_a_list_of_one_namespace_says_nothing_about_another() -> None:
    cache = Cache()
    cache.feed(PODS, "ADDED", raw_pod(1))
    assert listed(cache, PODS, 7, namespace="other") == set()
    assert len(cache.pods) == 1


# storage that was restored to an earlier state


def before_a_restore() -> Cache:
    cache = Cache()
    for uid, version in (("kept", 500), ("changed", 900), ("new", 950)):
        cache.feed(PODS, "ADDED", named(uid, version))
    cache.feed(PODS, "ADDED", named("deleted", 300))
    cache.feed(PODS, "DELETED", named("deleted", 960))
    return cache


RESTORED = (named("kept", 500), named("changed", 400), named("deleted", 300))


@pytest.mark.parametrize("version", [700, 2000], ids=["an older list", "the cluster has gone on since"])
def test_a_list_that_is_older_than_what_was_seen_is_believed(version: int) -> None:
    cache = before_a_restore()
    listed(cache, PODS, version, *RESTORED)
    assert {pod.uid: pod.version for pod in cache.pods} == {"kept": 500, "changed": 400, "deleted": 300}


def test_after_a_restore_events_and_writes_count_again() -> None:
    cache = before_a_restore()
    listed(cache, PODS, 700, *RESTORED)
    assert cache.feed(PODS, "MODIFIED", named("changed", 720) | {"status": {"phase": "Failed"}}) == KEY
    cache.feed(PODS, "DELETED", named("kept", 730))
    assert listed(cache, PODS, 740, named("changed", 720), named("deleted", 300)) == set()
    assert sorted(pod.uid for pod in cache.pods) == ["changed", "deleted"]


def test_what_is_made_while_the_first_list_after_a_restore_is_read_is_kept() -> None:
    cache = before_a_restore()
    listing = cache.listing(PODS, "ml")
    listing.page(RESTORED[:1], 700)
    cache.pods.put(named("made", 710))
    listing.page(RESTORED[1:], 700)
    listing.end()
    assert sorted(pod.uid for pod in cache.pods) == ["changed", "deleted", "kept", "made"]


def test_a_specification_of_the_lost_history_is_not_remembered_by_its_generation() -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job(900) | {"spec": SPEC | {"nodes": 3}})
    observe(cache, KEY, DEFAULTS)
    listed(cache, FINETUNEJOBS, 700, raw_job(600))
    found = observe(cache, KEY, DEFAULTS)
    assert found is not None
    assert found.spec is not None
    assert found.spec.max_nodes == 2


def test_children_of_an_earlier_job_of_the_name_are_not_observed() -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job(uid="second"))
    cache.feed(PODS, None, raw_pod())
    seen = observe(cache, KEY, DEFAULTS)
    assert seen is not None
    assert seen.pods == ()


def test_a_report_counts_for_the_attempt_that_made_it() -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job(status={"attempt": 2}))
    for attempt, counts in ((1, False), (2, True)):
        cache.note(KEY, report=Report("u", ProgressReport(attempt=attempt, phase="training")))
        seen = observe(cache, KEY, DEFAULTS)
        assert seen is not None
        assert (seen.report is not None) is counts


PROBLEMS: list[tuple[str, dict[str, Any], str]] = [
    ("no model", {"data": SPEC["data"], "output": SPEC["output"]}, "spec: model, data and output are required"),
    ("wrong type", SPEC | {"nodes": "two"}, "spec.nodes"),
    ("a broken rule", SPEC | {"method": {"type": "full", "lora": {}}}, "method.lora is only for type lora"),
    ("half a GPU", SPEC | {"resources": {"limits": {"nvidia.com/gpu": "500m"}}}, "processesPerNode"),
]


@pytest.mark.parametrize(("given", "told"), [p[1:] for p in PROBLEMS], ids=[p[0] for p in PROBLEMS])
def test_a_spec_that_slipped_through_is_told_and_not_raised(given: dict[str, Any], told: str) -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job() | {"spec": given})
    seen = observe(cache, KEY, DEFAULTS)
    assert seen is not None
    assert seen.spec is None
    assert told in seen.problem


def test_fields_of_a_newer_version_are_ignored() -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job() | {"spec": SPEC | {"teleport": True}})
    seen = observe(cache, KEY, DEFAULTS)
    assert seen is not None
    assert seen.spec is not None


def test_the_view_of_a_pod_that_ended() -> None:
    last = words(Reason.LossNonFinite, rank=3)
    ended = {"exitCode": 81, "reason": "Error", "finishedAt": "2026-01-02T03:04:05Z", "message": last.encode()}
    status = {
        "phase": "Failed",
        "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}],
        "containerStatuses": [{"name": "sidecar"}, {"name": names.CONTAINER, "state": {"terminated": ended}}],
    }
    view = view_pod(raw_pod(status=status))
    assert (view.node, view.phase, view.disruption) == ("n1", "Failed", "EvictionByEvictionAPI")
    assert view.ended is not None
    assert view.ended.words == last


@pytest.mark.parametrize("text", ["Traceback: no", '{"class": "Nonsense"}', '{"half": '])
def test_a_message_that_is_not_ours_is_kept_as_text(text: str) -> None:
    ended = {"exitCode": 1, "message": text}
    containers = [{"name": names.CONTAINER, "state": {"terminated": ended}}]
    view = view_pod(raw_pod(status={"phase": "Failed", "containerStatuses": containers}))
    assert view.ended is not None
    assert (view.ended.words, view.ended.text) == (None, text)


JOB_STATES = [
    ({}, (False, False, False)),
    ({"FailureTarget": "True"}, (False, True, False)),
    ({"FailureTarget": "True", "Failed": "True"}, (False, True, True)),
    ({"SuccessCriteriaMet": "True", "Complete": "True"}, (True, False, True)),
    ({"Complete": "False"}, (False, False, False)),
]


@pytest.mark.parametrize(("conditions", "then"), JOB_STATES)
def test_the_view_of_a_child_job(conditions: dict[str, str], then: tuple[bool, bool, bool]) -> None:
    status = {"conditions": [{"type": kind, "status": value} for kind, value in conditions.items()]}
    labels = {names.LABEL_JOB: "a", names.LABEL_UID: "u", names.LABEL_ATTEMPT: "2"}
    meta = {"namespace": "ml", "name": "a-2", "uid": "c", "resourceVersion": "1", "labels": labels}
    view = view_child_job({"metadata": meta, "spec": {"completions": 3}, "status": status})
    assert (view.complete, view.failing, view.finished) == then
    assert (view.attempt, view.nodes, view.owner) == (2, 3, KEY)


GANGS: list[tuple[str, dict[str, Any] | None, list[int], str, bool]] = [
    ("new", None, [], "Pending", True),
    ("numbered", {"phase": "Pending", "attempt": 1}, [], "Pending", True),
    ("made", {"phase": "Pending", "attempt": 1}, [1], "Running", False),
    ("a pod failed", {"phase": "Running", "attempt": 1}, [1], "Failed", True),
    ("restarting", {"phase": "Restarting", "attempt": 2}, [1], "Failed", True),
    ("ended", {"phase": "Failed", "attempt": 1}, [], "Failed", False),
]


@pytest.mark.parametrize(("status", "children", "pod", "lacks"), [row[1:] for row in GANGS], ids=[r[0] for r in GANGS])
def test_who_waits_for_a_gang(status: dict[str, Any] | None, children: list[int], pod: str, lacks: bool) -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job(status=status))
    cache.feed(PODS, None, raw_pod() | {"status": {"phase": pod}})
    for attempt in children:
        labels = {names.LABEL_JOB: "a", names.LABEL_UID: "u", names.LABEL_ATTEMPT: str(attempt)}
        meta = {"namespace": "ml", "name": f"a-{attempt}", "uid": f"c{attempt}", "resourceVersion": "1"}
        cache.feed(JOBS, None, {"metadata": meta | {"labels": labels}, "spec": {}})
    assert lacks_gang(cache, KEY) is lacks


def test_a_pod_that_failed_and_is_no_more_is_remembered_for_its_attempt() -> None:
    state = {"terminated": {"exitCode": 75, "finishedAt": "2026-01-01T00:00:00Z"}}
    failed = {"status": {"phase": "Failed", "containerStatuses": [{"name": names.CONTAINER, "state": state}]}}
    cache = Cache()
    cache.feed(FINETUNEJOBS, "ADDED", raw_job())
    cache.feed(PODS, "ADDED", raw_pod(1))
    cache.feed(PODS, "DELETED", raw_pod(2) | failed)
    seen = observe(cache, KEY, DEFAULTS)
    assert seen is not None
    assert not seen.pods
    assert [pod.ended.exit_code for pod in seen.ended_pods if pod.ended] == [75]
