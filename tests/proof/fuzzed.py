"""`python -m tests.proof.fuzzed [COUNT]`: fuzzed manifests through the operator's own code, in process.

For each: it is observed and decided on until its attempt has a Job, and again with that Job, suspended, and over. Held:

    nothing is raised
    each object lies in the job's namespace, is owned by the job, and has no name but the job's
    each pod keeps the `restricted` standard, and has no API token and no path of its host
    each status keeps the CRD's schema
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from finetune_operator.decide import decide
from finetune_operator.gangs import GANGS
from finetune_operator.kube.resources import FINETUNEJOBS, JOBS, Raw
from finetune_operator.state.cache import Cache
from finetune_operator.state.cluster_features import ClusterFeatures
from finetune_operator.state.observe import Defaults, observe
from tests.support.fuzzed_manifests import SCHEMA, manifest
from tests.support.operator_objects import NOW, later
from tests.support.pod_security import violations
from tests.support.structural_schema import problems

NUMBER = 20_000
DEFAULTS = Defaults(image="trainer:test", key=b"fuzzed")
CREATED = "2026-01-02T03:04:05Z"
NAMES = ("volumes", "containers")
GROUPS = {name: gang.group.kinds[0] for name, gang in GANGS.items() if gang.group}


@dataclass(frozen=True)
class Verdict:
    """What became of one manifest."""

    number: int
    objects: int
    problems: tuple[str, ...]


def judged(number: int) -> Verdict:
    """Of the manifest of that number."""
    raw = manifest(number)
    found: list[str] = []
    objects = 0
    try:
        wire = orjson.loads(orjson.dumps(raw))
    except (TypeError, orjson.JSONEncodeError):
        return Verdict(number, 0, ())  # no API server could send it
    try:
        for status, bodies in _life(wire):
            found += (f"status{each}" for each in problems(orjson.loads(orjson.dumps(status)), SCHEMA["status"]))
            found += (each for body in bodies for each in _strange(body, wire["metadata"]))
            objects += len(bodies)
    except Exception:
        found.append(traceback.format_exc(limit=-3))
    return Verdict(number, objects, tuple(found))


def _life(raw: Raw) -> Iterator[tuple[dict[str, Any], list[Raw]]]:
    """Status and created objects of each look at the job."""
    cache = Cache(features=ClusterFeatures(groups=GROUPS))
    meta = raw["metadata"] | {"uid": "u", "generation": 1, "creationTimestamp": CREATED}
    key, status = (meta["namespace"], meta["name"]), dict[str, Any]()
    for version in range(1, 7):
        spec = raw.get("spec")
        if version == 5 and isinstance(spec, dict):
            spec = spec | {"suspend": True}
        cache.feed(FINETUNEJOBS, None, raw | {"metadata": meta | {"resourceVersion": str(version)}} | {
            "spec": spec, "status": status
        })  # fmt: skip
        seen = observe(cache, key, DEFAULTS)
        assert seen is not None
        decision = decide(seen, NOW if version < 4 else later(3600.0 * version))
        status = decision.status.to_json()
        created = [*decision.create, *([decision.probe] if decision.probe else [])]
        yield status, [each.body for each in created]
        for each in decision.create:
            if each.resource is JOBS:
                known = {"uid": f"c{version}", "resourceVersion": str(version), "creationTimestamp": CREATED}
                cache.children.put(each.body | {"metadata": each.body["metadata"] | known})


def _strange(body: Raw, job: dict[str, Any]) -> Iterator[str]:
    """What an object of the operator may not be."""
    meta, kind = body["metadata"], body["kind"]
    if meta["namespace"] != job["namespace"]:
        yield f"{kind} in the namespace {meta['namespace']}"
    if not meta["name"].startswith(job["name"]):
        yield f"{kind} named {meta['name']}"
    if len(meta["ownerReferences"]) != 1:
        yield f"{kind} without an owner"
    if kind == "Service" and (
        body["spec"]["clusterIP"] != "None" or body["spec"].get("type", "ClusterIP") != "ClusterIP"
    ):
        yield "a Service that is reached from outside"
    if (template := body["spec"].get("template")) is None:
        return
    yield from violations(template)
    pod = template["spec"]
    if pod.get("automountServiceAccountToken") is not False:
        yield "an API token"
    if pod.get("nodeName") or pod.get("hostAliases") or pod.get("initContainers") or pod.get("ephemeralContainers"):
        yield "more than the trainer"
    for name in NAMES:
        named = [each["name"] for each in pod[name]]
        if len(set(named)) < len(named):
            yield f"{name} of one name: {named}"
    paths = [mount["mountPath"] for mount in pod["containers"][0].get("volumeMounts", ())]
    if len(set(paths)) < len(paths):
        yield f"volumes at one path: {paths}"
    labels = template["metadata"]["labels"]
    if kind == "Job" and labels.get("finetune.dev/job-name") != job["name"]:
        yield f"labels of another job: {labels}"


def main() -> int:
    """1 if a manifest of the first COUNT breaks a promise."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else NUMBER
    started, bad, made = time.process_time(), 0, 0
    for number in range(count):
        verdict = judged(number)
        made += bool(verdict.objects)
        if verdict.problems:
            bad += 1
            print(f"manifest {number}:", *verdict.problems, sep="\n  ", flush=True)
    seconds = time.process_time() - started
    print(f"{count:,} manifests, {made:,} of which got objects: {bad} problems, {seconds:.0f} s of CPU")
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
