"""Runs a FineTuneJob on one machine: every node is an agent on loopback, with the same plan as a pod.

`finetune run` is to this what a terminal is to the operator: see cli/run.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from finetune_api import names
from finetune_api.failures import CLASSES, TerminationMessage
from finetune_api.job import FineTuneJob
from finetune_api.plan import JobIdentity, Publishes, RunPlan, Trial
from finetune_trainer.agent import script
from finetune_trainer.agent.home import Home
from finetune_trainer.agent.main import TERMINATION_MESSAGE_FILE
from finetune_trainer.agent.verdict import died
from finetune_trainer.data.read import ENDINGS
from finetune_trainer.planning import machine
from finetune_trainer.rundir import RunDir, now, write_atomic
from finetune_trainer.store.sources import local_paths

TRAINED = ("model", "data", "method", "training", "command")
"""The parts of a spec that make a run what it is; the others may change and the run still resumes."""

LOST_PEER_SECONDS = 30.0
"""After the first agent has failed, the others get so long to notice by themselves."""


def run_uid(job: FineTuneJob) -> str:
    """Names a run by what it trains and where to: the parts of the spec that matter, and the content of local files."""
    spec = job.spec.to_json()
    matters: dict[str, object] = {part: spec[part] for part in TRAINED if part in spec}
    if spec.get("evaluation"):
        matters["evaluation"] = spec["evaluation"]
    matters["output"] = job.spec.given_output.uri if job.spec.given_output else None
    if job.spec.given_output and job.spec.given_output.merged:  # a run that is done has to be done again for it
        matters["merged"] = True
    if job.spec.command is not None:
        matters["env"] = [variable.to_json() for variable in job.spec.pod.env]
    digest = hashlib.sha256(json.dumps(matters, sort_keys=True).encode())
    for path in _local_files(job):
        with suppress(OSError), path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"local-{digest.hexdigest()[:20]}"


def _local_files(job: FineTuneJob) -> list[Path]:
    if job.spec.command is not None:
        return [path for word in job.spec.command if (path := Path(word)).is_file()]
    data = job.spec.data
    sources = [s.uri for s in data.train] + [s.uri for s in data.slices]
    sources += [s.uri for s in (data.test, data.general, data.validation) if s is not None and s.uri is not None]
    sources += [uri] if (uri := job.spec.replay_uri) else []
    return [path for uri in sources if uri.startswith("file:///") for path in local_paths(uri, endings=ENDINGS)]


def local_plan(
    job: FineTuneJob,
    *,
    uid: str,
    attempt: int,
    rung: str | None = None,
    publishes: Publishes | None = None,
    trial: Trial | None = None,
) -> RunPlan:
    """The attempt's plan, on a loopback port that is free now."""
    return RunPlan(
        job=JobIdentity(namespace=job.metadata.namespace, name=job.metadata.name, uid=uid),
        attempt=attempt,
        nodes=job.spec.max_nodes,
        processes_per_node=job.spec.processes,
        master_address="127.0.0.1",
        master_port=free_port(),
        micro_batch_tokens=job.status.micro_batch_tokens,
        skipped_step=job.status.skipped_step,
        rung=rung,
        publishes=publishes,
        trial=trial,
        spec=job.spec,
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass(kw_only=True)
class Gang:
    """The agents of one attempt. Call `start`, then `poll` until it returns a termination message."""

    plan: RunPlan
    home: Home
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    agents: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _failed_at: float | None = None

    def run_dir(self, node: int) -> RunDir:
        return RunDir(self.home.node(self.plan.job.name, node))

    def start(self) -> None:
        for node in range(self.plan.nodes):
            self.agents.append(self._start_agent(node))

    def _start_agent(self, node: int) -> subprocess.Popen[bytes]:
        folder = self.run_dir(node).path
        folder.mkdir(parents=True, exist_ok=True)
        self.run_dir(node).clear()
        (folder / TERMINATION_MESSAGE_FILE).unlink(missing_ok=True)
        plan_file = folder / "plan.json"
        write_atomic(plan_file, json.dumps(self.plan.to_json()))
        command = [sys.executable, "-m", "finetune_trainer.cli.main", "agent", "--plan", str(plan_file)]
        command += ["--run-dir", str(folder), "--listen", "none", "--local"]
        if node > 0:
            command.append("--no-preflight")  # node 0 looks for all of us, and its port opens after that
        log = self.home.log(self.plan.job.name, node=node, attempt=self.plan.attempt)
        with log.open("wb") as file:
            return subprocess.Popen(
                command, env=self._environment(node), stdout=file, stderr=file, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    def _environment(self, node: int) -> dict[str, str]:
        defaults = {
            "OMP_NUM_THREADS": str(max(1, machine.cpu_count() // self.plan.world_size)),
            names.ENV_CACHE: str(self.home.path.absolute() / "cache"),
        }
        spec = self.plan.spec
        theirs = script.given(spec.pod.env, self.environ) if spec.command else {}
        set_here = theirs | {
            names.ENV_NODE_RANK: str(node),
            names.ENV_TERMINATION_LOG: str(self.run_dir(node).path / "termination-log"),
        }
        return {**defaults, **self.environ, **set_here}

    def poll(self) -> TerminationMessage | None:
        """Returns None while agents run, then one termination message for all. If one fails, the others are stopped."""
        running = [agent for agent in self.agents if agent.poll() is None]
        failed = any(agent.returncode for agent in self.agents)
        if failed and self._failed_at is None:
            self._failed_at = time.monotonic()
            self._end_those_that_wait()
        if failed and running and time.monotonic() - (self._failed_at or 0.0) > LOST_PEER_SECONDS:
            self.kill()
        return None if running else culprit([self._words(node) for node in range(self.plan.nodes)])

    def _end_those_that_wait(self) -> None:
        """Agents without ranks have nothing to notice a lost peer by, and nothing to save."""
        for node, agent in enumerate(self.agents):
            if agent.poll() is None and not self.run_dir(node).heartbeats():
                agent.terminate()

    def stop(self) -> None:
        """Ask for a checkpoint and an end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End at once; the agents kill what is below them."""
        self._signal(signal.SIGQUIT)

    def _signal(self, number: int) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.send_signal(number)

    def _words(self, node: int) -> TerminationMessage:
        code = self.agents[node].returncode
        try:
            words = TerminationMessage.model_validate_json(
                (self.run_dir(node).path / TERMINATION_MESSAGE_FILE).read_bytes()
            ).whole()
        except (OSError, ValueError):
            words = died(f"the agent of node {node}", code, time=now(), oom_kills=0)
        return words.model_copy(update={"node": node})


def culprit(words: Sequence[TerminationMessage]) -> TerminationMessage:
    """Selects one message for all nodes: the earliest root cause, otherwise node 0's success."""
    failures = [(CLASSES[w.failure_class].echo, w.time, number) for number, w in enumerate(words) if w.failure_class]
    return words[min(failures)[2] if failures else 0]
