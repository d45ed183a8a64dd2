"""FineTuneJobs on the rig: the example of examples/ with the rig's bucket, image and mounted trees in it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune_api import names
from finetune_operator.kube.resources import FINETUNEJOBS, PODS
from tests.cluster.rig import S3, Rig, apply_host_trees, host_trees, job_volumes
from tests.cluster.rig.host_trees import IMAGE
from tests.support.tiny_model import tiny_corpus, tiny_model

CHECKOUT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("FINETUNE_CACHE", Path.home() / ".cache" / "finetune-operator"))
SMOLLM2 = CACHE / "models" / "SmolLM2-135M-Instruct"
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Place:
    """A namespace with mounted trees and a Secret, and a bucket for data and outputs."""

    rig: Rig
    s3: S3
    namespace: str
    bucket: str
    volumes: list[Json]

    @staticmethod
    def of(rig: Rig, s3: S3, namespace: str, *, models: Path) -> Place:
        trees = host_trees(CHECKOUT, models=models)
        apply_host_trees(rig, namespace, trees)
        rig.apply(s3.secret_manifest("corp-s3", namespace), namespace=namespace)
        return Place(rig=rig, s3=s3, namespace=namespace, bucket=s3.bucket("corp"), volumes=job_volumes(trees))

    def upload(self, folder: Path, prefix: str) -> None:
        store = self.s3.store(self.bucket)
        for file in folder.iterdir():
            store.put(f"{prefix}/{file.name}", file.read_bytes())

    def on_this_rig(self, manifest: Json, *, model: Path) -> Json:
        """The manifest with this place's bucket, model, image and volumes."""
        text = json.dumps(manifest).replace("s3://corp/", f"s3://{self.bucket}/")
        job: Json = json.loads(text)
        job["metadata"]["namespace"] = self.namespace
        job["spec"]["model"] = {"uri": model.as_uri()}
        job["spec"]["image"] = IMAGE
        job["spec"]["pod"] = {
            "volumes": self.volumes,
            "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
            "terminationGracePeriod": "90s",
        }
        return job

    def apply(self, job: Json) -> None:
        self.rig.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(job))

    def get(self, name: str) -> Json:
        return self.rig.read(FINETUNEJOBS.path(self.namespace, name))

    def status(self, name: str) -> Json:
        return self.get(name).get("status", {})

    def pods(self, name: str) -> list[Json]:
        of_the_job = f"{names.LABEL_JOB}={name}"
        return list(self.rig.read(PODS.path(self.namespace), labelSelector=of_the_job)["items"])

    def log(self, pod: str) -> str:
        """What a pod has printed; nothing while its container does not run."""
        return self.rig.log(pod, self.namespace)

    def wait(self, name: str, ready: Callable[[Json], bool], *, what: str, seconds: float = 600) -> Json:
        """The status, as soon as `ready` says so; else fails with everything that a person would look at."""
        deadline = time.monotonic() + seconds
        while True:
            status = self.status(name)
            if ready(status):
                return status
            if status.get("phase") == "Failed" or time.monotonic() > deadline:
                raise AssertionError(f"{name} never came to {what}:\n{self.story(name)}")
            time.sleep(0.2)

    def story(self, name: str) -> str:
        status = yaml.safe_dump(self.status(name))
        events = self.rig.kubectl("get", "events", "-n", self.namespace, "--sort-by=.lastTimestamp", check=False)[
            -3000:
        ]
        logs = "\n".join(
            self.rig.kubectl("logs", pod["metadata"]["name"], "-n", self.namespace, "--tail=40", check=False)
            for pod in self.pods(name)
        )
        return f"{status}\n{events}\n{logs}"

    def download(self, prefix: str, target: Path) -> Path:
        store = self.s3.store(self.bucket)
        for batch in store.list(prefix):
            for entry in batch:
                path = target / entry["path"].removeprefix(prefix).lstrip("/")
                if "/" in entry["path"].removeprefix(prefix).lstrip("/"):
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(bytes(store.get(entry["path"]).bytes()))
        return target


def rank_of(place: Place, pod: str) -> int:
    """The pid, on this machine, of the training process of a pod."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        of_the_pod = f"HOSTNAME={pod.rpartition('-')[0]}".encode() in environment
        if (
            of_the_pod
            and b"finetune_trainer.train.main" in command
            and any(v.startswith(b"RANK=") for v in environment)
        ):
            return int(folder.name)
    raise AssertionError(f"no rank of {pod} runs:\n{place.story(pod.rsplit('-', 2)[0])}")


def readable(folder: Path) -> None:
    """Lets the pods' user see a folder below pytest's, which only root may enter."""
    for path in (folder, *folder.parents[:4]):
        path.chmod(path.stat().st_mode | 0o055)


def tiny_inputs(folder: Path, *, rows: int = 64) -> tuple[Path, Path]:
    """A model and a corpus made on the spot, which pods can read."""
    readable(folder)
    model, corpus = tiny_model(folder / "model"), tiny_corpus(folder / "corpus", rows=rows)
    for file in model.iterdir():
        file.chmod(0o644)
    return model, corpus


def endless(name: str, *, nodes: int, every: int) -> Json:
    """A job of the tiny corpus that trains until something ends it, with a checkpoint every so many steps."""
    manifest = example()
    manifest["metadata"]["name"] = name
    manifest["spec"] |= {
        "nodes": nodes,
        "data": {
            "train": [{"uri": "s3://corp/tiny/train.jsonl"}],
            "sequenceLength": 128,
            "credentials": {"secretName": "corp-s3"},
        },
        "training": {"epochs": 1000, "batchSize": 16, "learningRate": 0.001},
        "checkpoint": {"every": every},
    }
    manifest["spec"]["output"]["uri"] = f"s3://corp/models/{name}"
    return manifest


def example() -> Json:
    return yaml.safe_load((CHECKOUT / "examples" / "sentiment-lora.yaml").read_text())
