"""A script of the user's own in two pods: examples/train.py by `kubectl apply`, with its progress in the status."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.cluster.jobs import CHECKOUT, Place, tiny_inputs
from tests.cluster.operator_process import Operator
from tests.cluster.rig import Rig
from tests.support.kube_client import wait_for

pytestmark = pytest.mark.timeout(900)


def test_an_unmodified_script_trains_in_two_pods(
    cluster: Rig, operator: Operator, restricted_namespace: str, tmp_path: Path
) -> None:
    model, corpus = tiny_inputs(tmp_path)
    text = corpus / "train.jsonl"
    place = Place.of(cluster, cluster.s3, restricted_namespace, models=model)
    files = [f"--from-file={CHECKOUT / 'examples' / 'train.py'}", f"--from-file=notes.txt={text}"]
    cluster.kubectl("create", "configmap", "own-script", "-n", place.namespace, *files)

    job = yaml.safe_load((CHECKOUT / "examples" / "bring-your-own-script.yaml").read_text())
    script = job["spec"]["pod"]["volumes"][0]
    command = ["python", "/script/train.py", f"--model={model}", "--text=/script/notes.txt"]
    job = place.on_this_rig(job, model=model)
    del job["spec"]["model"]
    job["spec"] |= {
        "command": [*command, "--output=/tmp/out", "--epochs=1"],
        "output": {"uri": f"s3://{place.bucket}/own"},
    }
    job["spec"]["output"]["credentials"] = {"secretName": "corp-s3"}
    job["spec"]["pod"]["volumes"] = [*place.volumes, script]
    place.apply(job)

    status = place.wait("own-script", lambda s: s.get("phase") == "Succeeded", what="its end")
    assert {c["type"]: c["reason"] for c in status["conditions"] if c["status"] == "True"} == {"Complete": "Succeeded"}
    assert status["progress"]["percent"] == 100
    assert status["plan"] == {"method": "command", "strategy": "", "precision": "", "worldSize": 2}
    message = next(c["message"] for c in status["conditions"] if c["type"] == "Complete")
    # nothing is promised of how an interpreter with torch in it ends: one that aborted then has had a second attempt
    assert re.fullmatch(r"Attempt \d succeeded; its command ended with status 0 in every process", message)
    # the trainers' exits decide; a kubelet calls a pod Succeeded a moment later
    wait_for(lambda: {pod["status"]["phase"] for pod in place.pods("own-script")} == {"Succeeded"}, what="ended pods")
    assert len({pod["status"]["podIP"] for pod in place.pods("own-script")}) == 2
