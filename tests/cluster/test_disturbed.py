"""The same way, disturbed: a killed rank, a killed operator, a bucket that is away, a queue that wants its nodes back,
a node that is lost for a while. The end is the same, to 1e-6 (on another number of nodes to 1e-5)."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.jobs import Json, Place, example, rank_of, tiny_inputs
from tests.cluster.operator_process import Operator
from tests.cluster.rig import Kueue, Rig
from tests.support.pause_at_step import PauseAtStep

pytestmark = pytest.mark.timeout(1500)

STEPS = 120
HELD = 20
"""The step after which a run waits for the test that disturbs it."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a corpus made on the spot, readable for the pods' user."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_inputs(folder, rows=256)
    return folder


@pytest.fixture(scope="module")
def place(cluster: Rig, tiny: Path) -> Iterator[Place]:
    namespace = cluster.create_namespace("disturbed", labels={"pod-security.kubernetes.io/enforce": "restricted"})
    place = Place.of(cluster, cluster.s3, namespace, models=tiny / "model")
    place.upload(tiny / "corpus", "tiny")
    yield place
    cluster.delete_namespace(namespace)


def job(place: Place, tiny: Path, name: str) -> Json:
    manifest = example()
    manifest["metadata"]["name"] = name
    spec = manifest["spec"]
    spec["data"] = {
        "train": [{"uri": "s3://corp/tiny/train.jsonl"}],
        "validation": {"uri": "s3://corp/tiny/heldout.jsonl"},
        "test": {"uri": "s3://corp/tiny/heldout.jsonl"},
        "sequenceLength": 128,
        "credentials": {"secretName": "corp-s3"},
    }
    spec["training"] = {"epochs": 100, "maxSteps": STEPS, "batchSize": 16, "learningRate": 0.001, "evaluateEvery": 40}
    spec["checkpoint"] = {"every": 5}
    spec["output"]["uri"] = f"s3://corp/models/{name}"
    return place.on_this_rig(manifest, model=tiny / "model")


def held(manifest: Json, tiny: Path) -> PauseAtStep:
    """The job's ranks are held at a step, by a file that its pods see beside the model."""
    pause = PauseAtStep(tiny / "model" / f"pause-{manifest['metadata']['name']}", HELD)
    pause.file.chmod(0o644)
    manifest["spec"]["pod"]["env"] += [{"name": name, "value": value} for name, value in pause.environment.items()]
    return pause


def checkpoints(place: Place, name: str) -> list[str]:
    entries = [e["path"] for batch in place.s3.store(place.bucket).list(f"models/{name}/.finetune") for e in batch]
    return [path for path in entries if "/checkpoints/" in path]


def finish(place: Place, name: str) -> Json:
    return place.wait(name, lambda s: s.get("phase") == "Succeeded", what="its end")


def adapter(place: Place, name: str, folder: Path) -> dict[str, object]:
    from safetensors.torch import load_file

    return load_file(place.download(f"models/{name}", folder / name) / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def undisturbed(place: Place, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The adapter of a run that nobody disturbed."""
    program = Operator.of(place.rig, tmp_path_factory.mktemp("undisturbed"))
    try:
        program.start()
        place.apply(job(place, tiny, "calm"))
        finish(place, "calm")
    finally:
        program.stop()
    return adapter(place, "calm", tmp_path_factory.mktemp("calm"))


def assert_same(found: dict[str, object], expected: dict[str, object], *, within: float = 1e-6) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        difference = (found[name] - tensor).abs().max().item()  # type: ignore[operator]
        assert difference <= within, f"{name}: {difference}"


def pod_names(place: Place, name: str) -> set[str]:
    return {pod["metadata"]["name"] for pod in place.pods(name)}


def node(pod: Json) -> str:
    return str(pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"])


def test_a_killed_rank_restarts_the_gang_from_the_checkpoint(
    place: Place, tiny: Path, operator: Operator, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    manifest = job(place, tiny, "killed")
    pause = held(manifest, tiny)
    place.apply(manifest)
    place.rig.wait_until(lambda: len(checkpoints(place, "killed")) > 0, what="a checkpoint", seconds=300)
    victim = next(pod["metadata"]["name"] for pod in place.pods("killed") if node(pod) == "1")

    os.kill(rank_of(place, victim), signal.SIGKILL)
    pause.release()

    status = finish(place, "killed")
    assert status["attempt"] == 2
    assert status["restarts"]["counted"] == 1
    assert status["lastFailure"]["class"] == "Infrastructure"
    assert "SIGKILL" in status["lastFailure"]["message"]
    assert status["lastFailure"]["rank"] == 1
    assert_same(adapter(place, "killed", tmp_path), undisturbed)


def test_a_killed_operator_and_a_bucket_that_is_away_change_nothing(
    place: Place, tiny: Path, operator: Operator, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    """One run: it trains on while there is no operator, and later while its bucket is away for 20 seconds."""
    manifest = job(place, tiny, "patient")
    pause = held(manifest, tiny)
    place.apply(manifest)
    place.rig.wait_until(lambda: len(checkpoints(place, "patient")) > 0, what="a checkpoint", seconds=300)

    operator.kill()
    pause.advance(2 * HELD)
    time.sleep(2)
    operator.start()

    with place.rig.outage("minio"):
        pause.release()
        time.sleep(20)

    status = finish(place, "patient")
    assert status["attempt"] == 1
    assert_same(adapter(place, "patient", tmp_path), undisturbed)


def urgent(place: Place, queue: str) -> Json:
    """A Job of high priority that needs the whole queue. That its pods are refused here does not matter."""
    place.rig.apply(
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": "urgent"},
            "value": 1000,
        }
    )
    container = {"name": "c", "image": "none", "resources": {"requests": {"cpu": "2"}}}
    pod = {"restartPolicy": "Never", "priorityClassName": "urgent", "containers": [container]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "urgent", "labels": {"kueue.x-k8s.io/queue-name": queue}},
        "spec": {"suspend": True, "template": {"spec": pod}},
    }


def test_a_preempted_job_goes_on_from_its_checkpoint_when_its_queue_lets_it(
    place: Place, tiny: Path, operator: Operator, kueue: Kueue, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    kueue.manage(place.namespace)
    kueue.queue(place.namespace, "team", cpu="2")
    manifest = job(place, tiny, "queued")
    manifest["spec"] |= {"queueName": "team", "resources": {"requests": {"cpu": "100m"}}, "retry": {"maxRestarts": 0}}
    pause = held(manifest, tiny)
    place.apply(manifest)
    place.rig.wait_until(lambda: len(checkpoints(place, "queued")) > 0, what="a checkpoint", seconds=300)

    place.rig.apply(urgent(place, "team"), namespace=place.namespace)
    place.wait("queued", lambda s: s.get("phase") == "Queued", what="preemption")
    place.rig.wait_until(lambda: not place.pods("queued"), what="its pods are gone")
    pause.release()
    place.rig.kubectl("delete", "job", "urgent", "-n", place.namespace)

    place.wait("queued", lambda s: s.get("phase") == "Running", what="its second turn")
    first = next(pod["metadata"]["name"] for pod in place.pods("queued") if node(pod) == "0")
    place.rig.wait_until(lambda: "resuming after step" in place.log(first), what="it resumes")
    status = finish(place, "queued")
    assert (status["attempt"], status["restarts"]["counted"]) == (1, 0)
    assert status["lastFailure"]["reason"] == "Preempted"
    assert_same(adapter(place, "queued", tmp_path), undisturbed)


SLOT = "finetune.dev/slot"


def offer(place: Place, slots: int | None) -> None:
    """The node has so many places for pods that ask for one; None: it knows of no such thing."""
    name = place.rig.get("nodes")["items"][0]["metadata"]["name"]
    amount = {SLOT: None if slots is None else str(slots)}
    patch = json.dumps({"status": {"capacity": amount, "allocatable": amount}})
    place.rig.kubectl("patch", "node", name, "--subresource=status", "--type=merge", "-p", patch)


def startup(place: Place, name: str, time: str | None) -> None:
    patch = json.dumps({"spec": {"deadlines": {"startup": time}}})
    place.rig.kubectl("patch", "finetunejob", name, "-n", place.namespace, "--type=merge", "-p", patch)


@pytest.fixture
def growing(cluster: Rig, tmp_path: Path) -> Iterator[Operator]:
    """It looks for more nodes after two seconds."""
    program = Operator.of(cluster, tmp_path, "--all-namespaces", "--grow-after", "2")
    try:
        program.start()
        yield program
    finally:
        program.stop()


def test_a_gang_goes_on_with_the_nodes_that_there_are(
    place: Place, tiny: Path, growing: Operator, undisturbed: dict[str, object], tmp_path: Path
) -> None:
    """Two nodes, one of which is lost, then one, then two again."""
    offer(place, 2)
    manifest = job(place, tiny, "elastic")
    manifest["spec"] |= {"nodes": {"min": 1, "max": 2}, "resources": {"limits": {SLOT: 1}}}
    pause = held(manifest, tiny)
    place.apply(manifest)
    place.rig.wait_until(lambda: len(checkpoints(place, "elastic")) > 0, what="a checkpoint", seconds=300)

    offer(place, 1)
    startup(place, "elastic", "10s")
    victim = next(pod["metadata"]["name"] for pod in place.pods("elastic") if node(pod) == "1")
    place.rig.kubectl("delete", "pod", victim, "-n", place.namespace, "--wait=false")
    place.rig.wait_until(lambda: "requesting a checkpoint" in place.log(victim), what="it is asked to stop")
    pause.release()  # a gang stops together
    place.wait("elastic", lambda s: s["attempt"] == 3, what="an attempt with one node")
    startup(place, "elastic", None)
    pause = PauseAtStep(pause.file, HELD)
    pause.file.chmod(0o644)
    alone = place.wait("elastic", lambda s: s["phase"] == "Running" and s["attempt"] == 3, what="running alone")
    assert alone["nodes"] == 1
    before = pod_names(place, "elastic")

    offer(place, 2)
    place.wait("elastic", lambda s: s["attempt"] == 4, what="an attempt with both nodes")
    place.rig.wait_until(lambda: not before & pod_names(place, "elastic"), what="the pods before them are gone")
    pause.release()
    status = finish(place, "elastic")
    assert (status["attempt"], status["nodes"]) == (4, 2)
    assert status["restarts"] == {"counted": 0, "free": 1, "resized": 2}, place.story("elastic")
    assert status["plan"]["worldSize"] == 2
    story = place.rig.kubectl("describe", "finetunejob", "elastic", "-n", place.namespace)
    told = [story.index(word) for word in ("Restarting", "ScaledDown", "ScaledUp", "Succeeded")]
    assert told[0] > 0
    offer(place, None)
    assert_same(adapter(place, "elastic", tmp_path), undisturbed, within=1e-5)
