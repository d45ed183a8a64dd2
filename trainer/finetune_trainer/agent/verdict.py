"""Determines why a node's part of an attempt ended: evidence in, termination message out. Pure.

Ranks rarely fail alone: one fails, its peers lose their connection, and torchrun terminates the rest. The root cause is
the failure with the lowest rank in this order, and among those the earliest:

    0  a rank's own failure: its message, its signal, or its exit code
    1  a requested stop
    2  a lost peer: the cause is on another node
    3  SIGTERM: terminated by torchrun's clean-up

The first three are classes' `echo` (finetune_api.classes).
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_api.classes import Echo
from finetune_api.failures import CLASSES, Reason, TerminationMessage, class_of, default_reason, hint_of
from finetune_trainer.agent.launched import Launch, RankEnd
from finetune_trainer.rundir import TrainerReport

_VICTIM = 3
"""Of torchrun's clean-up: it says less than any class of failure does."""

_NETWORK_ERRORS = ("DistNetworkError", "DistStoreError", "DistBackendError", "Rendezvous", "TimeoutError")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that an agent knows when its torchrun has ended."""

    node: int
    time: str
    """RFC 3339: when torchrun's end was noticed."""
    exit_code: int
    """Of torchrun's process; negative: killed by that signal."""
    launch: Launch | None = None
    """None: torchrun's process ended before it could write the file."""
    errors: Mapping[int, TerminationMessage] = field(default_factory=dict)
    """What failed ranks said themselves."""
    result: TerminationMessage | None = None
    report: TrainerReport | None = None
    stop_reason: str | None = None
    """Why the ranks were asked to stop, if they were."""
    killed: TerminationMessage | None = None
    """What the agent itself ended the ranks for: a hang, or a grace period that was over."""
    oom_kills: int = 0
    """Of this container during this attempt."""


def judge(evidence: Evidence) -> TerminationMessage:
    """Returns the termination message of this node; exit code 0 if its part succeeded."""
    if evidence.killed is not None:
        return _finish(evidence.killed, evidence)
    if evidence.exit_code == 0:
        return _finish(_success(evidence), evidence)
    suspects = sorted(_suspects(evidence), key=lambda words: (_echo(words), words.time))
    first = suspects[0] if suspects else _torchrun_died(evidence)
    if evidence.stop_reason is not None and _echo(first) > Echo.ASKED:
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
) -> TerminationMessage:
    """Returns a termination message for a reason, with its class, hint and exit code."""
    failure_class = class_of(reason)
    return TerminationMessage(
        failure_class=failure_class,
        reason=reason,
        message=message,
        hint=hint or hint_of(reason),
        exit_code=CLASSES[failure_class].exit_code if exit_code is None else exit_code,
        rank=rank,
        time=time,
    )


def died(
    who: str, code: int, *, time: str, oom_kills: int, rank: int | None = None, tail: str = ""
) -> TerminationMessage:
    """Returns a termination message for a process that left none: by signal (negative code) or by exit status."""
    if code < 0:
        return _signalled(who, -code, time=time, oom_kills=oom_kills, rank=rank, tail=tail)
    reason = default_reason(code) or Reason.UnexpectedError
    last_line = next((line for line in reversed(tail.splitlines()) if line.strip()), "")
    message = f"{who} exited with status {code}" + (f": {last_line.strip()}" if last_line else "")
    return say(reason, message, time=time, rank=rank)


def _signalled(who: str, number: int, *, time: str, oom_kills: int, rank: int | None, tail: str) -> TerminationMessage:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    if number == signal.SIGKILL and oom_kills > 0:
        return say(Reason.OutOfMemory, f"{who} was killed (SIGKILL) by the kernel's OOM killer", time=time, rank=rank)
    if number == signal.SIGKILL:
        message = f"{who} was killed (SIGKILL): often the kernel's OOM killer"
        hint = (
            "Check the node's kernel log. If it was out of memory, reduce training.microBatchTokens or use more memory."
        )
        return say(Reason.PodFailed, message, hint=hint, time=time, rank=rank)
    if number == signal.SIGTERM:
        return say(Reason.PodFailed, f"{who} was terminated (SIGTERM)", time=time, rank=rank)
    if number == signal.SIGBUS:
        hint = "Often /dev/shm is full: raise pod.shmSize."
        return say(Reason.PodFailed, f"{who} was killed ({name})", hint=hint, time=time, rank=rank)
    lines = [line for line in tail.splitlines() if line.strip()]
    detail = f"; its last output: {' | '.join(lines[-5:])}" if lines else ""
    return say(Reason.UnexpectedError, f"{who} was killed ({name}){detail}", time=time, rank=rank)


def _suspects(evidence: Evidence) -> list[TerminationMessage]:
    ends = {end.rank: end for end in evidence.launch.ranks} if evidence.launch else {}
    spoken = [words.model_copy(update={"rank": rank}) for rank, words in evidence.errors.items()]
    silent = [_of_silent(end, evidence.oom_kills) for rank, end in ends.items() if rank not in evidence.errors]
    return spoken + silent


def _of_silent(end: RankEnd, oom_kills: int) -> TerminationMessage:
    if end.error:
        text = end.error.strip()
        return say(Reason.UnexpectedError, f"rank {end.rank} failed: {text}", time=end.time, rank=end.rank)
    return died(f"rank {end.rank}", end.exit_code, time=end.time, oom_kills=oom_kills, rank=end.rank, tail=end.log_tail)


def _echo(words: TerminationMessage) -> int:
    """How likely the failure is only a consequence of another one."""
    if words.reason is Reason.PodFailed and "(SIGTERM)" in words.message:
        return _VICTIM
    return CLASSES[class_of(words.reason)].echo if words.reason else Echo.NONE


def _torchrun_died(evidence: Evidence) -> TerminationMessage:
    if evidence.launch and (error := evidence.launch.error):
        if error.startswith(_NETWORK_ERRORS):
            return say(Reason.PeerLost, f"rendezvous failed: {error}", time=evidence.time)
        if error.startswith("OSError"):
            return say(Reason.PodFailed, f"torchrun could not start: {error}", time=evidence.time)
        return say(Reason.UnexpectedError, f"torchrun failed: {error}", time=evidence.time)
    return died("torchrun", evidence.exit_code, time=evidence.time, oom_kills=evidence.oom_kills)


def _success(evidence: Evidence) -> TerminationMessage:
    if evidence.result is not None:
        return evidence.result
    if evidence.node == 0:
        return say(Reason.UnexpectedError, "the ranks succeeded but left no result", time=evidence.time)
    return TerminationMessage(time=evidence.time)


def _finish(words: TerminationMessage, evidence: Evidence) -> TerminationMessage:
    """Adds the node, and the step, plan and scores so far."""
    update: dict[str, object] = {"node": evidence.node, "time": words.time or evidence.time}
    if evidence.report is not None:
        update["plan"] = words.plan or evidence.report.plan
        update["evaluation"] = words.evaluation or evidence.report.evaluation
        update["candidate"] = words.candidate or evidence.report.candidate
        update["step"] = evidence.report.progress.step if words.step is None else words.step
        update["checkpoint_time"] = evidence.report.progress.last_checkpoint_time or ""
    return words.model_copy(update=update)
