"""Evidence in, last words out: why a node's part of an attempt ended. Pure.

Ranks rarely fail alone: one breaks, its peers lose their connection, torchrun terminates the rest. Blame goes by how
much a way of ending explains, and then to the earliest:

    1  a failure of a rank's own: its words, its signal, or its exit code
    2  a stop that somebody asked for
    3  a peer that was lost: the culprit speaks on another node
    4  SIGTERM: a victim of torchrun's clean-up
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_api.failures import CLASSES, LastWords, Reason, class_of, hint_of
from finetune_api.status import FailureClass
from finetune_trainer.agent.launched import Launch, RankEnd
from finetune_trainer.rundir import TrainerReport

_REASON_OF_CLASS: dict[FailureClass, Reason] = {
    FailureClass.Config: Reason.InvalidSpec,
    FailureClass.Data: Reason.DataUnreadable,
    FailureClass.Authentication: Reason.CredentialsRejected,
    FailureClass.OutOfMemory: Reason.OutOfMemory,
    FailureClass.NonFinite: Reason.LossNonFinite,
    FailureClass.Hang: Reason.NoProgress,
    FailureClass.PeerLost: Reason.PeerLost,
    FailureClass.Infrastructure: Reason.StorageUnavailable,
    FailureClass.Preemption: Reason.Interrupted,
    FailureClass.Internal: Reason.UnexpectedError,
}
"""For a rank that ended with a class's exit code and left no words."""

_ASKED = 2
"""Guilt of an ending that somebody asked for; more says less about the cause."""

_NETWORK_ERRORS = ("DistNetworkError", "DistStoreError", "DistBackendError", "Rendezvous", "TimeoutError")

_CLASS_OF_CODE = {rule.exit_code: failure_class for failure_class, rule in CLASSES.items()}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that an agent knows when its torchrun has ended."""

    node: int
    time: str
    """RFC 3339: when torchrun's end was noticed."""
    exit_code: int
    """Of torchrun's process; negative: killed by that signal."""
    launch: Launch | None = None
    """None: torchrun's process ended before it could tell."""
    errors: Mapping[int, LastWords] = field(default_factory=dict)
    """What failed ranks said themselves."""
    result: LastWords | None = None
    report: TrainerReport | None = None
    stop_reason: str | None = None
    """Why the ranks were asked to stop, if they were."""
    killed: LastWords | None = None
    """What the agent itself ended the ranks for: a hang, or a grace period that was over."""
    oom_kills: int = 0
    """Of this container during this attempt."""


def judge(evidence: Evidence) -> LastWords:
    """The last words of this node; exit code 0 if its part succeeded."""
    if evidence.killed is not None:
        return _finish(evidence.killed, evidence)
    if evidence.exit_code == 0:
        return _finish(_success(evidence), evidence)
    suspects = sorted(_suspects(evidence), key=lambda words: (_guilt(words), words.time))
    first = suspects[0] if suspects else _torchrun_died(evidence)
    if evidence.stop_reason is not None and _guilt(first) > _ASKED:
        first = say(Reason.Interrupted, f"stopped after a request: {evidence.stop_reason}", time=first.time)
    return _finish(first, evidence)


def say(
    reason: Reason,
    message: str,
    *,
    hint: str = "",
    time: str = "",
    rank: int | None = None,
    exit_code: int | None = None,
) -> LastWords:
    """Words for a reason, with its class, hint and exit code."""
    failure_class = class_of(reason)
    return LastWords(
        failure_class=failure_class,
        reason=reason,
        message=message,
        hint=hint or hint_of(reason),
        exit_code=CLASSES[failure_class].exit_code if exit_code is None else exit_code,
        rank=rank,
        time=time,
    )


def died(who: str, code: int, *, time: str, oom_kills: int, rank: int | None = None, tail: str = "") -> LastWords:
    """Words for a process that ended without any: by signal (negative code) or by exit status."""
    if code < 0:
        return _signalled(who, -code, time=time, oom_kills=oom_kills, rank=rank, tail=tail)
    failure_class = _CLASS_OF_CODE.get(code, FailureClass.Internal)
    last_line = next((line for line in reversed(tail.splitlines()) if line.strip()), "")
    message = f"{who} ended with exit status {code}" + (f": {last_line.strip()}" if last_line else "")
    return say(_REASON_OF_CLASS[failure_class], message, time=time, rank=rank)


def _signalled(who: str, number: int, *, time: str, oom_kills: int, rank: int | None, tail: str) -> LastWords:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if number == signal.SIGKILL and oom_kills > 0:
        return say(Reason.OutOfMemory, f"{who} was killed (SIGKILL) by the kernel's OOM killer", time=time, rank=rank)
    if number == signal.SIGKILL:
        message = f"{who} was killed (SIGKILL): often the kernel's OOM killer"
        hint = "Look at the node's kernel log; if memory was short, lower training.microBatchTokens or give more."
        return say(Reason.PodFailed, message, hint=hint, time=time, rank=rank)
    if number == signal.SIGTERM:
        return say(Reason.PodFailed, f"{who} was terminated (SIGTERM)", time=time, rank=rank)
    if number == signal.SIGBUS:
        hint = "Often /dev/shm is full: raise pod.shmSize."
        return say(Reason.PodFailed, f"{who} was killed ({name})", hint=hint, time=time, rank=rank)
    lines = [line for line in tail.splitlines() if line.strip()]
    detail = f"; its last output: {' | '.join(lines[-5:])}" if lines else ""
    return say(Reason.UnexpectedError, f"{who} was killed ({name}){detail}", time=time, rank=rank)


def _suspects(evidence: Evidence) -> list[LastWords]:
    ends = {end.rank: end for end in evidence.launch.ranks} if evidence.launch else {}
    spoken = [words.model_copy(update={"rank": rank}) for rank, words in evidence.errors.items()]
    silent = [_of_silent(end, evidence.oom_kills) for rank, end in ends.items() if rank not in evidence.errors]
    return spoken + silent


def _of_silent(end: RankEnd, oom_kills: int) -> LastWords:
    if end.error:
        text = end.error.strip()
        return say(Reason.UnexpectedError, f"rank {end.rank} failed: {text}", time=end.time, rank=end.rank)
    return died(f"rank {end.rank}", end.exit_code, time=end.time, oom_kills=oom_kills, rank=end.rank, tail=end.log_tail)


def _guilt(words: LastWords) -> int:
    if words.reason is Reason.Interrupted:
        return _ASKED
    if words.reason is Reason.PeerLost:
        return 3
    if words.reason is Reason.PodFailed and "(SIGTERM)" in words.message:
        return 4
    return 1


def _torchrun_died(evidence: Evidence) -> LastWords:
    if evidence.launch and (error := evidence.launch.error):
        if error.startswith(_NETWORK_ERRORS):
            return say(Reason.PeerLost, f"the gang did not come together: {error}", time=evidence.time)
        if error.startswith("OSError"):
            return say(Reason.PodFailed, f"torchrun could not start: {error}", time=evidence.time)
        return say(Reason.UnexpectedError, f"torchrun failed: {error}", time=evidence.time)
    return died("torchrun", evidence.exit_code, time=evidence.time, oom_kills=evidence.oom_kills)


def _success(evidence: Evidence) -> LastWords:
    if evidence.result is not None:
        return evidence.result
    if evidence.node == 0:
        return say(Reason.UnexpectedError, "the ranks ended well but left no result", time=evidence.time)
    return LastWords(time=evidence.time)


def _finish(words: LastWords, evidence: Evidence) -> LastWords:
    """Who speaks, and what is known whatever happened: step, plan and scores so far."""
    update: dict[str, object] = {"node": evidence.node, "time": words.time or evidence.time}
    if evidence.report is not None:
        update["plan"] = words.plan or evidence.report.plan
        update["evaluation"] = words.evaluation or evidence.report.evaluation
        update["step"] = evidence.report.progress.step if words.step is None else words.step
    return words.model_copy(update=update)
