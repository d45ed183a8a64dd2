"""`finetune agent`: one node's part of one attempt, from the plan to the last words.

The story is `attend`. Every ending is a `LastWords`: it goes into the termination message, which the operator (or
`finetune run`) reads, and its exit code is the process's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from finetune_api import durations, names
from finetune_api.failures import LastWords, Reason
from finetune_api.plan import RunPlan
from finetune_trainer.agent import children, script, waiting
from finetune_trainer.agent.callback import listening
from finetune_trainer.agent.keep import keep
from finetune_trainer.agent.launch import STARTUP_SECONDS
from finetune_trainer.agent.launched import FILE as LAUNCH_FILE
from finetune_trainer.agent.launched import Launch
from finetune_trainer.agent.stopping import Stop
from finetune_trainer.agent.verdict import Evidence, died, judge, say
from finetune_trainer.agent.watch import POLL_SECONDS, Limits, Ranks, Trainer, run_to_end
from finetune_trainer.planning import machine
from finetune_trainer.rundir import RunDir, now, write_atomic

PREFLIGHT_FILE = "preflight.json"
LAST_WORDS_FILE = "last-words.json"
CULPRIT_SECONDS = 5.0
"""A node that only lost a peer waits so long before it ends, so that the culprit's pod is seen to fail first."""


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
    """The whole life of the process; its exit status."""
    stop = Stop()
    stop.install()
    children.adopt_orphans()
    try:
        plan = RunPlan.model_validate_json(options.plan.read_bytes())
    except (OSError, ValidationError) as error:
        words = say(Reason.InvalidSpec, f"the plan {options.plan} cannot be read: {error}", time=now())
        return _speak(words, options)
    agent = Agent(options=options, plan=plan, stop=stop)
    with ExitStack() as stack:
        words = _whatever_happens(agent, stack)
        agent.log(_farewell(words))
        agent.keep(words)
        status = _speak(words, options)
        agent.phase = "done" if status == 0 else "failed"
        if words.reason is Reason.PeerLost and not stop.requested:
            agent.pause(CULPRIT_SECONDS)
    return status


def _whatever_happens(agent: Agent, stack: ExitStack) -> LastWords:
    """The agent's work, while /metrics and /progress answer. Its own errors become last words too."""
    try:
        agent.serve(stack)
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

    @property
    def run_dir(self) -> RunDir:
        return RunDir(self.options.run_dir)

    def serve(self, stack: ExitStack) -> None:
        """Answer until the stack unwinds; OSError where the port is taken."""
        if self.options.listen is None:
            return
        from finetune_trainer.agent.serve import serving

        host, port = self.options.listen
        answers = serving(host, port, plan=self.plan, run_dir=self.run_dir, phase=lambda: self.phase)
        self.log(f"listening on {host}:{stack.enter_context(answers)}")

    def attend(self) -> LastWords:
        """Preflight, wait for the master, torchrun, verdict."""
        node, plan = self.options.node, self.plan
        self._clear()
        self.log(f"node {node} of {plan.nodes}, attempt {plan.attempt}, {plan.processes_per_node} process(es)")
        if self.options.preflight and (words := self._preflight()) is not None:
            return words
        if node > 0 and (words := self._wait_for_master()) is not None:
            return words
        if plan.spec.command is not None:
            return self._run_script()
        return self._run(Trainer(self.run_dir), phase="loading")

    def _preflight(self) -> LastWords | None:
        self.phase = "preflight"
        process = self._start("finetune_trainer.agent.preflight", "--words", str(self.run_dir.path / PREFLIGHT_FILE))
        while process.poll() is None:
            children.reap([process])
            if self.stop.requested:
                break
            time.sleep(POLL_SECONDS)
        if self.stop.requested:
            children.end_all()
            process.wait()
            return self._stopped("during the preflight")
        if process.returncode == 0:
            return None
        try:
            words = LastWords.model_validate_json((self.run_dir.path / PREFLIGHT_FILE).read_bytes())
        except (OSError, ValidationError):
            words = died("the preflight", process.returncode, time=now(), oom_kills=machine.oom_kills())
        return words.model_copy(update={"node": self.options.node, "time": words.time or now()})

    def _wait_for_master(self) -> LastWords | None:
        self.phase = "waiting"
        address, port = self.plan.master_address, self.plan.master_port
        self.log(f"waiting for the master at {address}:{port}")
        found = waiting.wait_for_master(
            address, port, limit_seconds=STARTUP_SECONDS, stopped=lambda: self.stop.requested
        )
        if found:
            return None
        if self.stop.requested:
            return self._stopped("while it waited for the master")
        message = f"the master {address}:{port} did not answer for {STARTUP_SECONDS // 60} minutes"
        return say(Reason.PeerLost, message, time=now()).model_copy(update={"node": self.options.node})

    def _run_script(self) -> LastWords:
        """As ranks, a program of the user's own."""
        node = self.options.node
        place: AbstractContextManager[dict[str, str]] = nullcontext({})
        if node == 0:
            place = listening(self.plan, self.run_dir, stopping=lambda: self.stop.requested)
        with place as found:
            extra = script.environment(self.plan, node, self.options.environ) | found
            return self._run(script.Script(run_dir=self.run_dir), phase="training", extra=extra)

    def _run(self, ranks: Ranks, *, phase: str, extra: Mapping[str, str] | None = None) -> LastWords:
        """torchrun, from its start to the verdict."""
        self.phase = phase
        kills_before = machine.oom_kills()
        arguments = ("--node", str(self.options.node), "--program", self.options.program)
        process = self._start("finetune_trainer.agent.launch", *arguments, extra=extra)
        limits = Limits(
            grace_seconds=self.plan.grace_seconds, stall_seconds=durations.seconds(self.plan.spec.deadlines.stall)
        )
        killed = run_to_end(process, ranks=ranks, run_dir=self.run_dir, stop=self.stop, limits=limits, log=self.log)
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
        """A Python program of ours, in a session of its own: a terminal's Ctrl-C must reach the agent alone."""
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
        for name in (PREFLIGHT_FILE, LAUNCH_FILE, LAST_WORDS_FILE):
            (self.run_dir.path / name).unlink(missing_ok=True)
        for log in (self.run_dir.path / "logs").glob("*"):
            log.unlink()

    def _stopped(self, when: str) -> LastWords:
        words = say(Reason.Interrupted, f"stopped by {self.stop.reason} {when}", time=now())
        return words.model_copy(update={"node": self.options.node})

    def pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.stop.requested and time.monotonic() < end:
            time.sleep(POLL_SECONDS)

    def log(self, line: str) -> None:
        self.said.append(f"{now()} {line}")
        print(f"{self.plan.job.name}: {line}", file=sys.stderr, flush=True)

    def keep(self, words: LastWords) -> None:
        """The log's end, for when the pod is gone."""
        folder, environ = self.options.run_dir, self.options.environ
        if line := keep(self.plan, words, run_dir=folder, said=self.said, environ=environ):
            self.log(line)


def _speak(words: LastWords, options: AgentOptions) -> int:
    """Last words into the termination message and beside the run's other files; the exit status that goes with them."""
    text = words.encode()
    write_atomic(options.run_dir / LAST_WORDS_FILE, text)
    target = Path(options.environ.get(names.ENV_TERMINATION_LOG, names.TERMINATION_LOG))
    if target.exists() or names.ENV_TERMINATION_LOG in options.environ:
        target.write_text(text)  # in place: the kubelet's file is a mount and cannot be renamed over
    return words.exit_code


def _farewell(words: LastWords) -> str:
    if words.failure_class is None:
        return "done" if words.artifact is None else f"done: {words.artifact.uri}"
    return f"{words.failure_class}/{words.reason}: {words.message} → {words.hint}"
