"""A script of the user's own under the agent: how it starts, when it hangs, and what is made of the way it ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.pod import EnvVar, SecretKeyRef
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FailureClass, Progress
from finetune_trainer.agent import script
from finetune_trainer.agent.launched import Launch, RankEnd
from finetune_trainer.agent.verdict import Evidence, judge
from finetune_trainer.agent.watch import Limits
from finetune_trainer.rundir import TrainerReport

PLAN = RunPlan(
    job=JobIdentity(namespace="team", name="mine", uid="u"), attempt=2, nodes=2, processes_per_node=4,
    master_address="mine-2-0.mine", spec=FineTuneJobSpec(command=("python", "train.py")),
)  # fmt: skip

TRACEBACK = """loading
Traceback (most recent call last):
  File "/opt/train.py", line 9, in <module>
    main()
    ^^^^^^
RuntimeError: the loss went for a walk
[W1124 00:00:00.000000000 ProcessGroupGloo.cpp:1] Warning: destroy_process_group() was not called
"""
PREFIXED = "".join(f"[rank3]: {line}\n" for line in TRACEBACK.splitlines()[1:6]) + "[W1124 a warning at exit\n"
CHAINED = TRACEBACK + "\nDuring handling of the above exception, another exception occurred:\n\n" + (
    "Traceback (most recent call last):\n  File \"a.py\", line 1, in f\nValueError: no such row: 7\nmore words\n"
)  # fmt: skip

LAST_LINES = [
    (TRACEBACK, "RuntimeError: the loss went for a walk"),
    (PREFIXED, "RuntimeError: the loss went for a walk"),
    (CHAINED, "ValueError: no such row: 7"),
    ("a shell said\nno such file\n\n", "no such file"),
    ("", ""),
]


@pytest.mark.parametrize(("tail", "expected"), LAST_LINES)
def test_what_was_raised_is_found_in_what_was_printed(tail: str, expected: str) -> None:
    assert script.last_line(tail) == expected


def ended(rank: int, code: int, *, at: int = 5, error: str = "", tail: str = "") -> RankEnd:
    return RankEnd(rank=rank, exit_code=code, time=f"2026-01-01T00:00:0{at}Z", error=error, log_tail=tail)


def raised(text: str) -> str:
    return f'Traceback (most recent call last):\n  File "a.py", line 1, in f\n{text}\n'


OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"
LOST = "RuntimeError: [gloo/pair.cc:1] Connection closed by peer [10.0.0.1]"
WALK = "rank 1 exited with status 1: RuntimeError: the loss went for a walk"

ENDS = [
    ("an exception", ended(1, 1, tail=TRACEBACK), Reason.ScriptFailed, WALK),
    ("an exception that torchelastic recorded", ended(1, 1, error="ValueError: no"), Reason.ScriptFailed, ": no"),
    ("a status without a word", ended(1, 3), Reason.ScriptFailed, "rank 1 exited with status 3"),
    ("CUDA out of memory", ended(1, 1, tail=raised(OOM)), Reason.OutOfMemory, "Tried to allocate"),
    ("a peer that is gone", ended(1, 1, tail=raised(LOST)), Reason.PeerLost, "Connection closed by peer"),
    ("a status that says: configuration", ended(1, ExitCode.CONFIG, tail="no such flag"), Reason.InvalidSpec, "flag"),
    ("a status that says: data", ended(1, ExitCode.DATA, tail="row 7"), Reason.DataUnreadable, "row 7"),
    ("a status that asks for free restarts", ended(1, ExitCode.INTERRUPTED), Reason.ScriptFailed, "status 75"),
    ("a crash", ended(1, -11, tail="Fatal Python error"), Reason.ScriptFailed, "SIGSEGV"),
    ("a kill", ended(1, -9), Reason.PodFailed, "SIGKILL"),
]


def verdict(*ends: RankEnd, stop: str | None = None, oom_kills: int = 0, code: int = 1) -> tuple[Reason | None, str]:
    launch = Launch(ranks=ends)
    words = judge(
        Evidence(
            node=0, time="2026-01-01T00:00:09Z", exit_code=code, launch=launch, stop_reason=stop, oom_kills=oom_kills,
            errors=script.said(launch, stop_reason=stop, oom_kills=oom_kills),
            result=script.result(stop, time="2026-01-01T00:00:09Z"),
        )
    )  # fmt: skip
    return words.reason, words.message


@pytest.mark.parametrize(("name", "end", "reason", "message"), ENDS, ids=[name for name, *_ in ENDS])
def test_the_end_of_a_rank(name: str, end: RankEnd, reason: Reason, message: str) -> None:
    told, text = verdict(end, ended(0, -15, at=4))
    assert told is reason
    assert message in text


def test_the_rank_that_failed_is_named_and_not_the_one_that_lost_it() -> None:
    victim = ended(0, 1, at=1, tail=raised("RuntimeError: Connection reset by peer"))
    assert verdict(victim, ended(2, 1, at=2, tail=TRACEBACK))[0] is Reason.ScriptFailed


def test_a_kill_while_memory_ran_out_is_told_as_that() -> None:
    assert verdict(ended(0, -9), oom_kills=1)[0] is Reason.OutOfMemory


STOPPED = [
    ("by SIGTERM itself", (ended(0, -15), ended(1, -15)), 1),
    ("with a status of its own", (ended(0, 143, tail="KeyboardInterrupt"),), 1),
    ("well, after a checkpoint", (), 0),
]


@pytest.mark.parametrize(("name", "ends", "code"), STOPPED, ids=[name for name, *_ in STOPPED])
def test_a_script_that_was_asked_to_stop_was_interrupted(name: str, ends: tuple[RankEnd, ...], code: int) -> None:
    assert verdict(*ends, stop="SIGTERM", code=code)[0] is Reason.Interrupted


def test_a_script_that_ends_well_has_succeeded() -> None:
    assert verdict(code=0) == (None, "")


def report(*, phase: str = "training", last_step: float | None = 100.0) -> TrainerReport:
    return TrainerReport(attempt=1, phase=phase, progress=Progress(step=7), last_step_time=last_step)


HANGS = [
    ("reports and prints", report(), 150.0, 105.0, False),
    ("is silent for as long as it may", report(), 100.0, 160.0, False),
    ("is silent for longer", report(), 100.0, 161.0, True),
    ("prints, as in a long evaluation", report(), 150.0, 200.0, False),
    ("never reported, and is silent", None, 0.0, 9e9, False),
    ("has not told a step yet", report(last_step=None), 0.0, 9e9, False),
    ("saves what it trained", report(phase="saving"), 100.0, 9e9, False),
]


@pytest.mark.parametrize(("name", "known", "printed", "at", "hangs"), HANGS, ids=[name for name, *_ in HANGS])
def test_a_hang_is_told_of_scripts_that_fell_silent(
    name: str,
    known: TrainerReport | None,
    printed: float,
    at: float,
    hangs: bool,
) -> None:
    words = script.hung(known, printed=printed, limits=Limits(grace_seconds=60, stall_seconds=60), at=at)
    assert (words is not None) is hangs
    if words:
        assert (words.failure_class, words.step) == (FailureClass.Hang, 7)
        assert "after step 7" in words.message


def test_the_latest_output_of_any_rank_counts(tmp_path: Path) -> None:
    assert script.last_print(tmp_path) == 0.0
    for name, age in (("0.out", 50), ("1.err", 5), ("other", 0)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age,) * 2)
    assert script.last_print(tmp_path) == 995


def test_what_a_script_finds_in_its_environment() -> None:
    found = script.environment(PLAN, 1, {"PATH": "/usr/bin", "NO_PROXY": "corp.example"})
    assert found["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/usr/bin", "python is the one we run with"
    assert (found["PET_NNODES"], found["PET_NPROC_PER_NODE"], found["PET_NODE_RANK"]) == ("2", "4", "1")
    assert found["PET_MASTER_ADDR"] == "mine-2-0.mine"
    assert (found["FINETUNE_JOB_NAME"], found["FINETUNE_ATTEMPT"]) == ("mine", "2")
    assert found["no_proxy"] == "corp.example,127.0.0.1,localhost", "its reports stay on this machine"


def test_a_python_file_is_run_by_python() -> None:
    assert script.program(("train.py", "--a")) == [sys.executable, "train.py", "--a"]
    assert script.program(("python", "train.py")) == ["python", "train.py"]


MISSING = [
    ("no-such-program",),
    ("/no/such/program",),
    ("python", "no-such.py"),
    ("no-such.py",),
    ("python3", "-u", "a/b.py"),
]


@pytest.mark.parametrize("command", MISSING)
def test_a_program_that_is_not_there_is_told_before_the_gang_waits(command: tuple[str, ...]) -> None:
    with pytest.raises(FinetuneError) as caught:
        script.check(command, {"PATH": "/usr/bin"})
    assert caught.value.reason is Reason.CommandMissing
    assert command[-1] in caught.value.message


@pytest.mark.parametrize(
    "command", [("python", "-m", "anything"), ("python", "-c", "pass"), (sys.executable, __file__), (__file__,)]
)
def test_a_program_that_is_there_is_fine(command: tuple[str, ...]) -> None:
    script.check(command, {"PATH": "/usr/bin"})


def test_the_pods_environment_is_given_on_one_machine_too() -> None:
    variables = (EnvVar(name="A", value="1"), EnvVar(name="TOKEN", secret_key_ref=SecretKeyRef(name="hf", key="token")))
    assert script.given(variables, {"TOKEN": "x"}) == {"A": "1"}
    with pytest.raises(FinetuneError, match="TOKEN, from the Secret hf"):
        script.given(variables, {})
