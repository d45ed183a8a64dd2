"""Four pods, one gang: rank 2 is killed, the others lose their connections, and rank 2 is named. Its log stays."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cluster.jobs import Place, endless, rank_of, tiny_inputs
from tests.cluster.operator_process import Operator
from tests.cluster.rig import Rig

pytestmark = pytest.mark.timeout(1200)


def test_the_culprit_is_named_and_not_its_victims(cluster: Rig, tmp_path: Path) -> None:
    model, corpus = tiny_inputs(tmp_path)
    namespace = cluster.create_namespace("culprit", labels={"pod-security.kubernetes.io/enforce": "restricted"})
    place = Place.of(cluster, cluster.s3, namespace, models=model)
    place.upload(corpus, "tiny")
    operator = Operator.of(cluster, tmp_path)
    operator.start()
    try:
        manifest = endless("four", nodes=4, every=20)
        manifest["spec"]["retry"] = {"maxRestarts": 0}
        place.apply(place.on_this_rig(manifest, model=model))
        place.wait("four", lambda s: s.get("progress", {}).get("step", 0) > 0, what="training")
        pods = {p["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]: p for p in place.pods("four")}
        assert sorted(pods) == ["0", "1", "2", "3"]

        os.kill(rank_of(place, pods["2"]["metadata"]["name"]), signal.SIGKILL)

        cluster.wait_until(lambda: place.status("four").get("phase") == "Failed", what="the verdict", seconds=300)
        failure = place.status("four")["lastFailure"]
        assert (failure["rank"], failure["class"], failure["reason"]) == (2, "Infrastructure", "PodFailed"), failure
        assert "SIGKILL" in failure["message"]
        assert failure["node"] == pods["2"]["spec"]["nodeName"]
        uid = place.get("four")["metadata"]["uid"]
        kept = [e["path"] for batch in place.s3.store(place.bucket).list(f"models/four/.finetune/{uid}") for e in batch]
        assert f"models/four/.finetune/{uid}/attempts/1/node-2.log" in kept
    finally:
        operator.stop()
        cluster.delete_namespace(namespace)
