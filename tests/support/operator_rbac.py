"""The rights of operator/rbac*.yaml on the real API server, and what the operator asked for. A pytest plugin.

Fixture: `operator_kubeconfig`, of the account with exactly these rights. One that is missing fails the session, one
that the session never used is named at its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.rig import Rig

ROOT = Path(__file__).parents[2]

ACCOUNT = "system:serviceaccount:finetune-system:finetune-operator"


def install(rig: Rig) -> Path:
    """The CRD and the service account; the kubeconfig of that account."""
    rig.install_crd(ROOT / "crds" / "finetunejobs.finetune.dev.yaml")
    return rig.service_account_kubeconfig("finetune-system", "finetune-operator")


def allow(rig: Rig, namespace: str, *, account: str = "finetune-operator", file: str = "rbac.yaml") -> None:
    """The operator may look after this namespace, and no other: by a Role and a RoleBinding here, nothing beyond."""
    role = yaml.safe_load((ROOT / "operator" / file).read_text()) | {"kind": "Role"}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": f"{account}-{role['metadata']['name']}"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role["metadata"]["name"]},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": "finetune-system"}],
    }
    rig.apply([role, binding], namespace=namespace)
    if file == "rbac-gang.yaml":  # at its start the operator asks once what it may do
        rig.wait_allowed(
            "create", "podgroups.scheduling.k8s.io", namespace=namespace, account=f"finetune-system:{account}"
        )


@dataclass(frozen=True)
class Rights:
    """What the operator's files grant, and what its account asked for in a session, as (resource, verb)."""

    granted: frozenset[tuple[str, str]]
    used: frozenset[tuple[str, str]]
    missing: frozenset[tuple[str, str]]
    """Asked for, and never allowed."""

    @staticmethod
    def of(rig: Rig, *, since: int) -> Rights:
        asked = rig.audit.requests(since=since, user=ACCOUNT)
        used = frozenset((request.resource, request.verb) for request in asked if request.allowed)
        files = ("rbac.yaml", "rbac-leader.yaml", "rbac-gang.yaml", "rbac-network.yaml")
        roles = [yaml.safe_load((ROOT / "operator" / file).read_text()) for file in files]
        rules = [rule for role in roles for rule in role["rules"]]
        granted = frozenset((r, verb) for rule in rules for r in rule["resources"] for verb in rule["verbs"])
        asked_for = {(request.resource, request.verb) for request in asked if request.resource and not request.allowed}
        return Rights(granted, used, frozenset(asked_for - used))


RIGHTS = pytest.StashKey[Rights]()

NEVER_SEEN = frozenset({("finetunejobs/finalizers", "update")})
"""Granted for an admission plugin that the rig's API server does not run."""


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Of two processes, each tells what its rig saw."""
    output, rights = getattr(session.config, "workeroutput", None), session.config.stash.get(RIGHTS, None)
    if output is not None and rights is not None:
        output["rights"] = [[list(each) for each in pairs] for pairs in (rights.granted, rights.used)]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """One of the processes has ended."""
    if told := getattr(node, "workeroutput", {}).get("rights"):
        granted, used = (frozenset((resource, verb) for resource, verb in pairs) for pairs in told)
        before = node.config.stash.get(RIGHTS, None)
        node.config.stash[RIGHTS] = Rights(granted, used | (before.used if before else frozenset()), frozenset())


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A right that the whole session did not use is named: is it needed, or is a test missing?"""
    rights = config.stash.get(RIGHTS, None)
    if rights is None or not (unused := rights.granted - rights.used - NEVER_SEEN):
        return
    told = ", ".join(f"{verb} {resource}" for resource, verb in sorted(unused))
    terminalreporter.write_line(f"operator/rbac*.yaml: not used in this session: {told}")


@pytest.fixture(scope="session")
def operator_kubeconfig(control_plane: Rig, pytestconfig: pytest.Config) -> Iterator[Path]:
    """Of the account with exactly the rights of operator/rbac.yaml. One that is missing fails the session."""
    mark = 0 if control_plane.external else control_plane.audit.mark()
    yield install(control_plane)
    if control_plane.external:
        return
    rights = pytestconfig.stash[RIGHTS] = Rights.of(control_plane, since=mark)
    assert not rights.missing, f"operator/rbac*.yaml lack what the operator asked for: {sorted(rights.missing)}"
