"""Secrets that a user can put into a job, planted everywhere: none comes out where others read.

Looked through: statuses, events, labels and annotations of all objects, the metrics page, the operator's log, what the
command prints. Allowed: the container's own environment, and the plan (an annotation of the pods), which has the URIs
as the manifest has them, because the trainer needs them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import generate_latest

from finetune_api import manifest, names
from finetune_api.client import Job
from finetune_api.failures import Reason, TerminationMessage
from finetune_api.job import FineTuneJob
from finetune_operator.decide import decide
from finetune_operator.kube.resources import FINETUNEJOBS, JOBS, PODS, Raw
from finetune_operator.kube.workqueue import WorkQueue
from finetune_operator.metrics import Counters, State
from finetune_operator.reconciler import record_transition
from finetune_operator.state.cache import Cache
from finetune_operator.state.observe import Defaults, observe
from finetune_trainer.cli.text import status_text
from finetune_trainer.cli.top import read, text
from tests.support.operator_objects import NOW, raw_pod

CANARY = "canary7f3d9b21c4"
KEY = ("ml", "a")


def uri(path: str) -> str:
    """Signed, as a store's console copies it."""
    return f"s3://corp/{path}?X-Amz-Signature={CANARY}&X-Amz-Credential={CANARY}"


SPEC: dict[str, Any] = {
    "model": {"uri": uri("model"), "credentials": {"secretName": "keys"}},
    "data": {"train": [{"uri": uri("train.jsonl")}], "validation": {"uri": uri("validation.jsonl")}},
    "output": {"uri": uri("out"), "credentials": {"secretName": "keys"}},
    "retry": {"maxRestarts": 1},
    "pod": {
        "imagePullSecrets": [{"name": "pull"}],
        "env": [
            {"name": "HF_TOKEN", "value": f"hf_{CANARY}xxxxxxxxxxxx"},
            {"name": "HTTPS_PROXY", "value": f"http://user:{CANARY}@proxy:3128"},
            {"name": "AWS_SECRET_ACCESS_KEY", "value": CANARY},
            {"name": "DATABASE", "value": f"postgres://u:{CANARY}@db/x"},
        ],
    },
}  # fmt: skip
LEAKS = (
    f"cannot read {uri('train.jsonl')}: 403",
    f"proxy http://user:{CANARY}@proxy:3128 refused the connection",
    f"401 for Authorization: Bearer {CANARY}{CANARY}",
    f"AWS_SECRET_ACCESS_KEY={CANARY} is not valid",
    f"HF_TOKEN hf_{CANARY}xxxxxxxxxxxx has no access",
)
"""What a library may say of them in an error."""


def failed(message: str, attempt: int, *, json_words: bool) -> Raw:
    """A pod that ended with the message, by our agent or by whatever died before it."""
    words = TerminationMessage(
        failure_class=None, reason=Reason.StorageUnavailable, message=message, hint=message, exit_code=69
    )
    said = words.encode() if json_words else message
    raw = raw_pod(version=attempt + 50, uid=f"p{attempt}")
    raw["metadata"]["labels"][names.LABEL_ATTEMPT] = str(attempt)
    raw["metadata"]["ownerReferences"] = [
        {"kind": "Job", "name": f"a-{attempt}", "uid": f"c{attempt}", "controller": True}
    ]
    state = {"terminated": {"exitCode": 69, "reason": "Error", "message": said, "finishedAt": "2026-01-02T03:04:05Z"}}
    raw["status"] = {
        "phase": "Failed", "message": message, "containerStatuses": [{"name": names.CONTAINER, "state": state}],
    }  # fmt: skip
    return raw


def life(message: str, *, json_words: bool) -> Iterator[tuple[str, Any]]:
    """Everything that is written while the job fails twice, each with where it is written."""
    cache, counters = Cache(), Counters()
    defaults = Defaults(image="trainer:test", key=b"canary")
    meta = {"namespace": "ml", "name": "a", "uid": "u", "generation": 1}
    head = {"apiVersion": names.API_VERSION, "kind": names.KIND}
    status: dict[str, Any] = {}
    made: dict[str, Raw] = {}
    now = NOW
    for version in range(1, 12):
        cache.feed(
            FINETUNEJOBS,
            None,
            head | {"metadata": meta | {"resourceVersion": str(version)}, "spec": SPEC, "status": status},
        )
        seen = observe(cache, KEY, defaults)
        assert seen is not None
        assert seen.spec is not None or seen.job.ended, seen.problem
        now = now.replace(minute=now.minute + 2)
        decision = decide(seen, now)
        record_transition(counters, seen.job, decision.status)
        status = decision.status.to_json()
        yield "status", status
        for event in decision.events:
            yield "event", event.message
        for each in decision.create:
            yield from objects(each.body)
            if each.resource is JOBS:
                attempt = int(each.body["metadata"]["labels"][names.LABEL_ATTEMPT])
                known = {"uid": f"c{attempt}", "resourceVersion": str(version + 100)}
                made[f"a-{attempt}"] = each.body | {"metadata": each.body["metadata"] | known}
                cache.feed(JOBS, None, made[f"a-{attempt}"])
                cache.feed(PODS, None, failed(message, attempt, json_words=json_words))
        for child in decision.delete:
            gone = made[child.name]
            gone["metadata"] |= {"resourceVersion": "999"}
            cache.feed(JOBS, "DELETED", gone)
        counters.registry.register(state := State(cache, WorkQueue()))
        yield "metrics", generate_latest(counters.registry).decode()
        counters.registry.unregister(state)
    job = head | {"metadata": {"name": "a", "namespace": "ml", "uid": "u"}, "spec": SPEC, "status": status}
    shown = FineTuneJob.model_validate_json(json.dumps(job))
    assert shown.status.phase == "Failed"
    yield "finetune status", status_text("a", shown.status)
    line = read(Job.read(job))
    assert line is not None
    yield "finetune top", text([line])


def objects(body: Raw) -> Iterator[tuple[str, Any]]:
    """An object's parts that more people read than its author: all but the environment and the plan."""
    yield f"{body['kind']}.metadata", body["metadata"]
    template = body["spec"].get("template")
    if template is None:
        yield body["kind"], body["spec"]
        return
    notes = template["metadata"]["annotations"]
    assert CANARY in notes[names.ANNOTATION_PLAN], "the test plants URIs that reach the pod"
    assert CANARY not in json.dumps(json.loads(notes[names.ANNOTATION_PLAN])["spec"].get("pod", {}))
    yield "template.metadata", template["metadata"] | {"annotations": notes | {names.ANNOTATION_PLAN: ""}}
    container, *others = template["spec"]["containers"]
    yield "pod", template["spec"] | {"containers": [container | {"env": [], "envFrom": []}, *others]}


@pytest.mark.parametrize("json_words", [True, False])
@pytest.mark.parametrize("message", LEAKS)
def test_no_secret_comes_out(message: str, json_words: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    found = [where for where, what in life(message, json_words=json_words) if CANARY in json.dumps(what)]

    assert found == []
    assert CANARY not in caplog.text


@pytest.mark.parametrize("where", ["model", "output"])
def test_no_secret_comes_out_of_a_manifest_that_is_refused(where: str) -> None:
    broken = SPEC | {where: {"uri": f"s3://user:{CANARY}@corp/x"}}
    cache = Cache()
    meta = {"namespace": "ml", "name": "a", "uid": "u", "generation": 1, "resourceVersion": "1"}
    cache.feed(FINETUNEJOBS, None, {"metadata": meta, "spec": broken})
    seen = observe(cache, KEY, Defaults())
    assert seen is not None
    decision = decide(seen, NOW)

    assert seen.problem
    assert CANARY not in json.dumps(decision.status.to_json())
    assert CANARY not in "".join(event.message for event in decision.events)
    head = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "a"}}
    assert CANARY not in "\n".join(map(str, manifest.validate(head | {"spec": broken})))
