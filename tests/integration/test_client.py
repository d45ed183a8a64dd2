"""`finetune_api.client` and the commands, through a real kubectl, on a real API server with the operator."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest
import yaml

from finetune_api.client import FinetuneError, FineTuneJobs
from finetune_api.failures import ExitCode, Reason
from finetune_trainer.cli.main import main
from tests.integration.test_operator_life import failing
from tests.support.kube_client import Kube, manifest, wait_for
from tests.support.operator_harness import Start


@pytest.fixture
def kubectl(kube: Kube, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rig's kubectl and its administrator's kubeconfig, as a user has them."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    cache = tmp_path / "cache"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(kube.rig._kubectl())} --cache-dir {cache} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KUBECONFIG", str(kube.rig.kubeconfig))


def test_a_life_by_the_commands(
    start: Start, kube: Kube, kubectl: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Submitted, stopped, resumed, failed, retried, cloned, deleted; and what is refused on the way."""
    start()
    jobs, where = FineTuneJobs(namespace=kube.namespace), ["-n", kube.namespace]
    file = tmp_path / "job.yaml"
    written = manifest("tickets", nodes=1, retry={"maxRestarts": 0}, output={"uri": "s3://corp/models/tickets"})
    file.write_text(yaml.safe_dump(written))

    assert main(["submit", str(file), "--dry-run", *where]) == ExitCode.OK
    assert jobs.list() == ()
    assert main(["submit", str(file), "-o", "json", *where]) == ExitCode.OK
    first = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert (first["action"], first["namespace"]) == ("submitted", kube.namespace)
    kube.run("tickets", 1)
    assert main(["submit", str(file), *where]) == ExitCode.CONFIG
    assert "AlreadyExists" in capsys.readouterr().err
    assert main(["delete", "tickets", *where]) == ExitCode.USAGE

    assert main(["stop", "tickets", *where]) == ExitCode.OK
    assert jobs.wait("tickets", lambda job: job.phase == "Suspended", timeout=120, every=0.5).spec.suspend
    assert main(["resume", "tickets", *where]) == ExitCode.OK
    (pod,) = kube.run("tickets", 2)
    kube.end(pod, code=78, words=failing(Reason.ModelNotFound, "no such model"))
    failed = jobs.wait("tickets", timeout=120, every=0.5)
    assert "Failed" in repr(failed)
    assert {event.reason for event in jobs.events("tickets")} >= {"Suspended", "ModelNotFound"}
    with pytest.raises(FinetuneError, match="so there is nothing to stop"):
        jobs.stop("tickets")

    assert main(["retry", "tickets", *where]) == ExitCode.OK
    again = jobs.get("tickets")
    assert again.uid != first["uid"]
    assert again.raw["spec"] == written["spec"]
    kube.await_gang("tickets", 1)

    assert main(["clone", "tickets", "second", "--set", "suspend=true", *where]) == ExitCode.OK
    assert jobs.get("second").spec.output.uri == "s3://corp/models/second"
    assert main(["delete", "second", *where]) == ExitCode.OK
    wait_for(lambda: [job.name for job in jobs.list()] == ["tickets"], what="the clone is deleted")
    assert main(["delete", "second", *where]) == ExitCode.NO_INPUT
    capsys.readouterr()

    bad = FineTuneJobs(namespace="nowhere-at-all")
    with pytest.raises(FinetuneError) as error:
        bad.submit(written)
    assert error.value.reason is Reason.ClusterUnavailable
