"""A ladder whose rungs have different pods, disturbed: the operator is killed between two rungs, and again when one of
the two pods of the second rung is killed without notice. What was paid for is not paid for again, and the status tells
the story."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster.jobs import Json, Place, example, rank_of, readable
from tests.cluster.operator_process import Operator
from tests.cluster.rig import Rig
from tests.support.pause_at_step import PauseAtStep
from tests.support.tiny_model import tiny_model

pytestmark = pytest.mark.timeout(900)

OF_PROBE, OF_LORA = "3Gi", "4Gi"

SIZES = {"train": 100, "validation": 200, "test": 60}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and rows whose label is their first letter, readable for the pods' user."""
    folder = tmp_path_factory.mktemp("tiny")
    readable(folder)
    for file in tiny_model(folder / "model").iterdir():
        file.chmod(0o644)
    (folder / "rows").mkdir()
    chosen = random.Random(3)
    for name, count in SIZES.items():
        lines = [_row(chosen, f"{name}{number}") for number in range(count)]
        (folder / "rows" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _row(chosen: random.Random, number: str) -> str:
    label = chosen.choice(["no", "yes"])
    first = "a" if label == "no" else "z"
    return json.dumps({"text": first + "".join(chosen.choice("bcdefgh") for _ in range(6)) + number, "label": label})


@pytest.fixture
def place(cluster: Rig, tiny: Path) -> Iterator[Place]:
    namespace = cluster.create_namespace("ladder", labels={"pod-security.kubernetes.io/enforce": "restricted"})
    place = Place.of(cluster, cluster.s3, namespace, models=tiny / "model")
    place.upload(tiny / "rows", "rows")
    yield place
    cluster.delete_namespace(namespace)


def job(place: Place, tiny: Path) -> Json:
    manifest = example()
    manifest["metadata"]["name"] = "climber"
    spec = manifest["spec"]
    spec["method"] = {"type": "auto"}
    larger = {"rung": "lora", "nodes": 2, "resources": {"limits": {"memory": OF_LORA}}}
    spec["ladder"] = {
        "minGain": 0.05, "budget": {"gpuHours": 5}, "rungs": ["probe", "lora"], "overrides": [larger]
    }  # fmt: skip
    spec["resources"] = {"limits": {"memory": OF_PROBE}}
    spec["data"] = {
        **{name: {"uri": f"s3://corp/rows/{name}.jsonl"} for name in ("validation", "test")},
        "train": [{"uri": "s3://corp/rows/train.jsonl"}],
        "format": "classification",
        "sequenceLength": 128,
        "credentials": {"secretName": "corp-s3"},
    }
    spec["training"] = {"maxSteps": 6, "batchSize": 16}
    spec["checkpoint"] = {"every": 1}
    spec["output"]["uri"] = "s3://corp/models/climber"
    spec["nodes"] = 1
    return place.on_this_rig(manifest, model=tiny / "model")


def objects(place: Place, uid: str, rung: str) -> dict[str, str]:
    """Of a rung in the store, with what changes when one is written again."""
    prefix = f"models/climber/.finetune/{uid}/rungs/{rung}/"
    entries = [entry for batch in place.s3.store(place.bucket).list(prefix) for entry in batch]
    return {entry["path"]: str(entry["last_modified"]) for entry in entries}


def artifact_of(place: Place, uid: str, rung: str) -> dict[str, str]:
    """Without its checkpoints and notes, which go when the best rung is published."""
    return {path: at for path, at in objects(place, uid, rung).items() if f"/rungs/{rung}/.finetune/" not in path}


def states(status: Json) -> dict[str, str]:
    return {rung["name"]: rung["state"] for rung in status.get("ladder", {}).get("rungs", [])}


def memory(pod: Json) -> str:
    return str(pod["spec"]["containers"][0]["resources"].get("limits", {}).get("memory"))


def _complete(place: Place, name: str) -> bool:
    path = "jsonpath={.status.conditions[?(@.type=='Complete')].status}"
    return place.rig.kubectl("get", "job", name, "-n", place.namespace, "-o", path) == "True"


def pods_of(place: Place, attempt: int) -> list[Json]:
    """By node."""
    found = [each for each in place.pods("climber") if each["metadata"]["name"].startswith(f"climber-{attempt}-")]
    return sorted(found, key=lambda each: str(each["metadata"]["name"]))


def test_a_ladder_whose_rungs_have_other_pods_and_which_is_killed_on_its_way_pays_for_none_twice(
    place: Place, tiny: Path, operator: Operator
) -> None:
    manifest = job(place, tiny)
    pause = PauseAtStep(tiny / "model" / "pause", 3)
    pause.file.chmod(0o644)
    manifest["spec"]["pod"]["env"] += [{"name": name, "value": value} for name, value in pause.environment.items()]
    place.apply(manifest)
    place.wait("climber", lambda s: s.get("phase") == "Running", what="its 1st rung")
    uid = place.get("climber")["metadata"]["uid"]
    assert [memory(pod) for pod in pods_of(place, 1)] == [OF_PROBE]
    operator.kill()
    place.rig.wait_until(lambda: _complete(place, "climber-1"), what="the end of the 1st rung", seconds=300)
    probe = artifact_of(place, uid, "probe")
    operator.start()
    between = place.wait("climber", lambda s: s.get("attempt") == 2, what="its 2nd attempt")
    assert (between["rung"], between["restarts"]["counted"], between["restarts"]["free"]) == ("lora", 0, 0)
    running = place.wait("climber", lambda s: states(s) == {"probe": "done", "lora": "running"}, what="its 2nd rung")
    saved = lambda: any("/checkpoints/" in path for path in objects(place, uid, "lora"))  # noqa: E731
    place.rig.wait_until(saved, what="a checkpoint of the second rung", seconds=300)
    first, second = pods_of(place, 2)
    assert memory(first) == memory(second) == OF_LORA

    operator.kill()
    rank = psutil.Process(rank_of(place, second["metadata"]["name"]))
    agent = next(each for each in rank.parents() if "agent" in each.cmdline())
    agent.kill()  # PID 1 of the pod: nothing below it says a last word
    pause.release()
    operator.start()

    ended = place.wait("climber", lambda s: s.get("phase") == "Succeeded", what="its end")
    assert (ended["attempt"], ended["restarts"]["counted"]) == (4, 1), "rungs are no restarts, a killed pod is one"
    assert ended["restarts"]["free"] == 0
    ladder = ended["ladder"]
    assert states(ended) == {"probe": "done", "lora": "done"}
    assert [rung["decision"] for rung in ladder["rungs"]] == ["taken", "noGain"]
    assert (ladder["best"], ladder["stopReason"], ladder["budget"]) == ("probe", "noGain", 5)
    assert "a step up does not pay" in ladder["story"]
    assert ladder["rungs"][0]["cost"] == running["ladder"]["rungs"][0]["cost"], "the probe was paid for once"
    assert artifact_of(place, uid, "probe") == probe, "the probe ran once"
    assert 0 < ladder["spent"] < ladder["budget"]
    record = place.s3.store(place.bucket).get(f"models/climber/.finetune/{uid}/rungs/lora/run.json")
    lora = json.loads(bytes(record.bytes()))
    assert [each["firstStep"] > 0 for each in lora["attempts"]] == [False, True], "it resumed from its checkpoint"
    assert [each["nodes"] for each in lora["attempts"]] == [2, 2]
    (last,) = pods_of(place, 4)
    assert (memory(last), ended["rung"]) == (OF_PROBE, "probe"), "the best rung is published in its own pods"
    log = place.rig.kubectl("logs", last["metadata"]["name"], "-n", place.namespace)
    assert "rung probe is taken" in log
    assert "fitting the probe" not in log[: log.index("measuring all held-out rows")]
    assert {data["kind"] for data in ended["evaluation"]["data"]} == {"validation", "test"}
    assert ended["artifact"]["uri"] == f"s3://{place.bucket}/models/climber"
    events = place.rig.kubectl("get", "events", "-n", place.namespace, "-o", "jsonpath={.items[*].reason}")
    assert events.split().count("NextRung") == 2, "each change of pods is told once"
    head, line = place.rig.kubectl("get", "ftj", "-n", place.namespace, "-o", "wide").splitlines()[:2]
    assert dict(zip(head.split(), line.split(), strict=False))["BEST"] == "probe"
