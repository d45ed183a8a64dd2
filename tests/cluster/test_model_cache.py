"""Two gangs of one node and one model in a bucket: the cache that the chart makes on the node lets it be read once."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api import names
from tests.cluster.jobs import CHECKOUT, Place, endless, readable, tiny_inputs
from tests.cluster.operator_process import Operator
from tests.cluster.rig import S3, Helm, Rig

pytestmark = pytest.mark.timeout(900)

CHART = CHECKOUT / "charts" / "finetune-operator"
REQUEST = re.compile(rb"GET (/[^ ?]+)(?:\?\S*)? HTTP/1.1\r\n")


@contextmanager
def counting(endpoint: str) -> Iterator[tuple[str, Counter[str]]]:
    """An address on the bridge that passes on to the S3 server; and the paths that were read through it."""
    host, _, port = endpoint.removeprefix("http://").rpartition(":")
    read, loop, at = Counter[str](), asyncio.new_event_loop(), list[int]()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, watched: bool) -> None:
        while data := await reader.read(65536):
            if watched:
                read.update(path.decode() for path in REQUEST.findall(data))
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward, there = await asyncio.open_connection(host, int(port))
        with closing(writer), closing(there):
            both = copy(reader, there, watched=True), copy(onward, writer, watched=False)
            await asyncio.gather(*both, return_exceptions=True)

    server = loop.run_until_complete(asyncio.start_server(serve, host, 0))
    at.append(server.sockets[0].getsockname()[1])
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield f"http://{host}:{at[0]}", read
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.fixture
def policy(cluster: Rig, helm: Helm, restricted_namespace: str, tmp_path: Path) -> Iterator[Path]:
    """What the chart gives the operator, once its volume and its claim are there."""
    folder = tmp_path / "models" / restricted_namespace
    folder.mkdir(parents=True)
    readable(folder)
    values = {
        "claim": "models",
        "sizeGiB": 1,
        "namespaces": [restricted_namespace],
        "create": {"enabled": True, "nodePath": str(folder.parent)},
    }
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump({"modelCache": values}))
    objects = helm.render(CHART, "-f", file)
    cluster.apply([each for each in objects.values() if each["kind"].startswith("PersistentVolume")])
    written = tmp_path / "policy.json"
    written.write_text(objects["ConfigMap/finetune-operator-policy"]["data"]["policy.json"])
    yield written
    cluster.kubectl("delete", "pv", f"finetune-operator-models-{restricted_namespace}", "--wait=false")


def job(place: Place, name: str, model: Path) -> dict[str, Any]:
    made = place.on_this_rig(endless(name, nodes=1, every=1000), model=model)
    made["spec"]["training"] |= {"epochs": 1}
    made["spec"]["model"] = {"uri": f"s3://{place.bucket}/base", "credentials": {"secretName": "counted"}}
    return made


def test_two_gangs_of_one_node_download_a_model_once(
    cluster: Rig, s3: S3, restricted_namespace: str, policy: Path, tmp_path: Path
) -> None:
    model, corpus = tiny_inputs(tmp_path, rows=16)
    place = Place.of(cluster, s3, restricted_namespace, models=tmp_path / "corpus")
    place.upload(corpus, "tiny")
    place.upload(model, "base")
    operator = Operator.of(cluster, tmp_path, "--all-namespaces", f"--policy={policy}")
    operator.start()
    try:
        with counting(s3.endpoint) as (endpoint, read):
            secret = s3.secret_manifest("counted", restricted_namespace)
            secret["stringData"]["AWS_ENDPOINT_URL"] = endpoint
            cluster.apply(secret, namespace=restricted_namespace)
            for name in ("first", "second"):
                place.apply(job(place, name, model))
            for name in ("first", "second"):
                place.wait(name, lambda s: s.get("phase") == "Succeeded", what="its end")
    finally:
        operator.stop()

    files = {f"/{place.bucket}/base/{file.name}": 1 for file in model.iterdir() if file.name != "README.md"}
    assert {path: times for path, times in read.items() if "/base/" in path} == files
    store = s3.store(place.bucket)
    records = [json.loads(bytes(store.get(f"models/{name}/run.json").bytes())) for name in ("first", "second")]
    assert sorted(record["attempts"][-1]["modelCache"] for record in records) == ["hit", "miss"]
    (pod,) = place.pods("first")
    (mount,) = (each for each in pod["spec"]["volumes"] if each["name"] == "finetune-models")
    assert mount["persistentVolumeClaim"] == {"claimName": "models"}
    assert names.MODEL_CACHE_DIR in {each["mountPath"] for each in pod["spec"]["containers"][0]["volumeMounts"]}
