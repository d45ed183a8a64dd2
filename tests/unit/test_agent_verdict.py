"""Evidence → termination message: who is blamed, with which class, and what the message must name."""

from __future__ import annotations

import pytest

from finetune_api.failures import CLASSES, ExitCode, Reason, TerminationMessage
from finetune_api.measurements import Evaluation, Measurement
from finetune_api.status import Artifact, FailureClass, Progress, ResolvedPlan
from finetune_trainer.agent.launched import Launch, RankEnd
from finetune_trainer.agent.verdict import Evidence, died, judge, say
from finetune_trainer.rundir import TrainerReport

T = "2026-01-01T00:00:0{}Z"


def evidence(*, code: int = 1, node: int = 0, **known: object) -> Evidence:
    return Evidence(node=node, time=T.format(9), exit_code=code, **known)  # type: ignore[arg-type]


def ended(rank: int, code: int, *, at: int = 5, error: str = "", tail: str = "") -> RankEnd:
    return RankEnd(rank=rank, exit_code=code, time=T.format(at), error=error, log_tail=tail)


def said(reason: Reason, at: int, message: str = "as told") -> TerminationMessage:
    return say(reason, message, time=T.format(at))


CASES: list[tuple[str, Evidence, Reason, int | None, str]] = [
    (
        "a rank's own words win over its exit code",
        evidence(launch=Launch(ranks=(ended(1, 65),)), errors={1: said(Reason.DataUnreadable, 3, "row 7")}),
        Reason.DataUnreadable, 1, "row 7",
    ),
    (
        "the culprit is blamed, not the peer that lost it first by the clock",
        evidence(
            launch=Launch(ranks=(ended(0, 83), ended(1, 81))),
            errors={0: said(Reason.PeerLost, 1), 1: said(Reason.LossNonFinite, 2, "nan at step 3")},
        ),
        Reason.LossNonFinite, 1, "nan",
    ),
    (
        "of two failures of their own, the earlier",
        evidence(errors={2: said(Reason.OutOfMemory, 4), 5: said(Reason.OutOfMemory, 3, "the first")}),
        Reason.OutOfMemory, 5, "the first",
    ),
    (
        "a SIGKILL is named with its rank and what it often is",
        evidence(launch=Launch(ranks=(ended(3, -9),))),
        Reason.PodFailed, 3, "rank 3 was killed (SIGKILL): often the kernel's OOM killer",
    ),
    (
        "a SIGKILL while the OOM counter rose is out of memory",
        evidence(launch=Launch(ranks=(ended(3, -9),)), oom_kills=1),
        Reason.OutOfMemory, 3, "rank 3 was killed (SIGKILL) by the kernel's OOM killer",
    ),
    (
        "a killed rank is blamed before the neighbours that torchrun terminated and the peers that lost it",
        evidence(
            launch=Launch(ranks=(ended(0, 83, at=1), ended(1, -15, at=1), ended(2, -9, at=2))),
            errors={0: said(Reason.PeerLost, 1)},
        ),
        Reason.PodFailed, 2, "SIGKILL",
    ),
    (
        "SIGTERM alone: a victim, but all there is",
        evidence(launch=Launch(ranks=(ended(1, -15),))),
        Reason.PodFailed, 1, "SIGTERM",
    ),
    (
        "a lost peer alone is a lost peer",
        evidence(node=1, errors={1: said(Reason.PeerLost, 1)}),
        Reason.PeerLost, 1, "as told",
    ),
    (
        "SIGSEGV is internal, with what it printed last",
        evidence(launch=Launch(ranks=(ended(0, -11, tail="Fatal Python error\n  File x\n"),))),
        Reason.UnexpectedError, 0, "SIGSEGV); its last output: Fatal Python error |   File x",
    ),
    (
        "SIGBUS names /dev/shm",
        evidence(launch=Launch(ranks=(ended(0, -7),))),
        Reason.PodFailed, 0, "SIGBUS",
    ),
    (
        "a torchelastic error file is read",
        evidence(launch=Launch(ranks=(ended(0, 1, error="ValueError: no such layer"),))),
        Reason.UnexpectedError, 0, "rank 0 failed: ValueError: no such layer",
    ),
    (
        "an exit code of ours keeps its class when no words were left",
        evidence(launch=Launch(ranks=(ended(2, ExitCode.OUT_OF_MEMORY),))),
        Reason.OutOfMemory, 2, "status 80",
    ),
    (
        "any other exit code is internal, with the last line printed",
        evidence(launch=Launch(ranks=(ended(0, 1, tail="Traceback\nImportError: no module x\n"),))),
        Reason.UnexpectedError, 0, "rank 0 exited with status 1: ImportError: no module x",
    ),
    (
        "an Interrupted that was asked for keeps the rank's words",
        evidence(stop_reason="SIGTERM", errors={0: said(Reason.Interrupted, 1, "checkpoint of step 9")}),
        Reason.Interrupted, 0, "checkpoint of step 9",
    ),
    (
        "after a request to stop, a lost peer is that stop",
        evidence(stop_reason="SIGTERM", errors={0: said(Reason.PeerLost, 1)}),
        Reason.Interrupted, None, "SIGTERM",
    ),
    (
        "after a request to stop, a failure of a rank's own is still one",
        evidence(stop_reason="SIGTERM", errors={0: said(Reason.StorageUnavailable, 1, "no bucket")}),
        Reason.StorageUnavailable, 0, "no bucket",
    ),
    (
        "a peer that was asked to stop interrupts this node too",
        evidence(errors={0: said(Reason.Interrupted, 1)}),
        Reason.Interrupted, 0, "as told",
    ),
    (
        "a rendezvous that failed is a lost peer",
        evidence(launch=Launch(error="DistStoreError: timed out after 1800 s")),
        Reason.PeerLost, None, "rendezvous failed",
    ),
    (
        "a port that is taken can be tried again",
        evidence(launch=Launch(error="OSError: [Errno 98] Address already in use")),
        Reason.PodFailed, None, "Address already in use",
    ),
    (
        "torchrun itself killed",
        evidence(code=-9, launch=None),
        Reason.PodFailed, None, "torchrun was killed (SIGKILL)",
    ),
    (
        "what the agent killed for a hang is a hang, whatever the ranks say then",
        evidence(killed=said(Reason.NoProgress, 2, "rank 1 fell silent"), errors={0: said(Reason.PeerLost, 1)}),
        Reason.NoProgress, None, "rank 1 fell silent",
    ),
    (
        "success without a result is none",
        evidence(code=0),
        Reason.UnexpectedError, None, "left no result",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("given", "reason", "rank", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_blame(given: Evidence, reason: Reason, rank: int | None, message: str) -> None:
    words = judge(given)

    assert words.reason is reason
    assert words.rank == rank
    assert message in words.message
    assert words.failure_class is not None
    assert words.exit_code == CLASSES[words.failure_class].exit_code
    assert words.hint
    assert words.time
    assert words.node == given.node


def test_success_of_node_0_is_its_result() -> None:
    artifact = Artifact(uri="s3://b/a", digest="0", size_bytes=1, kind="adapter")
    words = judge(evidence(code=0, result=TerminationMessage(artifact=artifact)))
    assert (words.exit_code, words.reason, words.artifact) == (0, None, artifact)


def test_success_of_another_node_needs_no_result() -> None:
    words = judge(evidence(code=0, node=2))
    assert (words.exit_code, words.reason, words.node) == (0, None, 2)


def test_failures_carry_what_was_known_of_the_run() -> None:
    report = TrainerReport(
        attempt=1,
        phase="training",
        progress=Progress(step=17),
        plan=ResolvedPlan(method="lora"),
        evaluation=Evaluation(data=(Measurement(name="test", kind="test", metric="loss", base=2.0),)),
    )
    words = judge(evidence(errors={0: said(Reason.LossNonFinite, 1)}, report=report))
    assert words.step == 17
    assert words.plan == report.plan
    assert words.evaluation == report.evaluation


@pytest.mark.parametrize("failure_class", list(FailureClass))
def test_every_exit_code_finds_its_class_back(failure_class: FailureClass) -> None:
    words = died("rank 0", CLASSES[failure_class].exit_code, time=T.format(1), oom_kills=0)
    assert words.failure_class is failure_class
