"""What a real kubelet says of a pod that cannot start reaches the job's status within a minute."""

from __future__ import annotations

import json

import pytest

from finetune_operator.kube.resources import FINETUNEJOBS
from tests.cluster.operator_process import Operator
from tests.cluster.rig import Rig
from tests.cluster.rig.host_trees import IMAGE
from tests.support.kube_client import manifest

pytestmark = pytest.mark.timeout(600)


def test_a_volume_of_a_secret_that_is_missing(cluster: Rig, operator: Operator, restricted_namespace: str) -> None:
    volume = {"name": "keys", "mountPath": "/keys", "secret": {"name": "own"}}
    job = manifest("a", nodes=1, image=IMAGE, pod={"volumes": [volume]})
    cluster.kubectl("apply", "-n", restricted_namespace, "-f", "-", stdin=json.dumps(job))

    def told() -> dict[str, str]:
        found: dict[str, str] = (
            cluster.read(FINETUNEJOBS.path(restricted_namespace, "a")).get("status", {}).get("lastFailure", {})
        )
        return found

    cluster.wait_until(told, what="an explanation")
    assert told()["reason"] == "ReferenceMissing", operator.log.read_text()
    assert 'secret "own" not found' in told()["message"]
    assert "FailedMount" in told()["message"]
