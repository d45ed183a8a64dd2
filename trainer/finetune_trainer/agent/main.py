"""`finetune agent`: runs one node of one attempt, from the plan to the termination message.

The story is `attend`. Every ending is a `TerminationMessage`: the operator (or `finetune run`) reads it, and its exit
code is the process's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from finetune_api import durations, names
from finetune_api.failures import Reason, TerminationMessage
from finetune_api.ladder import LadderStatus
from finetune_api.plan import RunPlan
from finetune_trainer.agent import children, script, waiting
from finetune_trainer.agent.callback import listening
from finetune_trainer.agent.keep import keep
from finetune_trainer.agent.launch import STARTUP_SECONDS
from finetune_trainer.agent.launched import FILE as LAUNCH_FILE
from finetune_trainer.agent.launched import Launch
from finetune_trainer.agent.stopping import Stop
from finetune_trainer.agent.verdict import Evidence, died, judge, say
from finetune_trainer.agent.watch import POLL_SECONDS, Limits, Ranks, Trainer, run_to_end, withdrawal
from finetune_trainer.planning import machine
from finetune_trainer.rundir import RunDir, now, write_atomic
from finetune_trainer.store.shared_leases import keeping

PREFLIGHT_FILE = "preflight.json"
FORECAST_FILE = "forecast.json"
RUNG_FILE = "rung.json"
TERMINATION_MESSAGE_FILE = "termination-message.json"
CULPRIT_SECONDS = 5.0
"""Seconds that a node that only lost a peer waits before it exits, so that the pod with the cause fails first."""


@dataclass(frozen=True, kw_only=True)
class AgentOptions:
    plan: Path
    run_dir: Path
    listen: tuple[str, int] | None
    preflight: bool = True
    program: str = "finetune_trainer.train.main"
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def node(self) -> int:
        return int(self.environ.get(names.ENV_NODE_RANK, "0"))


def run_agent(options: AgentOptions) -> int:
    """Runs the agent and returns its exit status."""
    stop = Stop()
    stop.install()
    children.adopt_orphans()
    try:
        plan = RunPlan.model_validate_json(options.plan.read_bytes())
    except (OSError, ValidationError) as error:
        words = say(Reason.InvalidSpec, f"cannot read the plan {options.plan}: {error}", time=now())
        return _speak(words, options)
    agent = Agent(options=options, plan=plan, stop=stop)
    with ExitStack() as stack:
        words = _whatever_happens(agent, stack)
        agent.log(_farewell(words), level="info" if words.failure_class is None else "error")
        agent.keep(words)
        status = _speak(words, options)
        agent.phase = "done" if status == 0 else "failed"
        if words.reason is Reason.PeerLost and not stop.requested:
            agent.pause(CULPRIT_SECONDS)
    return status


def _whatever_happens(agent: Agent, stack: ExitStack) -> TerminationMessage:
    """Runs the agent while serving /metrics and /progress. Its own errors become a termination message too."""
    try:
        agent.serve(stack)
        agent.share_models(stack)
        return agent.attend()
    except Exception as error:
        traceback.print_exc()
        children.end_all()
        message = f"the agent failed: {type(error).__name__}: {error}"
        reason = Reason.PodFailed if isinstance(error, OSError) else Reason.UnexpectedError
        return say(reason, message, time=now()).model_copy(update={"node": agent.options.node})


@dataclass(kw_only=True)
class Agent:
    options: AgentOptions
    plan: RunPlan
    stop: Stop
    phase: str = "preflight"
    said: list[str] = field(default_factory=list)
    ladder: LadderStatus | None = None
    rung: Agent | None = None
    """Of a ladder: the agent of the run that is under way."""
    withdrawn: Callable[[], str] = lambda: ""
    """Of such a run: why it is to end at once, as other nodes do not run it any more; empty while it may continue."""

    @property
    def run_dir(self) -> RunDir:
        return RunDir(self.options.run_dir)

    def serve(self, stack: ExitStack) -> None:
        """Serves HTTP until the stack unwinds. Raises OSError if the port is in use."""
        if self.options.listen is None:
            return
        from finetune_trainer.agent.serve import serving

        host, port = self.options.listen
        answers = serving(
            host, port, plan=self.plan, run_dir=self.run_dir, phase=lambda: (self.rung or self).phase,
            ladder=lambda: self.ladder,
        )  # fmt: skip
        self.log(f"listening on {host}:{stack.enter_context(answers)}")

    def share_models(self, stack: ExitStack) -> None:
        """Until the stack unwinds, what the processes of this node use of a shared cache stays there."""
        more = stack.enter_context(keeping(self.options.run_dir, self.options.environ))
        self.options = replace(self.options, environ={**self.options.environ, **more})

    def attend(self) -> TerminationMessage:
        """Runs the preflight, waits for the master, runs torchrun and evaluates the outcome."""
        node, plan = self.options.node, self.plan
        self._clear()
        self.log(f"node {node} of {plan.nodes}, attempt {plan.attempt}, {plan.processes_per_node} process(es)")
        leads = plan.spec.method.is_auto and node == 0
        if (self.options.preflight or leads) and (words := self._preflight()) is not None:
            return words
        if plan.spec.method.is_auto:
            return self._climb() if leads else self._follow()
        if node > 0 and (words := self._wait_for_master()) is not None:
            return words
        if plan.spec.command is not None:
            return self._run_script()
        words = self._run(Trainer(self.run_dir), phase="loading")
        return self._remedied(words) if plan.spec.guards.max_attempts else words

    def _remedied(self, words: TerminationMessage) -> TerminationMessage:
        """Trains again while a guard is violated, each run as an agent of its own in the same run directory."""
        from finetune_trainer.agent.remedies import remedied

        return remedied(self.plan, words, run=lambda plan: self._run_rung(plan, self.withdrawn), tell=self.log)

    def _climb(self) -> TerminationMessage:
        """Runs the rungs of a ladder, each as an agent of its own in the same run directory."""
        from finetune_trainer.agent.climb import climb
        from finetune_trainer.planning.forecast import Forecast

        foreseen = Forecast.of_json(json.loads((self.run_dir.path / FORECAST_FILE).read_bytes()))
        return climb(
            self.plan, foreseen=foreseen, run=self._run_rung, tell=self.log, show=self._show,
            stopped=lambda: self.stop.requested,
        )  # fmt: skip

    def _follow(self) -> TerminationMessage:
        """Runs what node 0 decides."""
        from finetune_trainer.agent.follow import Following
        from finetune_trainer.agent.turns import Turns

        self.phase = "waiting"
        following = Following(
            plan=self.plan, node=self.options.node, turns=Turns.of(self.plan), run=self._run_rung, tell=self.log,
            stopped=lambda: self._stopped("between two runs of the ladder") if self.stop.requested else None,
        )  # fmt: skip
        return following.to_the_end()

    def _run_rung(self, plan: RunPlan, withdrawn: Callable[[], str]) -> TerminationMessage:
        file = self.options.run_dir / RUNG_FILE
        write_atomic(file, plan.model_dump_json(by_alias=True, exclude_none=True))
        self.phase = "evaluating"  # the rungs, between two of them
        options = replace(self.options, plan=file)
        self.rung = replace(self, options=options, plan=plan, phase="preflight", withdrawn=withdrawn)
        words = self.rung.attend()
        self.rung = None
        if words.failure_class is None:
            self.run_dir.clear()  # its report is not the next run's
        return words

    def _show(self, ladder: LadderStatus) -> None:
        self.ladder = ladder

    def _preflight(self) -> TerminationMessage | None:
        self.phase = "preflight"
        files = ("--words", self.run_dir.path / PREFLIGHT_FILE, "--forecast", self.run_dir.path / FORECAST_FILE)
        process = self._start("finetune_trainer.agent.preflight", *map(str, files))
        while process.poll() is None:
            children.reap([process])
            if self.stop.requested or self.withdrawn():
                break
            time.sleep(POLL_SECONDS)
        if self.stop.requested or self.withdrawn():
            children.end_all()
            process.wait()
            return self._stopped("during the preflight")
        if process.returncode == 0:
            return None
        try:
            words = TerminationMessage.model_validate_json((self.run_dir.path / PREFLIGHT_FILE).read_bytes())
        except (OSError, ValidationError):
            words = died("the preflight", process.returncode, time=now(), oom_kills=machine.oom_kills())
        return words.model_copy(update={"node": self.options.node, "time": words.time or now()})

    def _wait_for_master(self) -> TerminationMessage | None:
        self.phase = "waiting"
        address, port = self.plan.master_address, self.plan.master_port
        self.log(f"waiting for the master at {address}:{port}")
        found = waiting.wait_for_master(
            address, port, limit_seconds=STARTUP_SECONDS, stopped=lambda: self.stop.requested or bool(self.withdrawn())
        )
        if found:
            return None
        if self.stop.requested or self.withdrawn():
            return self._stopped("while waiting for the master")
        message = f"no connection to the master {address}:{port} within {STARTUP_SECONDS // 60} minutes"
        return say(Reason.PeerLost, message, time=now()).model_copy(update={"node": self.options.node})

    def _run_script(self) -> TerminationMessage:
        """Runs a custom script as the ranks."""
        node = self.options.node
        place: AbstractContextManager[dict[str, str]] = nullcontext({})
        if node == 0:
            place = listening(self.plan, self.run_dir, stopping=lambda: self.stop.requested)
        with place as found:
            extra = script.environment(self.plan, node, self.options.environ) | found
            return self._run(script.Script(run_dir=self.run_dir), phase="training", extra=extra)

    def _run(self, ranks: Ranks, *, phase: str, extra: Mapping[str, str] | None = None) -> TerminationMessage:
        """Runs torchrun and returns the termination message."""
        self.phase = phase
        kills_before = machine.oom_kills()
        arguments = ("--node", str(self.options.node), "--program", self.options.program)
        process = self._start("finetune_trainer.agent.launch", *arguments, extra=extra)
        limits = Limits(
            grace_seconds=self.plan.grace_seconds, stall_seconds=durations.seconds(self.plan.spec.deadlines.stall)
        )
        killed = run_to_end(
            process, ranks=ranks, run_dir=self.run_dir, stop=self.stop, limits=limits, log=self.log,
            withdrawn=self.withdrawn,
        )  # fmt: skip
        launch, stopped = Launch.read(self.run_dir.path), self.stop.reason
        oom_kills = machine.oom_kills() - kills_before
        testimony = ranks.testimony(launch, stop_reason=stopped, oom_kills=oom_kills)
        return judge(
            Evidence(
                node=self.options.node,
                time=now(),
                exit_code=process.returncode,
                launch=launch,
                errors=testimony.errors,
                result=testimony.result,
                report=self.run_dir.report(),
                stop_reason=stopped,
                killed=killed,
                oom_kills=oom_kills,
            )
        )

    def _start(self, module: str, *arguments: str, extra: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Starts one of our Python modules in its own session, so that Ctrl-C in a terminal only reaches the agent."""
        command = [sys.executable, "-u", "-m", module, "--plan", str(self.options.plan)]
        command += ["--run-dir", str(self.options.run_dir), *arguments]
        return subprocess.Popen(command, env={**self._environment(), **(extra or {})}, start_new_session=True)

    def _environment(self) -> dict[str, str]:
        defaults = {
            "OMP_NUM_THREADS": str(max(1, machine.cpu_count() // self.plan.processes_per_node)),
            "PYTHONFAULTHANDLER": "1",
            names.ENV_CACHE: names.CACHE_DIR,
            names.ENV_NODE_RANK: str(self.options.node),
        }
        if waiting.is_loopback(self.plan.master_address):
            defaults["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
        return {**defaults, **self.options.environ}

    def _clear(self) -> None:
        self.run_dir.path.mkdir(parents=True, exist_ok=True)
        self.run_dir.clear()
        for name in (PREFLIGHT_FILE, FORECAST_FILE, LAUNCH_FILE, TERMINATION_MESSAGE_FILE):
            (self.run_dir.path / name).unlink(missing_ok=True)
        for log in (self.run_dir.path / "logs").glob("*"):
            log.unlink()

    def _stopped(self, when: str) -> TerminationMessage:
        words = say(Reason.Interrupted, f"stopped by {self.stop.reason} {when}", time=now())
        if not self.stop.requested:
            words = withdrawal(self.withdrawn())
        return words.model_copy(update={"node": self.options.node})

    def pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.stop.requested and time.monotonic() < end:
            time.sleep(POLL_SECONDS)

    def log(self, line: str, *, level: str = "info") -> None:
        self.said.append(f"{now()} {line}")
        self.plan.log(self.options.environ).write(line, prefix=self.plan.job.name, level=level)

    def keep(self, words: TerminationMessage) -> None:
        """Stores the end of the log for the time after the pod is gone."""
        folder, environ = self.options.run_dir, self.options.environ
        if line := keep(self.plan, words, run_dir=folder, said=self.said, environ=environ):
            self.log(line)


def _speak(words: TerminationMessage, options: AgentOptions) -> int:
    """Writes the termination message, also into the run directory, and returns the exit status for it."""
    text = words.encode()
    write_atomic(options.run_dir / TERMINATION_MESSAGE_FILE, text)
    target = Path(options.environ.get(names.ENV_TERMINATION_LOG, names.TERMINATION_LOG))
    if target.exists() or names.ENV_TERMINATION_LOG in options.environ:
        target.write_text(text)  # in place: the kubelet's file is a mount and cannot be renamed over
    return words.exit_code


def _farewell(words: TerminationMessage) -> str:
    if words.failure_class is None:
        if words.next_rung is not None:
            return words.message
        return "done" if words.artifact is None else f"done: {words.artifact.uri}"
    return f"{words.failure_class}/{words.reason}: {words.message} → {words.hint}"
