"""Raw objects of the API server to typed views (see views): whatever a stranger wrote into them is bounded here."""

from __future__ import annotations

from typing import Any

import orjson

from finetune_api import names
from finetune_api.measurements import Evaluation
from finetune_api.status import FineTuneJobStatus
from finetune_api.text import clean
from finetune_operator.kube.resources import Raw

from . import ownership
from .pod_reports import termination_message
from .status import terminal
from .timestamps import parse_time
from .version_skew import read_status
from .views import SPEC_BYTES, TOO_DEEP, ChildJob, Ended, JobView, Pod, Waiting

TAIL = 2000
"""Characters kept of a container's message that is not our JSON, and of all others."""

WORD = 128
"""Characters kept of what should be a word: users who may write pods may write it, too."""

SPEC_LONG = 16 * 1024
"""Of a spec as JSON that is kept as that."""

KEPT_SPEC = ("nodes", "deadlines", "managedBy", "suspend", "ttlAfterFinished", "retry", "checkpoint")
KEPT_STATUS = ("phase", "attempt", "nodes", "restarts", "progress", "completion_time", "observed_generation", "usage")


def view_job(raw: Raw, *, whole: bool = False) -> JobView:
    """`whole`: with all of spec and status, whatever the job is."""
    meta, spec = raw["metadata"], raw.get("spec") or {}
    status, strange, left_out = read_status(raw.get("status") or {})
    try:
        text = orjson.dumps(spec)
    except TypeError:  # too many levels
        text, spec = b"", _kept(spec)
    size = len(text) if text else TOO_DEEP
    ended = terminal(status) and not strange and not whole
    if ended:
        status, left_out = _kept_status(status), {}
    long = size > SPEC_LONG and not whole
    if ended or long:
        spec = _kept(spec)
    return JobView(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        version=int(meta["resourceVersion"]),
        generation=meta.get("generation", 0),
        created=parse_time(meta.get("creationTimestamp")),
        deleting="deletionTimestamp" in meta,
        raw_spec=spec,
        status=status,
        strange_status=strange,
        left_out=left_out,
        spec_bytes=size,
        # A copy, without the room that orjson left for more.
        spec_json=bytes(memoryview(text)) if long and not ended and size <= SPEC_BYTES else b"",
        ended=ended,
    )


def _kept_status(status: FineTuneJobStatus) -> FineTuneJobStatus:
    """What is used of a job that has ended: its metrics ask why it failed, whether there is an artifact, and what its
    guards came to."""
    failure, artifact = status.last_failure, status.artifact
    guards = status.evaluation.guards if status.evaluation else ()
    return FineTuneJobStatus(
        **{name: getattr(status, name) for name in KEPT_STATUS},
        last_failure=failure and failure.model_copy(update={"message": "", "hint": "", "node": None}),
        artifact=artifact and artifact.model_copy(update={"uri": "", "digest": ""}),
        evaluation=Evaluation(guards=guards) if guards else None,
    )


def _kept(spec: dict[str, Any]) -> dict[str, Any]:
    """What is used of every job: by metrics, and by decisions about one that has ended."""
    kept = {name: spec[name] for name in KEPT_SPEC if name in spec and len(orjson.dumps(spec[name])) <= WORD}
    for name, part in (("method", "type"), ("model", "uri"), ("output", "uri"), ("guards", "onInconclusive")):
        if isinstance(spec.get(name), dict) and isinstance(text := spec[name].get(part), str):
            kept[name] = {part: text[:2048]}
    return kept | ({"command": []} if "command" in spec else {})


def view_child_job(raw: Raw) -> ChildJob:
    meta, spec = raw["metadata"], raw["spec"]
    labels = meta.get("labels", {})
    notes = meta.get("annotations", {})
    conditions = {c["type"]: c for c in raw.get("status", {}).get("conditions", ())}
    true = {type: c for type, c in conditions.items() if c["status"] == "True"}
    scaled_to = _scaled_to(spec)
    suspended = bool(spec.get("suspend")) or "Suspended" in true or scaled_to is not None
    failed = true.get("Failed") or true.get("FailureTarget")
    token, _, nonce = notes.get(names.ANNOTATION_AGENT, "").partition(".")
    kin = ownership.of_child(meta)
    return ChildJob(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        version=int(meta["resourceVersion"]),
        owner=(meta["namespace"], kin.job),
        job_uid=kin.job_uid,
        attempt=kin.attempt,
        nodes=spec.get("completions") or 1,
        created=parse_time(meta.get("creationTimestamp")),
        deleting="deletionTimestamp" in meta,
        complete="Complete" in true,
        failing=failed is not None,
        finished="Complete" in true or "Failed" in true,
        message=clean(failed.get("message", ""), TAIL) if failed else "",
        suspended=suspended,
        resumed=None if suspended else parse_time(conditions.get("Suspended", {}).get("lastTransitionTime")),
        queue=labels.get(names.LABEL_QUEUE, ""),
        gang=notes.get(names.ANNOTATION_GANG, "")[:WORD],
        pods_digest=notes.get(names.ANNOTATION_PODS, "")[:WORD],
        pods_digest_ordered=notes.get(names.ANNOTATION_PODS_ORDERED, "")[:WORD],
        holder=_writer(meta, "f:suspend" if scaled_to is None else "f:parallelism")[:WORD] if suspended else "",
        scaled_to=scaled_to,
        probe=labels.get(names.LABEL_PROBE, ""),
        token=token[:WORD],
        nonce=nonce[:WORD],
        failed_at=parse_time(failed.get("lastTransitionTime")) if failed else None,
        unwatched=names.LABEL_JOB not in labels,
    )


def _scaled_to(spec: dict[str, Any]) -> int | None:
    """Not for a Job without completions, which the operator did not create."""
    pods, wanted = spec.get("parallelism"), spec.get("completions")
    return pods if isinstance(pods, int) and isinstance(wanted, int) and pods < wanted else None


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
    kin = ownership.of_pod(meta)
    return Pod(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        version=int(meta["resourceVersion"]),
        owner=(meta["namespace"], kin.job),
        job_uid=kin.job_uid,
        attempt=kin.attempt,
        index=ownership.index(meta, spec),
        phase=status.get("phase", "Pending"),
        reason=clean(status.get("reason", ""), WORD),
        message=clean(status.get("message", ""), TAIL),
        node=spec.get("nodeName", ""),
        ip=status.get("podIP", ""),
        created=parse_time(meta.get("creationTimestamp")),
        scheduled=parse_time(scheduled.get("lastTransitionTime")) if scheduled else None,
        deleting="deletionTimestamp" in meta,
        ends=parse_time(meta.get("deletionTimestamp")),
        disruption=clean(disrupted.get("reason", "DisruptionTarget"), WORD) if disrupted else "",
        disrupted=parse_time(disrupted.get("lastTransitionTime")) if disrupted else None,
        ended=_ended(container),
        waiting=_waiting(container),
        unschedulable=clean(homeless.get("message", ""), TAIL)
        if homeless and homeless.get("reason") == "Unschedulable"
        else "",
        probe=labels.get(names.LABEL_PROBE, ""),
        controller=kin.controller,
        stray=kin.stray,
        unwatched=names.LABEL_JOB not in labels,
        ready="Ready" in conditions,
        unreachable=_unready_by_its_node(missing.get("Ready")) and bool(container.get("ready")),
        mute=_mute(missing.get("Ready"), container),
    )


def _unready_by_its_node(ready: dict[str, Any] | None) -> bool:
    """Where the kubelet itself says that a pod is not ready (a readiness gate that is not met, a sidecar that is not
    ready) it gives a reason. The node controller, which says so for a node that is silent, gives none."""
    return ready is not None and not ready.get("reason")


def _mute(ready: dict[str, Any] | None, container: dict[str, Any]) -> bool:
    """A pod that was never ready shows nothing: an image may have no such page. One that was ready became unready after
    its container had started."""
    running = container.get("state", {}).get("running")
    if ready is None or ready.get("reason") != "ContainersNotReady" or not running or container.get("ready", True):
        return False
    since, started = parse_time(ready.get("lastTransitionTime")), parse_time(running.get("startedAt"))
    return since is not None and started is not None and since > started


def _trainer(status: dict[str, Any]) -> dict[str, Any]:
    """Status of the container that counts; empty while there is none."""
    return next((c for c in status.get("containerStatuses", ()) if c.get("name") == names.CONTAINER), {})


def _waiting(container: dict[str, Any]) -> Waiting | None:
    state = container.get("state", {}).get("waiting")
    return Waiting(clean(state.get("reason", ""), WORD), clean(state.get("message", ""), TAIL)) if state else None


def _ended(container: dict[str, Any]) -> Ended | None:
    state = container.get("state", {}).get("terminated")
    if not state:
        return None
    text = state.get("message", "")
    words = termination_message(text)
    return Ended(
        exit_code=state.get("exitCode", 0),
        signal=state.get("signal", 0),
        reason=clean(state.get("reason", ""), WORD),
        at=parse_time(state.get("finishedAt")),
        words=words,
        text="" if words else clean(text[-2 * TAIL :], TAIL),
    )
