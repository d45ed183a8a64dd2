"""The agent around a real torchrun with small programs as ranks: every ending, told with its rank, class and code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from finetune_api import names
from finetune_api.data import Data, TrainSource
from finetune_api.failures import ExitCode, Reason, TerminationMessage
from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.spec import FineTuneJobSpec, ModelSource, Output
from finetune_trainer.agent.local import free_port
from finetune_trainer.rundir import RunDir

pytestmark = pytest.mark.timeout(400)


@dataclass(frozen=True, kw_only=True)
class Node:
    """One agent process."""

    process: psutil.Popen
    run_dir: RunDir
    log: Path

    def words(self) -> TerminationMessage:
        return TerminationMessage.model_validate_json((self.run_dir.path / "termination-log").read_bytes())

    def end(self, *, seconds: float = 180) -> int:
        return int(self.process.wait(seconds))

    def until_ranks_run(self, count: int) -> None:
        deadline = time.monotonic() + 180
        while len(self.run_dir.heartbeats()) < count:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def until_log_says(self, words: str) -> None:
        deadline = time.monotonic() + 180
        while words not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def ranks(self) -> dict[int, psutil.Process]:
        """By RANK, the processes that run the program."""
        found = {}
        for process in self.process.children(recursive=True):
            with suppress(psutil.Error):  # it ended meanwhile
                if "RANK" in (environment := process.environ()) and "rank_programs" in process.cmdline():
                    found[int(environment["RANK"])] = process
        return found


@contextmanager
def gang(
    folder: Path, behaviours: dict[int, str], *, nodes: int = 1, ranks: int = 2, grace: int = 20
) -> Iterator[list[Node]]:
    """Agents of one attempt; none of them outlives the block."""
    plan = _plan(folder, nodes=nodes, ranks=ranks, grace=grace)
    folder.mkdir(parents=True, exist_ok=True)
    plan_file = folder / "plan.json"
    plan_file.write_text(json.dumps(plan.to_json()))
    started = []
    try:
        for node in range(nodes):
            started.append(_agent(folder / f"node-{node}", node, plan_file, behaviours))
        yield started
    finally:
        for node in started:
            if node.process.poll() is None:
                node.process.send_signal(signal.SIGQUIT)
                node.process.wait(120)


def _plan(folder: Path, *, nodes: int, ranks: int, grace: int) -> RunPlan:
    spec = FineTuneJobSpec(
        model=ModelSource(uri="file:///m"),
        data=Data(train=(TrainSource(uri="file:///d"),)),
        output=Output(uri=(folder / "out").as_uri()),
    )
    return RunPlan(
        job=JobIdentity(namespace="default", name="gang", uid="u"),
        nodes=nodes,
        processes_per_node=ranks,
        master_port=free_port(),
        grace_seconds=grace,
        spec=spec,
    )


def _agent(folder: Path, node: int, plan: Path, behaviours: dict[int, str]) -> Node:
    folder.mkdir()
    environment = os.environ | {f"BEHAVIOUR_{rank}": name for rank, name in behaviours.items()}
    environment |= {
        "PYTHONPATH": str(Path(__file__).parent),
        "OMP_NUM_THREADS": "1",
        names.ENV_NODE_RANK: str(node),
        names.ENV_TERMINATION_LOG: str(folder / "termination-log"),
    }
    command = [
        sys.executable,
        "-m",
        "finetune_trainer.cli.main",
        "agent",
        "--plan",
        str(plan),
        "--run-dir",
        str(folder),
    ]
    command += ["--listen", "none", "--no-preflight", "--program", "rank_programs", "--local"]
    with (folder / "agent.log").open("wb") as log:
        process = psutil.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    return Node(process=process, run_dir=RunDir(folder), log=folder / "agent.log")


def test_success(tmp_path: Path) -> None:
    with gang(tmp_path, {}) as (node,):
        assert node.end() == ExitCode.OK
    assert node.words().message == "trained"
    assert "rank 0: rank 0 speaks" in node.log.read_text()
    assert "rank 1 speaks" not in node.log.read_text(), "only global rank 0 is shown"
    assert (node.run_dir.path / "logs" / "1.out").read_text() == "rank 1 speaks\n"


@pytest.mark.parametrize(
    ("behaviour", "reason", "code", "message"),
    [
        ("raise_an_exception", Reason.UnexpectedError, ExitCode.INTERNAL, "the loss went for a walk"),
        ("raise_recorded", Reason.UnexpectedError, ExitCode.INTERNAL, "written by torchelastic"),
        ("say_data_is_bad", Reason.DataUnreadable, ExitCode.DATA, "row 7 is no JSON"),
        ("kill_oneself", Reason.PodFailed, ExitCode.UNAVAILABLE, "rank 1 was killed (SIGKILL)"),
    ],
)
def test_a_rank_that_fails_is_named(tmp_path: Path, behaviour: str, reason: Reason, code: int, message: str) -> None:
    with gang(tmp_path, {0: "train_until_stopped", 1: behaviour}) as (node,):
        assert node.end() == code
    words = node.words()
    assert (words.reason, words.rank, words.exit_code) == (reason, 1, code)
    assert message in words.message
    kept = (tmp_path / "out" / ".finetune" / "u" / "attempts" / "1" / "node-0.log").read_text()
    assert "==> rank 1, output <==\nrank 1 speaks" in kept
    assert f"{reason}: {words.message[:40]}" in kept, "the agent's own words are in it"


def test_two_nodes_meet_and_the_victim_waits_for_the_culprit_to_speak(tmp_path: Path) -> None:
    with gang(tmp_path, {0: "lose_a_peer", 1: "kill_oneself"}, nodes=2, ranks=1) as (victim, culprit):
        assert culprit.end() == ExitCode.UNAVAILABLE
        assert victim.process.poll() is None, "the victim must not be the first to end"
        assert victim.end() == ExitCode.PEER_LOST
    assert culprit.words().rank == 1
    assert victim.words().reason is Reason.PeerLost


def test_sigterm_lets_the_ranks_write_their_checkpoint(tmp_path: Path) -> None:
    with gang(tmp_path, {0: "train_until_stopped", 1: "train_until_stopped"}) as (node,):
        node.until_ranks_run(2)
        node.process.send_signal(signal.SIGTERM)
        assert node.end() == ExitCode.INTERRUPTED
    assert node.words().message == "checkpoint of step 1 written"


def test_ranks_that_do_not_stop_in_time_are_killed_within_the_grace_period(tmp_path: Path) -> None:
    with gang(tmp_path, {0: "never_stop", 1: "never_stop"}, grace=3) as (node,):
        node.until_ranks_run(2)
        ranks = node.ranks()
        assert len(ranks) == 2
        node.process.send_signal(signal.SIGTERM)
        assert node.end() == ExitCode.INTERRUPTED
    assert "did not exit within 2 s" in node.words().message
    assert not any(rank.is_running() for rank in ranks.values())


def test_a_second_interrupt_kills(tmp_path: Path) -> None:
    with gang(tmp_path, {0: "never_stop", 1: "never_stop"}, grace=600) as (node,):
        node.until_ranks_run(2)
        node.process.send_signal(signal.SIGINT)
        node.until_log_says("SIGINT: requesting")
        node.process.send_signal(signal.SIGINT)
        assert node.end() == ExitCode.INTERRUPTED
    assert "immediately" in node.words().message


def test_a_torchrun_that_is_killed_leaves_no_rank_behind(tmp_path: Path) -> None:
    with gang(tmp_path, {0: "never_stop", 1: "never_stop"}) as (node,):
        node.until_ranks_run(2)
        ranks = node.ranks()
        (torchrun,) = node.process.children()
        torchrun.kill()
        assert node.end() == ExitCode.UNAVAILABLE
    assert "torchrun was killed (SIGKILL)" in node.words().message
    assert not any(rank.is_running() for rank in ranks.values())


def test_an_agent_whose_master_never_comes_stops_when_asked(tmp_path: Path) -> None:
    with gang(tmp_path, {}, nodes=2) as (master, waiting):
        master.process.kill()
        waiting.until_log_says("waiting for the master")
        waiting.process.send_signal(signal.SIGTERM)
        assert waiting.end() == ExitCode.INTERRUPTED
    assert waiting.words().reason is Reason.Interrupted


def test_an_unreadable_plan_is_a_configuration_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "finetune_trainer.cli.main", "agent", "--plan", str(tmp_path / "none.json")]
    environment = os.environ | {names.ENV_TERMINATION_LOG: str(tmp_path / "words")}
    done = subprocess.run([*command, "--run-dir", str(tmp_path), "--listen", "none"], env=environment, check=False)
    assert done.returncode == ExitCode.CONFIG
    assert "none.json" in TerminationMessage.model_validate_json((tmp_path / "words").read_bytes()).message


def test_the_agent_is_small(tmp_path: Path) -> None:
    with gang(tmp_path, {0: "train_until_stopped", 1: "train_until_stopped"}) as (node,):
        node.until_ranks_run(2)
        resident = node.process.memory_info().rss
    assert resident <= 60 << 20, f"{resident >> 20} MiB"


def test_a_hang_is_told_with_the_rank_and_the_stacks_are_in_the_logs(tmp_path: Path) -> None:
    program = f"""
import json, subprocess, sys
from pathlib import Path
from finetune_trainer.agent import children
from finetune_trainer.agent.stopping import Stop
from finetune_trainer.agent.watch import Limits, Trainer, run_to_end
from finetune_trainer.rundir import RunDir

children.adopt_orphans()
folder = Path({str(tmp_path)!r})
command = [sys.executable, "-m", "finetune_trainer.agent.launch", "--plan", str(folder / "plan.json"), "--node", "0"]
process = subprocess.Popen([*command, "--run-dir", str(folder), "--program", "rank_programs"])
limits = Limits(grace_seconds=60, stall_seconds=2)
run_dir = RunDir(folder)
words = run_to_end(process, ranks=Trainer(run_dir), run_dir=run_dir, stop=Stop(), limits=limits, log=print)
(folder / "words").write_text(words.encode())
"""
    (tmp_path / "plan.json").write_text(json.dumps(_plan(tmp_path, nodes=1, ranks=2, grace=60).to_json()))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "PYTHONFAULTHANDLER": "1"}
    environment |= {"BEHAVIOUR_0": "never_stop", "BEHAVIOUR_1": "never_stop", "GLOO_SOCKET_IFNAME": "lo"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=300)
    words = TerminationMessage.model_validate_json((tmp_path / "words").read_bytes())
    assert (words.reason, words.exit_code, words.step) == (Reason.NoProgress, ExitCode.HANG, 1)
    assert words.rank in (0, 1)
    for rank in (0, 1):
        assert "in never_stop" in (tmp_path / "logs" / f"{rank}.err").read_text()


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(_plan(tmp_path, nodes=1, ranks=1, grace=60).to_json()))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [sys.executable, "-m", "finetune_trainer.cli.main", "agent", "--plan", str(tmp_path / "plan.json")]
        command += ["--run-dir", str(tmp_path), "--listen", f"127.0.0.1:{taken.getsockname()[1]}"]
        environment = os.environ | {names.ENV_TERMINATION_LOG: str(tmp_path / "words")}
        done = subprocess.run(command, env=environment, check=False, capture_output=True)
    assert done.returncode == ExitCode.UNAVAILABLE
    assert "Address already in use" in TerminationMessage.model_validate_json((tmp_path / "words").read_bytes()).message
