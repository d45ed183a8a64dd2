"""Fuzzed manifests: whatever a manifest says, the operator decides, its pods are restricted and its objects are the
job's own. `make proof` runs twenty thousand, `make test` fewer: see tests/proof/fuzzed.py."""

from __future__ import annotations

import itertools

import pytest

from tests.proof.fuzzed import Verdict, judged
from tests.support.fuzzed_manifests import manifest
from tests.support.pod_security import violations

NUMBER = 2_000
STEP = 250


@pytest.mark.parametrize("start", range(0, NUMBER, STEP))
def test_whatever_a_manifest_says(start: int) -> None:
    found = [judged(number) for number in range(start, start + STEP)]

    assert [verdict for verdict in found if verdict.problems] == []


def test_the_manifests_reach_what_makes_objects() -> None:
    """Else the tests above would show nothing: a good part runs, and a good part is refused."""
    made = [bool(judged(number).objects) for number in range(200)]

    assert 0.1 < sum(made) / len(made) < 0.8


def test_a_number_is_a_manifest() -> None:
    assert manifest(7) == manifest(7)
    assert all(a != b for a, b in itertools.pairwise(map(manifest, range(5))))


BAD = {"metadata": {}, "spec": {"hostNetwork": True, "volumes": [{"name": "x", "hostPath": {}}], "containers": [{}]}}


def test_the_judge_sees_a_pod_that_is_not_restricted() -> None:
    assert {"hostNetwork is set", "volume of kind hostPath", "may run as root", "seccomp"} <= set(violations(BAD))


def test_a_verdict_names_its_manifest() -> None:
    assert "7" in str(Verdict(7, objects=0, problems=("x",)))
