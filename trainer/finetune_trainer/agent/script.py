"""`spec.command`: a custom script as every rank, with the same agent and the same torchrun.

This module contains what differs from the built-in trainer: how a script starts, how it is asked to stop (SIGTERM to
each rank), when it is considered hung, and how the failure of a rank is classified from its traceback.

A script is hung if it has reported a step (see callback), and then neither reports nor prints anything for
`deadlines.stall`. A long evaluation keeps printing, and a script that never reports is never considered hung.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from finetune_api import names
from finetune_api.failures import CLASSES, FinetuneError, Reason, TerminationMessage, hint_of
from finetune_api.plan import RunPlan
from finetune_api.pod import EnvVar
from finetune_trainer.agent.launched import Launch, RankEnd
from finetune_trainer.agent.verdict import died, say
from finetune_trainer.agent.watch import Limits, Testimony
from finetune_trainer.error_patterns import LOST_PEER, NO_MEMORY
from finetune_trainer.rundir import RunDir, TrainerReport, now

_TELLING_CODES = frozenset(traits.exit_code for traits in CLASSES.values() if traits.by_script)
"""Exit codes by which a script reports a failure class, as in the FineTuneJob reference."""

_PREFIX = re.compile(r"^\[rank\d+\]:\s?", re.MULTILINE)
"""Prefix that torch adds to each line of a traceback."""

_TRACEBACK = "Traceback (most recent call last):\n"


def program(command: Sequence[str]) -> list[str]:
    """Returns the command for torchrun. Python files are started with Python, as torchrun does."""
    return [sys.executable, *command] if command[0].endswith(".py") else list(command)


def search_path(environ: Mapping[str, str]) -> str:
    """PATH with our own environment first, so that `python` finds the packages installed there."""
    return os.pathsep.join(filter(None, (str(Path(sys.executable).parent), environ.get("PATH", os.defpath))))


def check(command: Sequence[str], environ: Mapping[str, str]) -> None:
    """Raises CommandMissing if the program, or the Python file, does not exist."""
    first, *rest = program(command)
    hint = "Check spec.command, the image, and pod.volumes if the script is mounted."
    if shutil.which(first, path=search_path(environ)) is None:
        raise FinetuneError(Reason.CommandMissing, f"program {first} not found", hint)
    if Path(first).name.startswith("python") and rest:
        file = next((word for word in rest if not word.startswith("-")), "")
        if file.endswith(".py") and not Path(file).is_file():
            raise FinetuneError(Reason.CommandMissing, f"file {file} not found in {Path.cwd()}", hint)


def environment(plan: RunPlan, node: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Returns environment variables for a script, in addition to torchrun's RANK, WORLD_SIZE, MASTER_ADDR and so on."""
    loopback = ",".join(filter(None, (environ.get("no_proxy", environ.get("NO_PROXY", "")), "127.0.0.1,localhost")))
    return {
        "PATH": search_path(environ),
        "PYTHONUNBUFFERED": "1",
        "no_proxy": loopback,
        "NO_PROXY": loopback,
        "PET_NNODES": str(plan.nodes),
        "PET_NPROC_PER_NODE": str(plan.processes_per_node),
        "PET_NODE_RANK": str(node),
        "PET_MASTER_ADDR": plan.master_address,
        "PET_MASTER_PORT": str(plan.master_port),
        names.ENV_JOB_NAME: plan.job.name,
        names.ENV_ATTEMPT: str(plan.attempt),
    }


def given(variables: Sequence[EnvVar], environ: Mapping[str, str]) -> dict[str, str]:
    """Returns `pod.env` for a local run. Raises CredentialsMissing if a variable from a Secret is not set."""
    for variable in variables:
        if variable.secret_key_ref is not None and variable.name not in environ:
            message = f"{variable.name}, from the Secret {variable.secret_key_ref.name}, is not set"
            raise FinetuneError(Reason.CredentialsMissing, message, f"Set {variable.name} in this shell.")
    return {variable.name: variable.value for variable in variables if variable.value is not None}


@dataclass(kw_only=True)
class Script:
    """The ranks of this node, for watch.run_to_end."""

    run_dir: RunDir
    _asked: set[int] = field(default_factory=set)

    def ask_to_stop(self, launcher: int, reason: str) -> None:  # noqa: ARG002
        """SIGTERM, once to each rank."""
        with suppress(psutil.NoSuchProcess):
            for rank in psutil.Process(launcher).children():
                if rank.pid not in self._asked:
                    self._asked.add(rank.pid)
                    with suppress(psutil.NoSuchProcess):
                        rank.send_signal(signal.SIGTERM)

    def hung(self, limits: Limits) -> TerminationMessage | None:
        return hung(
            self.run_dir.report(), printed=last_print(self.run_dir.path / "logs"), limits=limits, at=time.time()
        )

    def testimony(self, launch: Launch | None, *, stop_reason: str | None, oom_kills: int) -> Testimony:
        errors = said(launch, stop_reason=stop_reason, oom_kills=oom_kills)
        return Testimony(errors, result(stop_reason, time=now()))


def last_print(logs: Path) -> float:
    """Unix seconds of the latest output of any rank; 0 before the first."""
    return max((path.stat().st_mtime for path in logs.glob("[0-9]*.*")), default=0.0)


def hung(report: TrainerReport | None, *, printed: float, limits: Limits, at: float) -> TerminationMessage | None:
    if report is None or report.phase != "training" or report.last_step_time is None:
        return None
    silence = at - max(report.last_step_time, printed)
    if silence <= limits.stall_seconds:
        return None
    step = report.progress.step
    message = f"no report and no output for {silence / 60:.0f} minutes, after step {step}"
    hint = (
        "The stacks of all ranks are in their logs; raise deadlines.stall if the script is silent for longer periods."
    )
    return say(Reason.NoProgress, message, hint=hint, time=now()).model_copy(update={"step": step})


def result(stop_reason: str | None, *, time: str) -> TerminationMessage:
    """Returns the result of a node whose ranks all exited with 0. If it was asked to stop, it has not finished."""
    if stop_reason is None:
        return TerminationMessage(time=time)
    return say(Reason.Interrupted, f"stopped after a request: {stop_reason}", time=time)


def said(launch: Launch | None, *, stop_reason: str | None, oom_kills: int) -> dict[int, TerminationMessage]:
    """Returns the classified failure of each rank, by global rank."""
    ends = launch.ranks if launch else ()
    if stop_reason is not None:
        message = f"stopped after a request: {stop_reason}"
        return {end.rank: say(Reason.Interrupted, message, time=end.time) for end in ends}
    return {end.rank: _words(end, oom_kills) for end in ends}


def _words(end: RankEnd, oom_kills: int) -> TerminationMessage:
    who, why = f"rank {end.rank}", end.error.strip() or last_line(end.log_tail)
    if end.exit_code < 0 or end.exit_code in _TELLING_CODES:
        words = died(who, end.exit_code, time=end.time, oom_kills=oom_kills, tail=why)
        if words.reason is Reason.UnexpectedError:
            return words.model_copy(update={"reason": Reason.ScriptFailed, "hint": hint_of(Reason.ScriptFailed)})
        return words
    message = f"{who} exited with status {end.exit_code}" + (f": {why}" if why else "")
    return say(_reason(why), message, time=end.time)


def _reason(why: str) -> Reason:
    lowered = why.lower()
    if any(sign in lowered for sign in ("outofmemoryerror", "memoryerror", *NO_MEMORY)):
        return Reason.OutOfMemory
    if any(sign in lowered for sign in LOST_PEER):
        return Reason.PeerLost
    return Reason.ScriptFailed


def last_line(tail: str) -> str:
    """Returns the exception of the last traceback; without a traceback, the last line that is not empty."""
    text = _PREFIX.sub("", tail)
    _, found, trace = text.rpartition(_TRACEBACK)
    if found:
        raised = next((line for line in trace.splitlines() if line.strip() and not line[0].isspace()), "")
        if raised:
            return raised.strip()
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
