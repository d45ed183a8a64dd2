"""Monitors torchrun from start to end: forwards stop requests, detects hung ranks, kills what does not exit."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import psutil

from finetune_api.failures import Reason, TerminationMessage
from finetune_trainer.agent import children
from finetune_trainer.agent.launched import Launch
from finetune_trainer.agent.stopping import Stop
from finetune_trainer.agent.verdict import say
from finetune_trainer.rundir import Heartbeat, RunDir, now

POLL_SECONDS = 0.2


class Log(Protocol):
    def __call__(self, line: str, /) -> None: ...


class Ranks(Protocol):
    """What runs below torchrun on this node: our trainer, or a script of the user's own (see script)."""

    def ask_to_stop(self, launcher: int, reason: str) -> None:
        """Once a stop was requested, at every look. `launcher`: the pid of torchrun."""

    def hung(self, limits: Limits) -> TerminationMessage | None:
        """Why they are taken to hang, if they are."""

    def testimony(self, launch: Launch | None, *, stop_reason: str | None, oom_kills: int) -> Testimony:
        """After their end. `launch`: how torchrun saw it."""


class Testimony(NamedTuple):
    errors: dict[int, TerminationMessage]
    """By global rank, for those that failed and can be explained."""
    result: TerminationMessage | None
    """Of a success; None where there should have been one."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    grace_seconds: float
    """Time between a stop request and the SIGKILL of this process."""
    stall_seconds: float
    """Time without a step after which a training rank is considered hung."""

    @property
    def checkpoint_seconds(self) -> float:
        """The part of the grace period for the ranks; the rest is for the termination message."""
        return self.grace_seconds - min(10.0, max(1.0, self.grace_seconds / 10))


@dataclass(frozen=True)
class Trainer:
    """Ranks of the built-in trainer: a file requests a stop, and each rank reports its steps by heartbeats."""

    run_dir: RunDir

    def ask_to_stop(self, launcher: int, reason: str) -> None:  # noqa: ARG002
        if not self.run_dir.stop_requested:
            self.run_dir.request_stop(reason)

    def hung(self, limits: Limits) -> TerminationMessage | None:
        return _hung(self.run_dir.heartbeats(), limits, time.time())

    def testimony(self, launch: Launch | None, *, stop_reason: str | None, oom_kills: int) -> Testimony:  # noqa: ARG002
        return Testimony(self.run_dir.errors(), self.run_dir.result())


def run_to_end(
    process: subprocess.Popen[bytes], *, ranks: Ranks, run_dir: RunDir, stop: Stop, limits: Limits, log: Log,
    withdrawn: Callable[[], str] = lambda: "",
) -> TerminationMessage | None:  # fmt: skip
    """Waits for torchrun and everything below it; words if the ranks had to be killed by us, and why. withdrawn: why
    they are to end at once, if they are."""
    killed: TerminationMessage | None = None
    while process.poll() is None:
        children.reap([process])
        if stop.first_time_seen():
            log(f"{stop.reason}: requesting a checkpoint from the ranks, at most {limits.checkpoint_seconds:.0f} s")
        if stop.requested:
            ranks.ask_to_stop(process.pid, stop.reason or "")
        killed = _overdue(run_dir, stop, limits) or ranks.hung(limits)
        if killed is None and (why := withdrawn()):
            killed = withdrawal(why)
        if killed is not None:
            log(f"{killed.message}; killing the ranks")
            if killed.reason is Reason.NoProgress:
                dump_stacks(process.pid)
            break
        with suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
    children.end_all()
    process.wait()
    children.reap([])
    return killed


def withdrawal(why: str) -> TerminationMessage:
    """Of a run that other nodes do not run any more."""
    return say(Reason.PeerLost, f"the run was withdrawn: {why}", time=now())


def _overdue(run_dir: RunDir, stop: Stop, limits: Limits) -> TerminationMessage | None:
    """Asked to stop and still here: killed at once if wanted or if nothing runs yet, else when the grace is over."""
    if not stop.requested:
        return None
    if stop.at_once:
        return say(Reason.Interrupted, "stopped immediately, without a checkpoint", time=now())
    if not run_dir.heartbeats():
        return say(Reason.Interrupted, f"stopped by {stop.reason} before the ranks started", time=now())
    if stop.seconds < limits.checkpoint_seconds:
        return None
    message = f"the ranks did not exit within {limits.checkpoint_seconds:.0f} s of {stop.reason}"
    hint = "The run continues from its last checkpoint; raise pod.terminationGracePeriod if checkpoints take longer."
    return say(Reason.Interrupted, message, hint=hint, time=now())


def _hung(beats: Mapping[int, Heartbeat], limits: Limits, at: float) -> TerminationMessage | None:
    """Only training has steps to count: loading and evaluating take as long as they take."""
    training = {rank: beat for rank, beat in beats.items() if beat.phase == "training"}
    silent = {rank: beat for rank, beat in training.items() if at - beat.time > limits.stall_seconds}
    if not silent:
        return None
    rank, beat = min(silent.items(), key=lambda item: item[1].time)
    minutes = (at - beat.time) / 60
    message = f"no step for {minutes:.0f} minutes; rank {rank} stopped first, after step {beat.step}"
    hint = "The stack traces of all ranks are in their logs; look for a rank that is not in a collective."
    return say(Reason.NoProgress, message, hint=hint, rank=rank, time=now()).model_copy(update={"step": beat.step})


def dump_stacks(launcher: int, *, patience: float = 5.0) -> None:
    """SIGABRT to every rank: with PYTHONFAULTHANDLER set, each writes the stacks of its threads and ends."""
    with suppress(psutil.NoSuchProcess):
        ranks = psutil.Process(launcher).children()
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.send_signal(signal.SIGABRT)
        psutil.wait_procs(ranks, timeout=patience)
