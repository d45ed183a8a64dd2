"""One manifest that is nested too deeply does not keep the operator from all others."""

from __future__ import annotations

import json

import pytest

from tests.support.kube_client import Kube, manifest, wait_for
from tests.support.operator_harness import Start


@pytest.mark.parametrize("depth", [300, 1500])
def test_a_manifest_that_is_nested_too_deeply_is_refused_and_stops_nobody(start: Start, kube: Kube, depth: int) -> None:
    text = json.dumps(manifest("deep", pod={"affinity": {"a": "DEEP"}}))
    nested = text.replace('"DEEP"', '{"a":' * depth + '"b"' + "}" * depth)
    kube.rig.kubectl("create", "-n", kube.namespace, "-f", "-", stdin=nested)
    kube.create(manifest("before"))
    start()
    wait_for(lambda: "before-1" in kube.jobs(), what="the attempt of a job that was there before")
    kube.create(manifest("after"))
    wait_for(lambda: "after-1" in kube.jobs(), what="the attempt of a job that came later")
    wait_for(lambda: kube.phase("deep") == "Failed", what="it is refused")
    assert "nested too deeply" in kube.status("deep")["lastFailure"]["message"]
