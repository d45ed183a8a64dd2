"""Operator and CRD of different versions on the real API server, with jobs that run: upgrade and rollback, both orders.

Nothing that runs is restarted, and nothing else is trained than was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from finetune_api import schema
from finetune_operator.kube.resources import FINETUNEJOBS, Raw
from finetune_operator.state import observe
from tests.support.kube_client import Kube, manifest, wait_for
from tests.support.operator_harness import Operator, Start
from tests.support.operator_scenarios import DONE

FIELD = "invented"
"""Of a version to come."""


def served(kube: Kube) -> bool:
    """The API server keeps the field."""
    asked = manifest("asked", **{FIELD: 1})
    answer = kube.request("POST", f"{FINETUNEJOBS.path(kube.namespace)}?dryRun=All", asked)
    return FIELD in answer["spec"]


def newer_crd() -> Raw:
    made = schema.crd()
    root = made["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    root["properties"]["spec"]["properties"][FIELD] = {"type": "integer"}
    return made


@pytest.fixture
def upgraded_crd(kube: Kube) -> Iterator[None]:
    kube.rig.apply(newer_crd())
    wait_for(lambda: served(kube), what="the newer CRD")
    yield
    roll_back_crd(kube)


def roll_back_crd(kube: Kube) -> None:
    kube.rig.apply(schema.crd())
    wait_for(lambda: not served(kube), what="the older CRD")


@contextmanager
def of_a_newer_version(start: Start, monkeypatch: pytest.MonkeyPatch) -> Iterator[Operator]:
    """It understands the field."""
    with monkeypatch.context() as patch:
        patch.setattr(observe, "not_understood", lambda *_, **__: "")
        operator = start()
        yield operator
        operator.stop()


def untouched(kube: Kube, *jobs: str) -> None:
    for job in jobs:
        status = kube.status(job)
        assert (status["phase"], status["attempt"], status["restarts"]) == ("Running", 1, {"counted": 0, "free": 0})
    assert kube.jobs() == sorted(f"{job}-1" for job in jobs)


def test_an_upgrade_and_a_rollback_restart_nothing(
    start: Start, kube: Kube, upgraded_crd: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CRD first, then the operator; and back: first the operator, then the CRD."""
    kube.create(manifest("known"))
    kube.create(manifest("newer", **{FIELD: 1}))
    older = start()
    kube.run("known", 1)
    wait_for(lambda: kube.condition("newer", "Held").get("status") == "True", what="it is held")
    held = kube.condition("newer", "Held")
    assert held["reason"] == "NotUnderstood"
    assert FIELD in held["message"]
    older.settle()
    untouched(kube, "known")
    older.stop()

    with of_a_newer_version(start, monkeypatch) as newer:
        kube.run("newer", 1)
        assert not kube.condition("newer", "Held")
        newer.settle()
        untouched(kube, "known", "newer")

    again = start()
    again.settle()
    untouched(kube, "known", "newer")
    roll_back_crd(kube)
    again.settle()
    untouched(kube, "known", "newer")
    for job in ("known", "newer"):
        first, second = kube.gang(job, 1)
        kube.end(second)
        kube.end(first, words=DONE)
        wait_for(lambda job=job: kube.phase(job) == "Succeeded", what=f"success: {kube.status(job)}")


def test_a_newer_operator_under_an_older_crd_restarts_nothing(
    start: Start, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other order: the operator first, then the CRD; and back: first the CRD, then the operator."""
    with of_a_newer_version(start, monkeypatch) as newer:
        kube.create(manifest("known"))
        kube.run("known", 1)
        kube.rig.apply(newer_crd())
        try:
            wait_for(lambda: served(kube), what="the newer CRD")
            kube.create(manifest("newer", **{FIELD: 1}))
            kube.run("newer", 1)
            newer.settle()
            untouched(kube, "known", "newer")
        finally:
            roll_back_crd(kube)
        newer.settle()
        untouched(kube, "known", "newer")
    older = start()
    older.settle()
    untouched(kube, "known", "newer")
