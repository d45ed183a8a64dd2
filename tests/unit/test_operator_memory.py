"""What the operator keeps of jobs, however large their authors make them."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_api import names
from finetune_api.failures import Reason
from finetune_api.plan import ProgressReport
from finetune_api.status import FineTuneJobStatus, Phase
from finetune_operator.apply import Applier
from finetune_operator.decide import decide
from finetune_operator.inquiries.progress_poller import Poller
from finetune_operator.kube.client import _error
from finetune_operator.kube.resources import FINETUNEJOBS, JOBS, PODS, Raw
from finetune_operator.state.cache import MOST_REMAINS, Cache
from finetune_operator.state.notes import PodsRefused, Report
from finetune_operator.state.observe import SPECS_BYTES, observe
from finetune_operator.state.parsing import view_job
from finetune_operator.state.status import change, failure_of
from finetune_operator.state.views import SPEC_BYTES
from tests.support.operator_objects import DEFAULTS, NOW, SPEC, later, raw_job, raw_pod

KEY = ("ml", "a")


MIB = 2**20


PADDED = {"pod": {"affinity": {"x": "y" * 200_000}}}


ENDED: dict[str, Any] = {
    "phase": "Failed", "attempt": 3, "nodes": 2, "observedGeneration": 1, "completionTime": "2026-01-02T03:04:05Z",
    "conditions": [
        {"type": kind, "status": "True", "reason": "R", "message": "m" * 4000,
         "lastTransitionTime": "2026-01-02T03:04:05Z"}
        for kind in ("Running", "Failed", "Complete", "Queued", "Suspended")
    ],
    "lastFailure": {"class": "Data", "reason": "DataEmpty", "message": "é" * 3000, "hint": "h" * 600},
    "evaluation": {
        "data": [
            {"name": f"s{n}", "kind": "slice", "metric": "loss", "base": 1.0, "tuned": 0.5, "rows": 30, "groups": 30}
            for n in range(32)
        ]
    },
    "progress": {"step": 5, "totalSteps": 10},
}  # fmt: skip


def ended(number: int = 0, **fields: Any) -> Raw:
    raw: Raw = json.loads(json.dumps(raw_job(spec=SPEC | PADDED, status=ENDED) | fields))
    raw["metadata"] |= {"name": f"a{number}" if number else "a", "uid": f"u{number}" if number else "u"}
    return raw


def test_five_thousand_ended_jobs_of_the_largest_size_take_less_than_64_mib() -> None:
    cache = Cache()
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(1, 101):
            cache.feed(FINETUNEJOBS, "ADDED", ended(number))
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(cache.jobs) == 100
    assert (after - before) * 50 < 64 * MIB


def test_of_an_ended_job_only_what_is_used_is_kept_and_it_stays_ended() -> None:
    cache = Cache()
    spec = SPEC | PADDED | {"ttlAfterFinished": "1h", "suspend": True, "deadlines": {"stall": "5m"}}
    cache.feed(FINETUNEJOBS, None, ended(spec=spec))
    seen = observe(cache, KEY, DEFAULTS)
    assert seen is not None
    assert (seen.job.wanted_nodes, seen.job.suspended, seen.job.ttl_after_finished) == (2, True, "1h")
    assert seen.job.raw_spec["model"] == {"uri": "hf://org/model"}
    decision = decide(seen, NOW)
    assert (decision.status, decision.create, decision.delete) == (seen.status, (), ())
    assert decision.look_again_in == 3600
    assert decide(seen, later(3601)).expired


def test_writing_to_an_ended_job_loses_nothing_of_its_status() -> None:
    cache, full = Cache(), ended()
    full["metadata"]["generation"] = 2
    full["status"]["ofANewerVersion"] = {"kept": True}
    cache.feed(FINETUNEJOBS, None, full)
    written: list[Raw] = []

    async def get(*_: Any) -> Raw:
        return full

    async def replace_status(body: Raw) -> Raw:
        written.append(body)
        return full | {"metadata": full["metadata"] | {"resourceVersion": "2"}, "status": body["status"]}

    client = SimpleNamespace(get=get, replace_status=replace_status)
    applier = Applier(client, cache, lambda: NOW, lambda *_: None)  # type: ignore[arg-type]
    seen = observe(cache, KEY, DEFAULTS)
    assert seen is not None
    asyncio.run(applier.carry_out(seen, decide(seen, NOW)))
    (body,) = written
    assert body["status"].pop("observedGeneration") == 2
    before = {key: value for key, value in full["status"].items() if key != "observedGeneration"}
    whole = FineTuneJobStatus.model_validate_json(json.dumps(before)).to_json()
    assert body["status"] == whole | {"ofANewerVersion": {"kept": True}}


def test_another_job_of_the_name_is_not_written_to() -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, ended())

    async def get(*_: Any) -> Raw:
        return raw_job(7, uid="another")

    applier = Applier(SimpleNamespace(get=get), cache, lambda: NOW, lambda *_: None)  # type: ignore[arg-type]
    job = cache.job(KEY)
    assert job is not None
    asyncio.run(applier.write_status(job, change(job.status, observed_generation=9)))


def test_a_spec_that_is_too_long_is_refused_and_not_kept() -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job(spec=SPEC | {"pod": {"affinity": {"x": "y" * (SPEC_BYTES + 1)}}}))
    seen = observe(cache, KEY, DEFAULTS)
    assert seen is not None
    assert len(json.dumps(seen.job.raw_spec)) < 1000
    decision = decide(seen, NOW)
    assert decision.status.phase is Phase.Failed
    assert decision.status.last_failure is not None
    assert "at most 256 KiB" in decision.status.last_failure.message


def test_odd_parts_of_a_spec_are_no_reason_to_keep_it() -> None:
    odd = {"nodes": [1] * 10_000, "deadlines": "x" * 10_000, "method": "m", "model": {"uri": 3}, "output": None}
    view = view_job(ended(spec=odd))
    assert len(json.dumps(view.raw_spec)) < 500
    assert view.wanted_nodes == 1


def test_a_spec_of_tiny_parts_takes_no_more_than_its_bytes() -> None:
    gc.collect()
    text = json.dumps(raw_job(spec=SPEC | {"pod": {"affinity": {"x": [{}] * 60_000}}}))
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        view = view_job(json.loads(text))
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert view.spec_bytes > 150_000
    assert after - before < view.spec_bytes + 20_000


def test_a_long_spec_is_all_there_when_it_is_used() -> None:
    cache, affinity = Cache(), {"nodeAffinity": {"x": "y" * 50_000}}
    raw = raw_job(spec=SPEC | {"pod": {"affinity": affinity}})
    cache.feed(FINETUNEJOBS, None, raw)
    seen = observe(cache, KEY, DEFAULTS)
    assert seen is not None
    assert seen.spec is not None
    assert seen.spec.pod.affinity == affinity
    assert "pod" not in seen.job.raw_spec
    whole = view_job(raw, whole=True)
    assert (seen.job.pods_digest, seen.job.wanted_nodes) == (whole.pods_digest, 2)
    assert [create.resource.kind for create in decide(seen, NOW).create] in ([], ["Service", "Job"])


def test_what_is_remembered_of_pods_is_bounded_and_goes_with_the_job() -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job())
    failed = {"phase": "Failed"}
    for number in range(MOST_REMAINS + 50):
        raw = raw_pod(number + 1, uid=f"p{number}", status=failed)
        raw["metadata"]["name"] = f"a-1-{number}-x"
        cache.feed(PODS, None, raw)
        cache.feed(PODS, "DELETED", raw)
    assert 0 < len(cache.of(KEY).ended_pods) <= MOST_REMAINS
    cache.feed(FINETUNEJOBS, "DELETED", raw_job(9999))
    assert not cache.notes
    other = raw_job(10_000, uid="other")
    other["metadata"]["name"] = "other"
    cache.feed(FINETUNEJOBS, None, other)
    cache.feed(PODS, "DELETED", raw_pod(10_001, uid="late", status=failed))
    assert not cache.notes, "of a job that is gone"


def test_specs_that_were_read_are_kept_within_bounds() -> None:
    cache = Cache()
    for number in range(100):
        raw = raw_job(number + 1, uid=f"u{number}", spec=SPEC | {"pod": {"affinity": {"x": "y" * 200_000}}})
        raw["metadata"]["name"] = f"a{number}"
        cache.feed(FINETUNEJOBS, None, raw)
        observe(cache, ("ml", f"a{number}"), DEFAULTS)
    assert sum(size for *_, size in cache.specs) <= SPECS_BYTES
    assert len(cache.specs) >= 5


def test_an_error_of_the_api_server_is_short_and_clean_whatever_values_it_repeats() -> None:
    text = json.dumps({"message": "Invalid value: \x1b[2J\x00" + "x" * MIB + " password=hunter2hunter2"}).encode()
    error = _error(422, text, "")
    assert len(error.message) <= 4000
    assert "\x1b" not in error.message
    assert "hunter2hunter2" not in error.message
    told = failure_of(Reason.PodsRefused, "a\x1b[31mb token=abcdefghijkl", attempt=1, at=NOW)
    assert told.message == "ab token=[redacted]"
    again = failure_of(Reason.PodsRefused, told.message, attempt=1, at=NOW)
    assert again.message == told.message, "or each look would write it again"


def test_what_was_known_of_a_job_goes_when_its_own_operator_writes_its_end() -> None:
    """The watch tells the writer nothing that it does not know, and ended jobs stay for months."""
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job(status={"phase": "Running", "attempt": 1, "nodes": 2}))
    gone = raw_pod(2, status={"phase": "Failed"})
    cache.feed(PODS, "DELETED", gone)
    cache.note(KEY, report=Report("u", ProgressReport(attempt=1, phase="training")))
    cache.note(KEY, pods_refused=PodsRefused("c1", "exceeded quota " * 200))
    assert cache.of(KEY).ended_pods

    async def replace_status(body: Raw) -> Raw:
        return raw_job(3, status=body["status"])

    applier = Applier(SimpleNamespace(replace_status=replace_status), cache, lambda: NOW, lambda *_: None)  # type: ignore[arg-type]
    job = cache.job(KEY)
    assert job is not None
    asyncio.run(applier.write_status(job, change(job.status, phase=Phase.Failed)))
    assert cache.notes == {}


def test_a_report_that_comes_after_the_end_is_not_kept() -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, ended())
    cache.note(KEY, report=Report("u", ProgressReport(attempt=3, phase="done")))
    Poller(cache, news=lambda _: None).follow(KEY, observe(cache, KEY, DEFAULTS))
    assert cache.of(KEY).report is None


OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("a copy for debugging", {"ownerReferences": []}),
    ("a pod of the attempt before", 
     {"ownerReferences": [{"kind": "Job", "name": "a-1", "uid": "c1", "controller": True}]}),
    ("a probe's", {"labels": {names.LABEL_JOB: "a", names.LABEL_PROBE: "u.2"},
                   "ownerReferences": [{"kind": "Job", "name": "a-2-probe", "uid": "cp", "controller": True}]}),
]  # fmt: skip


@pytest.mark.parametrize("other", [row[1] for row in OTHERS], ids=[row[0] for row in OTHERS])
def test_what_is_remembered_of_an_attempt_is_not_lost_to_other_pods(other: dict[str, Any]) -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job(status={"phase": "Running", "attempt": 2, "nodes": 2}))
    own = raw_pod(2, uid="culprit", status={"phase": "Failed"})
    own["metadata"]["ownerReferences"] = [{"kind": "Job", "name": "a-2", "uid": "c2", "controller": True}]
    cache.feed(PODS, "DELETED", own)
    late = raw_pod(3, uid="late", status={"phase": "Failed"})
    late["metadata"] |= {"name": "late", "generateName": "late-"} | other
    cache.feed(PODS, "DELETED", late)
    assert [pod.uid for pod in cache.of(KEY).ended_pods] == ["culprit"]


def test_the_job_of_an_attempt_is_not_forgotten_for_a_probe_or_an_earlier_one() -> None:
    def child(name: str, uid: str, **labels: str) -> Raw:
        owner = {"kind": names.KIND, "name": "a", "uid": "u", "controller": True}
        meta = {"namespace": "ml", "name": name, "uid": uid, "resourceVersion": "5", "ownerReferences": [owner]}
        status = {"conditions": [{"type": "Complete", "status": "True"}]}
        return {"metadata": meta | {"labels": {names.LABEL_JOB: "a", **labels}}, "spec": {}, "status": status}

    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job(status={"phase": "Running", "attempt": 2, "nodes": 2}))
    cache.feed(JOBS, "DELETED", child("a-2", "c2"))
    cache.feed(JOBS, "DELETED", child("a-2-probe", "cp", **{names.LABEL_PROBE: "u.2"}))
    cache.feed(JOBS, "DELETED", child("a-1", "c1"))
    assert getattr(cache.of(KEY).ended_job, "uid", None) == "c2"
    cache.feed(FINETUNEJOBS, "DELETED", raw_job(9))
    cache.feed(JOBS, "DELETED", child("a-3", "c3"))
    assert cache.notes == {}


def test_a_late_word_of_a_deleted_job_takes_nothing_from_the_next_of_its_name() -> None:
    cache = Cache()
    cache.feed(FINETUNEJOBS, None, raw_job(5, uid="next"))
    cache.feed(PODS, "DELETED", raw_pod(6, status={"phase": "Failed"}))
    cache.feed(FINETUNEJOBS, "DELETED", raw_job(4, uid="u"))
    assert cache.of(KEY).ended_pods
