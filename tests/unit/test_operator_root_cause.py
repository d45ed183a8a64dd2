"""The culprit of a failed gang, and its class, from what pods leave behind."""

from __future__ import annotations

import pytest

from finetune_api.failures import ExitCode, Reason
from finetune_api.status import FailureClass
from finetune_operator.diagnosis.root_cause import blame, evidence_of
from finetune_operator.state.views import Pod
from tests.support.operator_objects import NOW, child, ended, failed_pod, later, pod, words

ALONE = [
    ("its termination message counts most", failed_pod(0, Reason.DataEmpty), "Data", "DataEmpty"),
    ("a crash that it could tell", failed_pod(0, Reason.UnexpectedError), "Internal", "UnexpectedError"),
    ("over the memory limit", pod(0, "Failed", ended=ended(137, reason="OOMKilled")), "OutOfMemory", "OutOfMemory"),
    ("killed", pod(0, "Failed", ended=ended(137)), "Infrastructure", "PodFailed"),
    ("our exit code without words", pod(0, "Failed", ended=ended(ExitCode.HANG)), "Hang", "NoProgress"),
    ("a foreign exit code", pod(0, "Failed", ended=ended(3)), "Infrastructure", "PodFailed"),
    ("no such command", pod(0, "Failed", ended=ended(128, reason="StartError")), "Infrastructure", "PodFailed"),
    ("preempted", pod(0, "Failed", disruption="PreemptionByScheduler", disrupted=NOW), "Preemption", "Evicted"),
    ("no such command, by the runtime's words",
     pod(0, "Failed", ended=ended(128, reason="StartError", text='exec: "x": executable file not found in $PATH')),
     "Config", "CommandMissing"),
    ("drained", pod(0, "Failed", disruption="EvictionByEvictionAPI", disrupted=NOW), "Preemption", "Evicted"),
    ("a taint", pod(0, "Failed", disruption="DeletionByTaintManager", disrupted=NOW), "Preemption", "Evicted"),
    ("its node shut down", pod(0, "Failed", disruption="TerminationByKubelet", disrupted=NOW), "Preemption", "Evicted"),
    ("its node is gone", pod(0, "Failed", disruption="DeletionByPodGC", disrupted=NOW), "Preemption", "Evicted"),
    ("evicted for its own greed",
     pod(0, "Failed", reason="Evicted", message="Pod ephemeral local storage usage exceeds the total limit of 1Gi."),
     "Infrastructure", "DiskLimitExceeded"),
    ("evicted by its node", pod(0, "Failed", reason="Evicted", message="low on memory"), "Preemption", "Evicted"),
    ("refused by its node", pod(0, "Failed", reason="OutOfcpu"), "Preemption", "NodeRefused"),
    ("asked to stop", failed_pod(0, Reason.Interrupted), "Preemption", "Interrupted"),
    ("preempted, with words of a lost peer",
     pod(0, "Failed", disruption="EvictionByEvictionAPI", ended=ended(83, words=words(Reason.PeerLost))),
     "Preemption", "Evicted"),
    ("preempted, but its data were wrong",
     pod(0, "Failed", disruption="EvictionByEvictionAPI", ended=ended(65, words=words(Reason.DataEmpty))),
     "Data", "DataEmpty"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "failure_class", "reason"), [t[1:] for t in ALONE], ids=[t[0] for t in ALONE])
def test_what_one_pod_says(given: Pod, failure_class: str, reason: str) -> None:
    said = evidence_of(given)
    assert said is not None
    assert (said.failure.failure_class.value, said.failure.reason) == (failure_class, reason)
    assert said.failure.hint


@pytest.mark.parametrize("phase", ["Pending", "Running", "Succeeded"])
def test_a_pod_that_did_not_fail_says_nothing(phase: str) -> None:
    assert evidence_of(pod(0, phase)) is None


def test_the_first_with_a_cause_of_its_own_is_to_blame() -> None:
    gang = [failed_pod(0, Reason.PeerLost, at=1), failed_pod(1, Reason.PeerLost, at=0.5),
            failed_pod(2, Reason.LossNonFinite, at=2), failed_pod(3, Reason.UnexpectedError, at=3)]  # fmt: skip
    verdict = blame(gang, child(nodes=4), now=later(3))
    assert verdict is not None
    assert (verdict.failure.rank, verdict.failure.reason, verdict.wait) == (2, "LossNonFinite", 0)


def test_in_a_gang_of_four_the_first_to_die_is_named_though_it_is_the_last_to_be_heard() -> None:
    """Rank 2 dies, the others lose their connections, and their pods end before its pod does."""
    victims = [failed_pod(0, Reason.PeerLost, at=0.2), failed_pod(1, Reason.PeerLost, at=0.1),
               failed_pod(3, Reason.Interrupted, at=0.3)]  # fmt: skip
    early = blame([*victims, pod(2, "Running")], child(nodes=4), now=later(2))
    assert early is not None
    assert early.wait > 0, "nobody is blamed while rank 2 can still speak"
    killed = pod(
        2, "Failed", node="n2", ended=ended(69, at=4, words=words(Reason.PodFailed, rank=2, message="SIGKILL"))
    )
    verdict = blame([*victims, killed], child(nodes=4), now=later(4))
    assert verdict is not None
    assert (verdict.failure.rank, verdict.failure.node, verdict.wait) == (2, "n2", 0)


def test_an_echo_waits_for_the_culprit_but_not_for_ever() -> None:
    gang = [failed_pod(0, Reason.PeerLost, at=0), pod(1, "Running")]
    verdict = blame(gang, child(), now=later(1))
    assert verdict is not None
    assert verdict.wait == pytest.approx(4)
    late = blame(gang, child(), now=later(6))
    assert late is not None
    assert (late.wait, late.failure.failure_class) == (0, FailureClass.PeerLost)


def test_a_node_that_fell_silent_explains_the_lost_peers() -> None:
    gang = [failed_pod(0, Reason.PeerLost), pod(1, "Running", node="gpu-7", unreachable=True)]
    verdict = blame(gang, child(), now=later(1))
    assert verdict is not None
    assert (verdict.failure.reason, verdict.failure.node, verdict.wait) == ("NodeLost", "gpu-7", 0)


def test_a_silent_node_is_lost_once_its_pods_are_given_up() -> None:
    running, silent = pod(0, "Running"), pod(1, "Running", node="gpu-7", unreachable=True)
    assert blame([running, silent], child(), now=NOW) is None
    given_up = pod(1, "Running", node="gpu-7", unreachable=True, deleting=True, disruption="DeletionByTaintManager")
    verdict = blame([running, given_up], child(), now=NOW)
    assert verdict is not None
    assert (verdict.failure.failure_class.value, verdict.failure.node) == ("Infrastructure", "gpu-7")


def test_nobody_is_waited_for_when_all_have_ended() -> None:
    gang = [failed_pod(0, Reason.PeerLost), failed_pod(1, Reason.Interrupted)]
    verdict = blame(gang, child(), now=NOW)
    assert verdict is not None
    assert (verdict.failure.reason, verdict.wait) == ("Interrupted", 0)


def test_a_job_that_failed_without_pods_lost_them() -> None:
    verdict = blame([], child(failing=True, message="BackoffLimitExceeded"), now=NOW)
    assert verdict is not None
    assert verdict.failure.reason == "PodLost"
    assert "BackoffLimitExceeded" in verdict.failure.message


def test_the_node_and_exit_code_are_named() -> None:
    said = evidence_of(pod(1, "Failed", node="gpu-7", ended=ended(137, text="Killed")))
    assert said is not None
    assert (said.failure.node, said.failure.exit_code) == ("gpu-7", 137)
    assert "SIGKILL" in said.failure.message
    assert "Killed" in said.failure.message


def test_pods_that_are_no_more_tell_where_nobody_else_can() -> None:
    """A pod that was drained is gone as soon as it has ended, and the Job controller deletes its peers."""
    gone = [failed_pod(0, Reason.PeerLost, at=1), failed_pod(1, Reason.Interrupted, at=2)]
    assert blame([], child(), gone=gone, now=later(3)) is None, "its Job has not failed"
    verdict = blame([], child(failing=True), gone=gone, now=later(3))
    assert verdict is not None
    assert (verdict.failure.reason, verdict.wait) == ("Interrupted", 0.0)
    spoken = blame([failed_pod(0, Reason.DataEmpty)], child(failing=True), gone=gone, now=later(3))
    assert spoken is not None
    assert spoken.failure.reason == "DataEmpty"
