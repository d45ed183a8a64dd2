"""Random manifests from the CRD's schema: each is a real one with some fields replaced by hostile or odd values.

A number is a manifest: `manifest(7)` is the same everywhere. Half of the values keep to the schema, so that the
manifest reaches the code that makes objects; the others break it, as what slips through an API server would.
"""

from __future__ import annotations

import copy
import random
import re
from functools import cache
from typing import Any

from finetune_api.schema import crd
from tests.support.manifests import BASE, changed
from tests.support.valid_manifests import GOOD

Json = dict[str, Any]

SCHEMA: Json = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
SEEDS: tuple[Json, ...] = tuple(
    made for _, changes, before in GOOD if before is None and len(str(made := changed(BASE, changes))) < 20_000
)
"""Valid manifests that are not long."""

HOSTILE_TEXTS: tuple[str, ...] = (
    "", " ", "..", "../../etc/passwd", "/", "/etc/shadow", "/proc/self/root", "/var/run/docker.sock", "a\x00b",
    "a\nb: c", "\x1b[31m", "\u202eevil", "\ud800", "é" * 300, "x" * 5000, "$(HOME)", "{{ 7*7 }}", "{0.__class__}",
    "%s%n", "null", "true", "0", "-1", "1e999", "NaN", "kube-system/x", "a/b/c", "-leading", "trailing-", "UPPER",
    "a..b", "root", "*", "!!python/object:os.system", "hostPath", "file:///etc/passwd", "file:///proc/1/environ",
    "pvc://a/../../b", "pvc://kube-system.a/x", "s3://corp/../x", "s3://user:secret@corp/x", "hf://a/../b",
    "http://169.254.169.254/latest", "gs://aaa/%2e%2e/x",
    "container.apparmor.security.beta.kubernetes.io/trainer", "unconfined",
    "seccomp.security.alpha.kubernetes.io/pod", "finetune.dev/plan", "finetune.dev/job-name", "finetune.dev/uid",
    "batch.kubernetes.io/job-name", "kubernetes.io/hostname", "scheduling.k8s.io/group-name", "PATH", "LD_PRELOAD",
    "FINETUNE_OUTPUT_TOKEN", "KUBERNETES_SERVICE_HOST",
)  # fmt: skip
NICE_TEXTS: tuple[str, ...] = (
    "a", "finetune-run", "kube-root-ca", "default", "1Gi", "500m", "30s", "2h", "s3://corp/x", "pvc://claim/x", "a/b",
    "hf://org/name", "hf://datasets/org/name", "file:///data/x", "/data", "/dev/shm", "/etc/finetune", "/tmp/x",
    "nvidia.com/gpu", "cpu", "HOME", "A_1", "volcano", "yunikorn", "kai-scheduler", "coscheduling", "text", "label",
)  # fmt: skip
NUMBERS: tuple[Any, ...] = (0, 1, 2, 3, 7, 64, 1024, 1025, -1, 2**31, 2**53, 2**63, 10**30, 0.5, -0.5, 1e308)
RANGE = {"min": 1, "max": 3}
KEYS = tuple(text for text in HOSTILE_TEXTS if ("/" in text and ".kubernetes.io" in text) or "finetune.dev" in text)
"""Of labels and annotations that mean something to Kubernetes or to the operator."""
HOSTILE_FIELDS: Json = {
    "hostNetwork": True, "hostPID": True, "hostPath": {"path": "/"}, "privileged": True,
    "automountServiceAccountToken": True,
    "securityContext": {"privileged": True, "runAsUser": 0}, "initContainers": [{"name": "x", "image": "x"}],
    "namespace": "kube-system", "volumes": [{"name": "x", "hostPath": {"path": "/"}}], "ownerReferences": [],
    "containers": [{"name": "x", "securityContext": {"privileged": True}}], "nodeName": "control-plane",
}  # fmt: skip


def manifest(number: int) -> Json:
    """A FineTuneJob with one to six fields replaced, added or removed."""
    chance = random.Random(number)
    made = copy.deepcopy(chance.choice(SEEDS))
    made["metadata"] = {"name": chance.choice(("a", "b" * 48, "job-1", "a", "x.y")), "namespace": "ml"}
    for _ in range(chance.choice((1, 1, 2, 3, 6))):
        new = _mutated(made["spec"], SCHEMA["spec"], chance)
        made["spec"] = new if isinstance(new, dict) else {}  # else no API server would keep it
    return made


def _mutated(value: Any, schema: Json, chance: random.Random) -> Any:
    """Goes down a random path of the schema, and replaces what is there."""
    below = schema.get("properties")
    if isinstance(value, dict) and below and chance.random() < 0.97:
        if chance.random() < 0.03:
            return value | dict([chance.choice(list(HOSTILE_FIELDS.items()))])
        name = "pod" if "pod" in below and chance.random() < 0.4 else chance.choice(sorted(below))
        if name in value and chance.random() < 0.05:
            return {key: each for key, each in value.items() if key != name}
        present = value.get(name)
        new = _mutated(present, below[name], chance) if present is not None else _value(below[name], chance, 0)
        return value | {name: new}
    if isinstance(value, list) and value and schema.get("items") and chance.random() < 0.6:
        index = chance.randrange(len(value))
        return [*value[:index], _mutated(value[index], schema["items"], chance), *value[index + 1 :]]
    return _value(schema, chance, 0)


def _value(schema: Json, chance: random.Random, depth: int) -> Any:
    """One value: as the schema wants it more often than not."""
    if chance.random() < 0.05:
        return chance.choice((None, True, [], {}, "", chance.choice(NUMBERS), chance.choice(HOSTILE_TEXTS), [[[]]]))
    if "enum" in schema:
        return chance.choice(schema["enum"])
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return chance.choice(
            (HOSTILE_FIELDS, {"nodeAffinity": {"x": 1}}, _deep(chance.choice((5, 30))), 1, {"min": 1, "max": 3})
        )
    if schema.get("x-kubernetes-int-or-string"):
        return chance.choice((1, 8, "1", "8Gi", "auto", chance.choice(HOSTILE_TEXTS)))
    match schema.get("type"):
        case "object":
            return _object(schema, chance, depth)
        case "array":
            count = chance.choice((0, 1, 1, 2, 3)) if depth < 4 else 0
            return [_value(schema.get("items", {}), chance, depth + 1) for _ in range(count)]
        case "boolean":
            return chance.random() < 0.5
        case "integer" | "number":
            low, high = schema.get("minimum", 0), schema.get("maximum", 100)
            return chance.choice((low, low + 1, high, chance.choice(NUMBERS)))
    return _text(schema, chance)


def _object(schema: Json, chance: random.Random, depth: int) -> Json:
    if more := schema.get("additionalProperties"):
        known = (*HOSTILE_TEXTS, *NICE_TEXTS) if chance.random() < 0.5 else KEYS
        names = chance.sample(known, chance.choice((0, 1, 2, 4)))
        return {name: _value(more if isinstance(more, dict) else {}, chance, depth + 1) for name in names}
    required = schema.get("required", ())
    most = 0.25 if depth < 3 else 0.0
    names = [name for name in schema.get("properties", {}) if name in required or chance.random() < most]
    return {name: _value(schema["properties"][name], chance, depth + 1) for name in names}


def _text(schema: Json, chance: random.Random) -> str:
    """Mostly one that the schema takes, hostile or not: those go furthest."""
    fits = _fitting(schema.get("pattern", ""), schema.get("minLength", 0), schema.get("maxLength", 10_000))
    if fits and chance.random() < 0.85:
        return chance.choice(fits)
    return chance.choice(HOSTILE_TEXTS)


@cache
def _fitting(pattern: str, shortest: int, longest: int) -> tuple[str, ...]:
    known = (*HOSTILE_TEXTS, *NICE_TEXTS)
    return tuple(text for text in known if shortest <= len(text) <= longest and re.search(pattern, text))


def _deep(levels: int) -> Json:
    found: Json = {}
    for _ in range(levels):
        found = {"nodeAffinity": found}
    return found
