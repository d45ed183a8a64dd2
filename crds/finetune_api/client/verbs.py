"""What each method asks of the cluster, and what it refuses. Pure generators: see kubectl."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finetune_api.failures import FailureClass, FinetuneError, Reason
from finetune_api.fields import DNS_NAME
from finetune_api.names import MAX_NAME_LENGTH
from finetune_api.status import Phase

from .copies import again
from .job import Action, Event, Job, Jobs, Outcome
from .kubectl import RESOURCE, Answer, Call, Pause, Steps, refused

EVENTS = 20
"""At most so many events are returned, the latest ones."""
READ_SECONDS = 20
"""For a read: kubectl alone waits for minutes, or forever, for a server that takes a connection and does not answer."""

OUTAGE_SECONDS = 600
"""For which a program that follows a job waits for an API server that does not answer any more."""


def get(name: str) -> Steps[Job]:
    """NotFound also for what cannot be a name: kubectl would take `--all` for an option."""
    if not re.fullmatch(DNS_NAME, name):
        raise FinetuneError(Reason.NotFound, f"no FineTuneJob can be named {name!r}", "Give the name of one job.")
    answer = yield _read(RESOURCE, name)
    return Job.read(_object(answer, name))


def list_jobs(*, everywhere: bool) -> Steps[Jobs]:
    """Jobs that another version of the operator wrote in a way that cannot be read are left out."""
    answer = yield _read(RESOURCE, *(["--all-namespaces"] if everywhere else []))
    found = []
    for raw in _object(answer, "").get("items", ()):
        try:
            found.append(Job.read(raw))
        except FinetuneError:
            continue
    return Jobs(found)


def events(name: str) -> Steps[tuple[Event, ...]]:
    """The latest events of a job, the last one last."""
    which = f"involvedObject.kind=FineTuneJob,involvedObject.name={name}"
    answer = yield _read("events", "--field-selector", which)
    found = [_event(raw) for raw in _object(answer, name).get("items", ())]
    return tuple(sorted(found, key=lambda event: event.time)[-EVENTS:])


def _read(*arguments: str) -> Call:
    return Call(("get", *arguments, "--output", "json"), seconds=READ_SECONDS)


def _event(raw: Mapping[str, Any]) -> Event:
    series = raw.get("series") or {}
    times = (series.get("lastObservedTime"), raw.get("lastTimestamp"), raw.get("eventTime"))
    created = (raw.get("metadata") or {}).get("creationTimestamp")
    return Event(
        time=next((time for time in (*times, created) if time), ""), type=raw.get("type") or "Normal",
        reason=raw.get("reason") or "", message=raw.get("message") or "",
        count=series.get("count") or raw.get("count") or 1,
    )  # fmt: skip


def submit(raw: Mapping[str, Any], *, action: Action = "submitted", dry_run: bool = False) -> Steps[Outcome]:
    """Creates a job. AlreadyExists if there is one of that name."""
    name = raw["metadata"]["name"]
    job = yield from _created(raw, dry_run=dry_run)
    done = f"{name} would be created" if dry_run else f"created {name} in namespace {job.namespace}"
    follow = () if dry_run else (_typed("watch", job), _typed("logs", job, "-f"))
    return _outcome(action, job, done, changed=not dry_run, then=follow)


def _created(raw: Mapping[str, Any], *, dry_run: bool = False) -> Steps[Job]:
    name = raw["metadata"].get("name", "")
    trial = ("--dry-run=server",) if dry_run else ()
    answer = yield Call(("create", *trial, "--filename", "-", "--output", "json"), stdin=json.dumps(raw))
    if answer.status and "(AlreadyExists)" in answer.err:
        message = f"there is already a FineTuneJob named {name}"
        hint = f"`finetune retry {name} --file FILE` replaces a failed job; otherwise choose another metadata.name."
        raise FinetuneError(Reason.AlreadyExists, message, hint)
    return Job.read(_object(answer, name))


def stop(name: str) -> Steps[Outcome]:
    """Sets spec.suspend: the job stops after a checkpoint and releases its nodes."""
    job = yield from get(name)
    if job.finished:
        raise _wrong_phase(job, "so there is nothing to stop", _after(job))
    then = (_typed("resume", job), _typed("watch", job))
    if job.spec.suspend:
        return _outcome("stopped", job, f"{name} is already stopped", changed=False, then=then[:1])
    job = yield from _suspended(job, True)
    return _outcome("stopped", job, f"{name} stops after a checkpoint and releases its nodes", then=then)


def resume(name: str) -> Steps[Outcome]:
    """Clears spec.suspend: the job continues from its last checkpoint."""
    job = yield from get(name)
    if job.finished:
        raise _wrong_phase(job, "so it cannot be resumed", _after(job))
    then = (_typed("watch", job),)
    if not job.spec.suspend:
        return _outcome("resumed", job, f"{name} is not stopped (phase {job.phase})", changed=False, then=then)
    job = yield from _suspended(job, False)
    return _outcome("resumed", job, f"{name} continues from its last checkpoint", then=then)


def _suspended(job: Job, value: bool) -> Steps[Job]:
    patch = json.dumps({"spec": {"suspend": value}})
    answer = yield Call(("patch", RESOURCE, job.name, "--type", "merge", "--patch", patch, "--output", "json"))
    return Job.read(_object(answer, job.name))


def retry(name: str, changed: Mapping[str, Any] | None = None) -> Steps[Outcome]:
    """Deletes a failed job and creates it again, with the manifest `changed` if there is one.

    The phase Failed is final, so the new job starts from the first step: it has another UID, and with it other
    checkpoints. The API server checks the new manifest before the old job is deleted.
    """
    job = yield from get(name)
    _refuse_retry(job, changed)
    raw = dict(changed) if changed is not None else again(job.raw)
    labelled = {key: value for key, value in raw["metadata"].items() if key != "name"}
    trial = {**raw, "metadata": {**labelled, "generateName": f"{name[: MAX_NAME_LENGTH - 6]}-"}}
    yield from _created(trial, dry_run=True)
    answer = yield Call(("delete", RESOURCE, name, "--cascade=foreground", "--wait=true", "--timeout=5m"))
    try:
        if answer.status and "(NotFound)" not in answer.err:
            raise refused(answer)
        created = yield from _created(raw)
    except FinetuneError as error:
        if "(Forbidden)" in answer.err:
            raise
        file = _kept(raw, name)
        message = f"{name} is deleted and was not created again: {error.message}"
        raise FinetuneError(error.reason, message, f"Its manifest is in {file}: finetune submit {file}") from error
    then = (_typed("watch", created), _typed("logs", created, "-f"))
    return _outcome("retried", created, f"{name} was deleted and created again; it starts from step 0", then=then)


def _refuse_retry(job: Job, changed: Mapping[str, Any] | None) -> None:
    name = job.name
    if changed is not None and changed["metadata"]["name"] != name:
        message = f"the manifest is of {changed['metadata']['name']}, not of {name}"
        raise FinetuneError(Reason.InvalidSpec, message, "Use `finetune submit FILE` for another job.")
    if job.phase is Phase.Succeeded:
        hint = f"To train again, use another name and output: finetune clone {name} {name}-2"
        raise _wrong_phase(job, "so there is nothing to retry", hint)
    if job.phase is not Phase.Failed:
        hint = "The operator restarts failed attempts by itself. " + (
            f"A stopped job continues with `finetune resume {name}`."
            if job.spec.suspend
            else f"To begin again, delete the job first: finetune delete {name} --force"
        )
        raise _wrong_phase(job, "and only a failed job can be retried", hint)
    owner = next((each for each in job.raw["metadata"].get("ownerReferences", ()) if each.get("controller")), None)
    if owner is not None:
        message = f"{name} belongs to {owner['kind']} {owner['name']}, which created it"
        raise FinetuneError(Reason.WrongPhase, message, f"Retry it there: {owner['kind']} {owner['name']}.")
    failure = job.status.last_failure
    if changed is None and failure is not None and failure.failure_class is FailureClass.Guard:
        publish = f"publish the artifact all the same: finetune promote {name}; or " if job.status.candidate else ""
        hint = f"Either {publish}change the manifest and use: finetune retry {name} --file job.yaml"
        raise _wrong_phase(job, "because of a guard, and the same manifest trains the same model", hint)


def _kept(raw: Mapping[str, Any], name: str) -> Path:
    """A file with a manifest that the cluster no longer has."""
    handle, path = tempfile.mkstemp(prefix=f"{name}-", suffix=".json")
    with os.fdopen(handle, "w") as file:
        json.dump(raw, file, indent=1)
    return Path(path)


def delete(name: str, *, force: bool) -> Steps[Outcome]:
    """Deletes a job. Artifacts stay; unfinished training is lost, which needs `force`."""
    job = yield from get(name)
    if job.unfinished_work and not force:
        hint = f"Use `finetune stop {name}` to keep it and release its nodes, or `finetune delete {name} --force`."
        raise _wrong_phase(job, "and no other job resumes its training", hint)
    answer = yield Call(("delete", RESOURCE, name, "--wait=false"))
    if answer.status:
        _object(answer, name)
    kept = f"; its artifact stays at {job.artifact.uri}" if job.artifact else ""
    return _outcome("deleted", job, f"deleted {name}{kept}")


def get_again(name: str, *, every: float) -> Steps[Job]:
    """The job, of which an API server that does not answer is asked again for OUTAGE_SECONDS."""
    waited = 0.0
    while True:
        try:
            return (yield from get(name))
        except FinetuneError as error:
            if error.reason is not Reason.ClusterUnavailable or waited >= OUTAGE_SECONDS:
                raise
        yield Pause(max(every, 1.0))
        waited += max(every, 1.0)


def wait(name: str, ready: Callable[[Job], bool], *, timeout: float, every: float) -> Steps[Job]:
    """The job as soon as `ready` is true of it. TimeoutError after `timeout` seconds. An API server that stops
    answering is asked again, as by get_again."""
    waited = 0.0
    job: Job | None = None
    while True:
        job = yield from (get(name) if job is None else get_again(name, every=every))
        if ready(job):
            return job
        if waited >= timeout:
            raise TimeoutError(f"{name} is {job.phase} after {timeout:g} s")
        yield Pause(every)
        waited += every


def _after(job: Job) -> str:
    if job.phase is Phase.Failed:
        return f"See `finetune status {job.name}` for the cause; `finetune retry {job.name}` starts it again."
    return f"See `finetune report {job.name}`; `finetune clone {job.name} NEW_NAME` trains again."


def _wrong_phase(job: Job, why: str, hint: str) -> FinetuneError:
    return FinetuneError(Reason.WrongPhase, f"{job.name} is {job.phase}, {why}", hint)


def _typed(command: str, job: Job, *options: str) -> str:
    return " ".join(("finetune", command, job.name, "-n", job.namespace, *options))


def _outcome(action: Action, job: Job, message: str, *, changed: bool = True, then: tuple[str, ...] = ()) -> Outcome:
    return Outcome(
        action=action, name=job.name, namespace=job.namespace, uid=job.uid if changed or action != "submitted" else "",
        phase=job.phase, changed=changed, message=message, next=then,
    )  # fmt: skip


def _object(answer: Answer, name: str) -> dict[str, Any]:
    """The object that kubectl printed."""
    if answer.status == 0:
        found: dict[str, Any] = json.loads(answer.out)
        return found
    if "(NotFound)" in answer.err and "namespaces" not in answer.err:
        hint = "Check the name, the namespace (-n) and, for runs on this machine, the folder (--home)."
        said = answer.err.strip().splitlines()[-1]
        raise FinetuneError(Reason.NotFound, f"no FineTuneJob named {name}: {said}", hint)
    raise refused(answer)
