"""Golden pairs for reviewers: what the operator creates for a FineTuneJob, and the status that it writes.

tests/data/objects/{job}.yaml            a FineTuneJob as the API server has it, some with a status
tests/data/objects/{job}.created.yaml    the objects, the plan in their pods, the status and the events

python -m tests.support.golden_objects   writes the second of each pair again; review the difference
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from finetune_api import names
from finetune_api.admin_policy import AdminPolicy, ModelCache
from finetune_operator.decide import decide
from finetune_operator.gangs import GANGS
from finetune_operator.kube.resources import FINETUNEJOBS, JOBS, Raw
from finetune_operator.state.cache import Cache
from finetune_operator.state.cluster_features import ClusterFeatures
from finetune_operator.state.observe import Defaults, observe
from tests.support.operator_objects import NOW

FOLDER = Path(__file__).parents[1] / "data" / "objects"
DEFAULTS = Defaults(image="registry.example/finetune-trainer:1.0", key=b"the key of the golden pairs")
PEERS = {
    "protected": (
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "finetune-operator"}}},
        {"ipBlock": {"cidr": "10.0.0.0/24"}},
    )
}
"""Jobs of an operator with --job-network-policy."""
POLICIES = {"cached": AdminPolicy(model_cache=ModelCache(claim="models", size_gib=800))}
"""Jobs of an operator with --policy."""
CREATED = "2026-01-02T03:04:05Z"
"""NOW, as the API server writes it."""


def manifests() -> list[Path]:
    return sorted(path for path in FOLDER.glob("*.yaml") if not path.name.endswith(".created.yaml"))


def golden(manifest: Path) -> Path:
    return manifest.with_name(f"{manifest.stem}.created.yaml")


def created(manifest: Path) -> str:
    """The golden text of a FineTuneJob: one look at it, and one more once its Job exists."""
    raw = yaml.safe_load(manifest.read_text())
    meta = raw["metadata"] | {"uid": f"uid-of-{manifest.stem}", "resourceVersion": "1", "generation": 1}
    cache = Cache(
        features=ClusterFeatures(groups={name: gang.group.kinds[0] for name, gang in GANGS.items() if gang.group})
    )
    cache.feed(FINETUNEJOBS, None, raw | {"metadata": meta | {"creationTimestamp": CREATED}})
    key, objects, events = (meta["namespace"], meta["name"]), list[Raw](), list[str]()
    for version in (2, 3):
        own = {"peers": PEERS.get(manifest.stem), "policy": POLICIES.get(manifest.stem, DEFAULTS.policy)}
        seen = observe(cache, key, replace(DEFAULTS, **own))
        assert seen is not None
        decision = decide(seen, NOW)
        objects += [create.body for create in decision.create]
        events += [f"{event.type} {event.reason.value}: {event.message}" for event in decision.events]
        cache.feed(FINETUNEJOBS, None, _next(raw, meta, version, decision.status.to_json()))
        for create in decision.create:
            if create.resource is JOBS:
                cache.children.put(_as_created(create.body, version))
    text: dict[str, Any] = {"created": [_without_plan(each) for each in objects]}
    if plans := [plan for each in objects if (plan := _plan(each))]:
        text["plan"] = plans[-1]
    text |= {"status": decision.status.to_json(), "events": events}
    return yaml.safe_dump(text, sort_keys=False, width=120, allow_unicode=True)


def _next(raw: Raw, meta: Raw, version: int, status: Raw) -> Raw:
    return raw | {"metadata": meta | {"resourceVersion": str(version), "creationTimestamp": CREATED}, "status": status}


def _as_created(body: Raw, version: int) -> Raw:
    """The Job as the API server answers it."""
    known = {"uid": f"uid-of-{body['metadata']['name']}", "resourceVersion": str(version), "creationTimestamp": CREATED}
    return body | {"metadata": body["metadata"] | known}


def _plan(body: Raw) -> Raw | None:
    """Less the spec, which is the manifest's with all defaults."""
    text = body["spec"].get("template", {}).get("metadata", {}).get("annotations", {}).get(names.ANNOTATION_PLAN)
    return {key: value for key, value in json.loads(text).items() if key != "spec"} if text else None


def _without_plan(body: Raw) -> Raw:
    """The plan is one long line; it stands below, to be read."""
    copy: Raw = json.loads(json.dumps(body))
    if _plan(body):
        copy["spec"]["template"]["metadata"]["annotations"][names.ANNOTATION_PLAN] = "JSON of `plan` below"
    return copy


if __name__ == "__main__":
    for each in manifests():
        golden(each).write_text(created(each))
        print(f"wrote {golden(each).name}")
