"""The NetworkPolicy of a job: only where it is asked for, before the pods. The golden pair `protected` shows it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from finetune_operator import main
from finetune_operator.decide import decide
from finetune_operator.kube.resources import NETWORK_POLICIES
from finetune_operator.network_policy import network_policy, peers_of
from finetune_operator.objects import attempt_job
from finetune_operator.state.observe import Observed
from tests.support.documents import ROOT
from tests.support.operator_objects import DEFAULTS, NOW, job, spec

PEER = {"podSelector": {"matchLabels": {"a": "b"}}}


def created(peers: tuple[dict[str, Any], ...] | None) -> list[str]:
    """Kinds that the operator creates for a new job, in order."""
    new = Observed(job=job(), spec=spec(), defaults=replace(DEFAULTS, peers=peers))
    return [create.resource.kind for create in decide(new, NOW).create]


def test_it_is_made_before_the_pods_and_only_where_it_is_asked_for() -> None:
    assert created(None) == ["Service", "Job"]
    assert created(()) == created((PEER,)) == ["Service", "NetworkPolicy", "Job"]


def test_without_peers_only_the_gang_reaches_its_pods() -> None:
    """An ingress rule with an empty list of peers would admit everybody."""
    ingress = network_policy(job(), ())["spec"]["ingress"]

    assert [list(rule) for rule in ingress] == [["from"]]
    assert all(rule["from"] for rule in network_policy(job(), (PEER,))["spec"]["ingress"])


def test_it_selects_the_pods_of_this_job_and_of_no_other_of_its_name() -> None:
    selector = network_policy(job(), ())["spec"]["podSelector"]["matchLabels"].items()

    def labels(uid: str) -> Any:
        made = attempt_job(job(uid=uid), spec(), attempt=1, nodes=2, defaults=DEFAULTS)
        return made["spec"]["template"]["metadata"]["labels"].items()

    assert selector <= labels("u")
    assert not selector <= labels("another")


@pytest.mark.parametrize("text", ["{", "{}", '["a"]', "[{}]", '[{"podSelecter": {}}]'])
def test_what_is_no_list_of_peers_is_refused_at_the_start(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main.parse(["--all-namespaces", f"--job-network-policy={text}"], {})

    assert stopped.value.code == main.EXIT_USAGE
    assert "--job-network-policy: " in capsys.readouterr().err


def test_peers_are_read_from_the_environment_too() -> None:
    args = main.parse(["--all-namespaces"], {"FINETUNE_OPERATOR_JOB_NETWORK_POLICY": '[{"podSelector": {}}]'})

    assert main.options(args).defaults.peers == ({"podSelector": {}},)
    assert main.options(main.parse(["--all-namespaces"], {})).defaults.peers is None
    assert peers_of("[]") == ()


def test_its_rights_are_a_role_of_its_own() -> None:
    (rule,) = yaml.safe_load((ROOT / "operator/rbac-network.yaml").read_text())["rules"]
    others = (ROOT / "operator/rbac.yaml").read_text()

    assert rule == {
        "apiGroups": [NETWORK_POLICIES.group], "resources": [NETWORK_POLICIES.plural], "verbs": ["get", "create"]
    }  # fmt: skip
    assert NETWORK_POLICIES.plural not in others
