"""The real API server's verdict on the tables of bad and good manifests: the same as `finetune validate`'s."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.rig import Rig, RigError
from tests.support.invalid_manifests import BAD, UNSEEN
from tests.support.manifests import BASE, Bad, Json, changed
from tests.support.valid_manifests import GOOD

CRD = Path(__file__).parents[2] / "crds" / "finetunejobs.finetune.dev.yaml"


@pytest.fixture(scope="module")
def contract(control_plane: Rig) -> Iterator[tuple[Rig, str]]:
    control_plane.install_crd(CRD)
    namespace = control_plane.create_namespace("contract", labels={})
    yield control_plane, namespace
    control_plane.delete_namespace(namespace)


def verdict(contract: tuple[Rig, str], new: Json, old: Json | None) -> str:
    """What kubectl prints, good or bad."""
    rig, namespace = contract
    if old is not None:
        rig.kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(old))
    verb = "create" if old is None else "replace"
    try:
        strictly = ("--dry-run=server", "--validate=strict", "-n", namespace, "-f", "-")
        return rig.kubectl(verb, *strictly, stdin=json.dumps(new))
    except RigError as error:
        return str(error)
    finally:
        if old is not None:
            rig.kubectl("delete", "finetunejob", old["metadata"]["name"], "-n", namespace)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_the_api_server_refuses(contract: tuple[Rig, str], bad: Bad) -> None:
    said = verdict(contract, bad.new, bad.old)

    assert (bad.server or bad.says) in said, said
    assert (bad.server_path or bad.path) in said, said


@pytest.mark.parametrize(("name", "changes", "before"), GOOD, ids=[name for name, _, _ in GOOD])
def test_the_api_server_takes(contract: tuple[Rig, str], name: str, changes: Json, before: Json | None) -> None:
    old = None if before is None else changed(BASE, before)

    said = verdict(contract, changed(old or BASE, changes), old)

    assert "(server dry run)" in said, f"{name}: {said}"


def test_a_change_of_the_spec_does_not_hide_behind_a_status(contract: tuple[Rig, str]) -> None:
    """The rules of updates are not asked when a status is written: then the spec stays as it was, and in any other
    write the status does."""
    rig, namespace = contract
    job = changed(BASE, {"metadata.name": "hides"})
    rig.kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(job))
    other = json.dumps({"spec": {"model": {"uri": "hf://org/other"}}, "status": {"phase": "Pending"}})
    patch = ("patch", "ftj", "hides", "-n", namespace, "--type=merge", "-p", other)

    with pytest.raises(RigError, match=r"spec: .*spec\.model is immutable"):
        rig.kubectl(*patch)
    rig.kubectl(*patch, "--subresource=status")

    after = rig.get("ftj", "hides", "-n", namespace)
    assert (after["spec"]["model"], after["status"]["phase"]) == (job["spec"]["model"], "Pending")


@pytest.mark.parametrize("bad", UNSEEN, ids=lambda bad: bad.name)
def test_the_api_server_cannot_see(contract: tuple[Rig, str], bad: Bad) -> None:
    """So the operator tells: tests/integration/test_operator_elastic.py."""
    assert "(server dry run)" in verdict(contract, bad.new, None)


def test_the_short_name_and_the_columns_are_there(contract: tuple[Rig, str]) -> None:
    rig, namespace = contract
    rig.kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(changed(BASE, {"metadata.name": "columns"})))

    judged = {"type": "GuardsPassed", "status": "Unknown", "reason": "GuardInconclusive", "message": "few rows",
              "lastTransitionTime": "2026-01-01T00:00:00Z"}  # fmt: skip
    said = json.dumps({"status": {"phase": "Succeeded", "conditions": [judged]}})
    rig.kubectl("patch", "ftj", "columns", "-n", namespace, "--type=merge", "--subresource=status", "-p", said)

    header, row = rig.kubectl("get", "ftj", "columns", "-o", "wide", "-n", namespace).splitlines()

    shown = ["NAME", "PHASE", "PROGRESS", "NODES", "RESTARTS", "AGE"]
    assert header.split() == [*shown, "METHOD", "BEST", "LOSS", "ETA", "GUARDS", "ARTIFACT"]
    assert row[header.index("GUARDS") :].split() == ["Unknown"]
