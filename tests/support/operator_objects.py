"""Small objects for the operator's tests: the least that makes sense, as views and as the API server sends them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from finetune_api import names
from finetune_api.failures import CLASSES, Reason, TerminationMessage, class_of
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus, Phase, Restarts
from finetune_operator.health import Guard
from finetune_operator.health_checks import HealthChecks
from finetune_operator.kube.kopf_watch import Watcher
from finetune_operator.kube.resources import Raw
from finetune_operator.kube.workqueue import WorkQueue
from finetune_operator.metrics import Counters
from finetune_operator.state.namespace_sync import WatchedNamespaces
from finetune_operator.state.observe import Defaults, Observed
from finetune_operator.state.views import ChildJob, Ended, JobView, Pod

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DEFAULTS = Defaults(image="trainer:test")

SPEC: dict[str, Any] = {
    "model": {"uri": "hf://org/model"},
    "data": {"train": [{"uri": "s3://corp/train.jsonl"}]},
    "output": {"uri": "s3://corp/out"},
    "nodes": 2,
}


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def spec(**fields: Any) -> FineTuneJobSpec:
    return FineTuneJobSpec.model_validate(SPEC | fields, strict=False)


def job(status: FineTuneJobStatus | None = None, **fields: Any) -> JobView:
    known: dict[str, Any] = {
        "namespace": "ml", "name": "a", "uid": "u", "version": 1, "generation": 1, "created": NOW, "deleting": False,
        "raw_spec": SPEC, "status": status or FineTuneJobStatus(),
    }  # fmt: skip
    return JobView(**known | fields)


def status(phase: Phase, attempt: int = 1, *, counted: int = 0, free: int = 0, **fields: Any) -> FineTuneJobStatus:
    restarts = Restarts(counted=counted, free=free)
    return FineTuneJobStatus(phase=phase, attempt=attempt, restarts=restarts, nodes=2, **fields)


def child(attempt: int = 1, **fields: Any) -> ChildJob:
    known: dict[str, Any] = {
        "namespace": "ml", "name": f"a-{attempt}", "uid": f"c{attempt}", "version": 1, "owner": ("ml", "a"),
        "job_uid": "u", "attempt": attempt, "nodes": 2, "created": NOW, "deleting": False, "complete": False,
        "failing": False, "finished": False, "message": "",
    }  # fmt: skip
    return ChildJob(**known | fields)


def pod(index: int = 0, phase: str = "Pending", attempt: int = 1, **fields: Any) -> Pod:
    known: dict[str, Any] = {
        "namespace": "ml", "name": f"a-{attempt}-{index}-x", "uid": f"p{attempt}-{index}", "version": 1,
        "owner": ("ml", "a"), "job_uid": "u", "attempt": attempt, "index": index, "phase": phase, "reason": "",
        "message": "", "node": "", "ip": "", "created": NOW, "scheduled": None, "deleting": False, "disruption": "",
        "disrupted": None, "ended": None, "controller": f"c{attempt}" if attempt else "probe",
    }  # fmt: skip
    return Pod(**known | fields)


def ended(
    code: int = 0, *, reason: str = "", words: TerminationMessage | None = None, text: str = "", at: float = 0
) -> Ended:
    return Ended(
        exit_code=code,
        signal=0,
        reason=reason or ("Error" if code else "Completed"),
        at=later(at),
        words=words,
        text=text,
    )


def words(reason: Reason, *, at: float = 0.0, rank: int | None = None, message: str = "it broke") -> TerminationMessage:
    failure_class = class_of(reason)
    return TerminationMessage(
        failure_class=failure_class,
        reason=reason,
        message=message,
        exit_code=CLASSES[failure_class].exit_code,
        rank=rank,
        time=later(at).isoformat(),
    )


def failed_pod(index: int, reason: Reason, *, at: float = 0.0, attempt: int = 1) -> Pod:
    last = words(reason, at=at, rank=index)
    return pod(index, "Failed", attempt, ended=ended(last.exit_code, words=last, at=at))


def seen(view: JobView, *, children: tuple[ChildJob, ...] = (), pods: tuple[Pod, ...] = (), **fields: Any) -> Observed:
    """`confirmed`, unless said otherwise: this is all that there is."""
    known: dict[str, Any] = {"spec": spec(), "children": children, "pods": pods, "defaults": DEFAULTS}
    return Observed(job=view, **known | {"confirmed": True} | fields)


def suspended(view: JobView) -> JobView:
    return replace(view, raw_spec=SPEC | {"suspend": True})


def vitals_of(counters: Counters, *, listen: str = "") -> HealthChecks:
    """The health of an operator that has just begun: nothing is in sync, no watch was answered."""
    watcher = Watcher(SimpleNamespace(), (), fed=_ignore, listed=_ignore, seen=_ignore)  # type: ignore[arg-type]
    return HealthChecks(
        listen=listen,
        guard=Guard(),
        registry=counters.registry,
        watcher=watcher,
        scope=WatchedNamespaces(()),
        queue=WorkQueue(),
        synced=asyncio.Event(),
    )


def _ignore(*_: Any) -> None: ...


# as the API server sends them


def raw_job(version: int = 1, uid: str = "u", **fields: Any) -> dict[str, Any]:
    meta = {"namespace": "ml", "name": "a", "uid": uid, "resourceVersion": str(version), "generation": 1}
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": meta, "spec": SPEC, **fields}


def raw_pod(version: int = 1, uid: str = "p", index: int = 0, **fields: Any) -> dict[str, Any]:
    labels = {
        names.LABEL_JOB: "a",
        names.LABEL_UID: "u",
        names.LABEL_ATTEMPT: "1",
        names.LABEL_COMPLETION_INDEX: str(index),
    }
    meta = {"namespace": "ml", "name": f"a-1-{index}-x", "uid": uid, "resourceVersion": str(version), "labels": labels}
    meta["ownerReferences"] = [{"kind": "Job", "name": "a-1", "uid": "c1", "controller": True}]
    meta["annotations"] = {names.LABEL_COMPLETION_INDEX: str(index)}
    return {"metadata": meta, "spec": {"nodeName": "n1"}, "status": {"phase": "Running"}, **fields}


def raw_child(version: int = 1, *, labels: bool = True, uid: str = "c1", owner: str = "u") -> Raw:
    marks = {names.LABEL_JOB: "a", names.LABEL_UID: "u", names.LABEL_ATTEMPT: "1"}
    owners = [{"kind": names.KIND, "name": "a", "uid": owner, "controller": True}]
    meta = {"namespace": "ml", "name": "a-1", "uid": uid, "resourceVersion": str(version), "ownerReferences": owners}
    return {"metadata": meta | {"labels": marks if labels else {}}, "spec": {"completions": 2}}


def terminated(raw: Raw, code: int, *others: Raw, phase: str = "Running") -> Raw:
    ours = {"name": names.CONTAINER, "state": {"terminated": {"exitCode": code}}}
    return raw | {"status": {"phase": phase, "containerStatuses": [ours, *others]}}
