"""Raw objects of the API server as small typed views: only what decisions and metrics use.

A pod's view is a fiftieth of the pod. Times are aware datetimes in UTC, to the second, as the API server gives them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from pydantic import ValidationError

from finetune_api import names
from finetune_api.failures import LastWords
from finetune_api.rules import MUTABLE_WHILE_SUSPENDED
from finetune_api.status import FineTuneJobStatus

from .resources import Key, Raw

TAIL = 2000
"""Characters kept of a container's message that is not our JSON."""


def parse_time(text: str | None) -> datetime | None:
    """RFC 3339 → UTC. None for nothing, and for what is no time."""
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A FineTuneJob."""

    namespace: str
    name: str
    uid: str
    version: int
    generation: int
    created: datetime | None
    deleting: bool
    raw_spec: dict[str, Any]
    status: FineTuneJobStatus

    @property
    def owner(self) -> Key:
        return self.namespace, self.name

    @property
    def wanted_nodes(self) -> int:
        """Of the spec as it is, which may make no sense."""
        nodes = self.raw_spec.get("nodes", 1)
        most = nodes.get("max") if isinstance(nodes, dict) else nodes
        return most if isinstance(most, int) else 1

    @property
    def suspended(self) -> bool:
        return self.raw_spec.get("suspend") is True

    @property
    def pods_digest(self) -> str:
        """Of what the manifest says of the pods: all that can be changed while they are not there."""
        told = {field: self.raw_spec[field] for field in MUTABLE_WHILE_SUSPENDED if field in self.raw_spec}
        return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]

    @property
    def foreign(self) -> bool:
        """Somebody else looks after it."""
        return self.raw_spec.get("managedBy") not in (None, names.MANAGER)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildJob:
    """The Indexed Job of one attempt."""

    namespace: str
    name: str
    uid: str
    version: int
    owner: Key
    job_uid: str
    """uid of the FineTuneJob for which it was made."""
    attempt: int
    nodes: int
    created: datetime | None
    deleting: bool
    complete: bool
    failing: bool
    """It failed or is about to: the Job controller starts no more pods."""
    finished: bool
    """Complete or Failed: the Job controller says so only when no pod runs any more."""
    message: str
    """Why it failed."""
    suspended: bool = False
    """By whomever, and until the Job controller says that it is resumed."""
    resumed: datetime | None = None
    """When the Job controller last did; None: it was never suspended, or still is."""
    queue: str = ""
    """The queue that may suspend and resume it."""
    gang: str = ""
    """The way to schedule its pods together that it was made for; empty: one by one."""
    pods_digest: str = ""
    """Of what the manifest said of its pods; empty: a version made it that kept none."""
    holder: str = ""
    """Who suspended it, by the name under which that was written."""
    probe: str = ""
    """Not an attempt, but what looks for more nodes for one: see names.probe_of."""

    @property
    def held(self) -> bool:
        """It may not have pods now."""
        return self.suspended and not (self.deleting or self.failing or self.finished)

    @property
    def wanted_since(self) -> datetime | None:
        """Since when its pods should be there; None while it is suspended."""
        return None if self.suspended else self.resumed or self.created


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the trainer's container ended."""

    exit_code: int
    signal: int
    reason: str
    """The kubelet's: Completed, Error, OOMKilled, StartError, ..."""
    at: datetime | None
    words: LastWords | None
    text: str
    """Its message, if that is not ours."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why the trainer's container does not run yet, in the kubelet's words: ImagePullBackOff, ..."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    namespace: str
    name: str
    uid: str
    version: int
    owner: Key
    job_uid: str
    attempt: int
    index: int
    phase: str
    reason: str
    """Of the pod's status: Evicted, OutOfcpu, NodeLost, ..."""
    message: str
    node: str
    ip: str
    created: datetime | None
    scheduled: datetime | None
    deleting: bool
    disruption: str
    """Reason of a true DisruptionTarget condition: PreemptionByScheduler, EvictionByEvictionAPI, ..."""
    disrupted: datetime | None
    ended: Ended | None
    ends: datetime | None = None
    """When it has to have ended, if it was told to."""
    waiting: Waiting | None = None
    unschedulable: str = ""
    """The scheduler's words on why no node takes it."""
    probe: str = ""
    """As of its Job."""
    unreachable: bool = False
    """Its container runs for all that is known, but its node does not report any more."""

    @property
    def unfinished(self) -> bool:
        return self.phase not in ("Succeeded", "Failed")


def view_job(raw: Raw) -> JobView:
    """ValidationError if the status was written by a version that we do not know."""
    meta = raw["metadata"]
    status = raw.get("status") or {}
    return JobView(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        version=int(meta["resourceVersion"]),
        generation=meta.get("generation", 0),
        created=parse_time(meta.get("creationTimestamp")),
        deleting="deletionTimestamp" in meta,
        raw_spec=raw.get("spec") or {},
        status=FineTuneJobStatus.model_validate_json(orjson.dumps(status)),
    )


def view_child_job(raw: Raw) -> ChildJob:
    meta, spec = raw["metadata"], raw["spec"]
    labels = meta.get("labels", {})
    notes = meta.get("annotations", {})
    conditions = {c["type"]: c for c in raw.get("status", {}).get("conditions", ())}
    true = {type: c for type, c in conditions.items() if c["status"] == "True"}
    suspended = bool(spec.get("suspend")) or "Suspended" in true
    failed = true.get("Failed") or true.get("FailureTarget")
    return ChildJob(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        version=int(meta["resourceVersion"]),
        owner=(meta["namespace"], labels.get(names.LABEL_JOB, "")),
        job_uid=labels.get(names.LABEL_UID, ""),
        attempt=_number(labels.get(names.LABEL_ATTEMPT)),
        nodes=spec.get("completions") or 1,
        created=parse_time(meta.get("creationTimestamp")),
        deleting="deletionTimestamp" in meta,
        complete="Complete" in true,
        failing=failed is not None,
        finished="Complete" in true or "Failed" in true,
        message=failed.get("message", "") if failed else "",
        suspended=suspended,
        resumed=None if suspended else parse_time(conditions.get("Suspended", {}).get("lastTransitionTime")),
        queue=labels.get(names.LABEL_QUEUE, ""),
        gang=notes.get(names.ANNOTATION_GANG, ""),
        pods_digest=notes.get(names.ANNOTATION_PODS, ""),
        holder=_writer(meta, "f:suspend") if suspended else "",
        probe=labels.get(names.LABEL_PROBE, ""),
    )


def _writer(meta: dict[str, Any], field: str) -> str:
    """Who wrote a field of the spec."""
    owners = (m for m in meta.get("managedFields", ()) if field in m.get("fieldsV1", {}).get("f:spec", {}))
    return next((owner.get("manager", "") for owner in owners), "")


def view_pod(raw: Raw) -> Pod:
    meta, spec, status = raw["metadata"], raw.get("spec", {}), raw.get("status", {})
    labels = meta.get("labels", {})
    conditions = {c["type"]: c for c in status.get("conditions", ()) if c["status"] == "True"}
    missing = {c["type"]: c for c in status.get("conditions", ()) if c["status"] == "False"}
    scheduled, disrupted = conditions.get("PodScheduled"), conditions.get("DisruptionTarget")
    homeless, container = missing.get("PodScheduled"), _trainer(status)
    return Pod(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        version=int(meta["resourceVersion"]),
        owner=(meta["namespace"], labels.get(names.LABEL_JOB, "")),
        job_uid=labels.get(names.LABEL_UID, ""),
        attempt=_number(labels.get(names.LABEL_ATTEMPT)),
        index=_number(labels.get(names.LABEL_COMPLETION_INDEX)),
        phase=status.get("phase", "Pending"),
        reason=status.get("reason", ""),
        message=status.get("message", ""),
        node=spec.get("nodeName", ""),
        ip=status.get("podIP", ""),
        created=parse_time(meta.get("creationTimestamp")),
        scheduled=parse_time(scheduled.get("lastTransitionTime")) if scheduled else None,
        deleting="deletionTimestamp" in meta,
        ends=parse_time(meta.get("deletionTimestamp")),
        disruption=disrupted.get("reason", "DisruptionTarget") if disrupted else "",
        disrupted=parse_time(disrupted.get("lastTransitionTime")) if disrupted else None,
        ended=_ended(container),
        waiting=_waiting(container),
        unschedulable=homeless.get("message", "") if homeless and homeless.get("reason") == "Unschedulable" else "",
        probe=labels.get(names.LABEL_PROBE, ""),
        unreachable="Ready" in missing and bool(container.get("ready")),
    )


def _trainer(status: dict[str, Any]) -> dict[str, Any]:
    """Status of the container that counts; empty while there is none."""
    return next((c for c in status.get("containerStatuses", ()) if c.get("name") == names.CONTAINER), {})


def _waiting(container: dict[str, Any]) -> Waiting | None:
    state = container.get("state", {}).get("waiting")
    return Waiting(state.get("reason", ""), state.get("message", "")[-TAIL:]) if state else None


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def _ended(container: dict[str, Any]) -> Ended | None:
    state = container.get("state", {}).get("terminated")
    if not state:
        return None
    text = state.get("message", "")
    words = _words(text)
    return Ended(
        exit_code=state.get("exitCode", 0),
        signal=state.get("signal", 0),
        reason=state.get("reason", ""),
        at=parse_time(state.get("finishedAt")),
        words=words,
        text="" if words else text[-TAIL:],
    )


def _words(text: str) -> LastWords | None:
    """None if the message is not the agent's: the container died before it could speak."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        return LastWords.model_validate_json(text)
    except ValidationError:
        return None
