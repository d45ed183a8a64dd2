"""The end of a failed attempt's log is kept, bounded, and its loss changes nothing."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from finetune_api.failures import Reason, TerminationMessage
from finetune_api.job import FineTuneJob, Metadata
from finetune_api.plan import RunPlan
from finetune_api.spec import Output
from finetune_api.status import FineTuneJobStatus
from finetune_trainer.agent import keep
from finetune_trainer.agent.home import Home
from finetune_trainer.agent.verdict import say
from finetune_trainer.cli.main import main
from finetune_trainer.store import attempt_logs
from tests.support.training import plan_for

STACKS = 'Fatal Python error: Aborted\n\nThread 0x1 (most recent call first):\n  File "loop.py", line 1 in _step\n'


def write(run_dir: Path, name: str, text: str) -> None:
    (run_dir / "logs").mkdir(parents=True, exist_ok=True)
    (run_dir / "logs" / name).write_text(text)


def kept(plan: RunPlan, folder: Path, words: TerminationMessage) -> tuple[str, dict[str, str]]:
    said = keep.keep(plan, words, run_dir=folder, said=["node 0 of 1"], environ={})
    files = (folder / "output" / attempt_logs.place(plan.job.uid, plan.attempt)).glob("*")
    return said, {file.name: file.read_text() for file in files}


def test_a_log_is_the_agents_words_and_the_end_of_each_ranks() -> None:
    folder = Path("/nonexistent")
    assert keep.node_log(folder, ["one", "two"], limit=1000) == "==> agent <==\none\ntwo\n"


def test_long_output_is_cut_at_a_line_and_never_more_than_the_limit(tmp_path: Path) -> None:
    for rank in range(8):
        write(tmp_path, f"{rank}.out", "".join(f"step {n}\n" for n in range(50_000)))
        write(tmp_path, f"{rank}.err", "x" * 300_000)
    log = keep.node_log(tmp_path, ["begins"], limit=attempt_logs.LOG_BYTES)
    assert len(log.encode()) <= attempt_logs.LOG_BYTES
    assert log.count("step 49999\n") == 8
    assert "==> rank 7, output <==\n[...]\nstep " in log


def test_a_hang_leaves_every_ranks_stacks(tmp_path: Path) -> None:
    write(tmp_path, "0.err", f"a warning\n{STACKS}")
    write(tmp_path, "1.err", "nothing to see\n")
    said, files = kept(plan_for(tmp_path), tmp_path, say(Reason.NoProgress, "no step", rank=0))
    assert "finetune logs tiny --attempt 1" in said
    assert sorted(files) == ["node-0.log", "stacks-0.txt"]
    assert files["stacks-0.txt"] == STACKS
    assert "nothing to see" in files["node-0.log"]


@pytest.mark.parametrize("words", [TerminationMessage(), say(Reason.Interrupted, "stopped")], ids=["success", "a stop"])
def test_what_is_no_failure_leaves_nothing(tmp_path: Path, words: TerminationMessage) -> None:
    assert kept(plan_for(tmp_path), tmp_path, words) == ("", {})


def test_a_store_that_refuses_is_told_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    plan = plan_for(tmp_path, output=Output(uri=f"file://{tmp_path}/file"))
    said = keep.keep(plan, say(Reason.PodFailed, "x"), run_dir=tmp_path, said=[], environ={})
    assert said.startswith("could not store the end of this log: ")


def test_a_store_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep, "PATIENCE", 0.1)
    gate = threading.Event()
    monkeypatch.setattr(keep, "_put", lambda *_: gate.wait(60))
    said = keep.keep(plan_for(tmp_path), say(Reason.PodFailed, "x"), run_dir=tmp_path, said=[], environ={})
    gate.set()
    assert "the upload took more than" in said


def test_logs_shows_what_was_kept_when_the_attempts_files_are_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, home = plan_for(tmp_path), Home(tmp_path / "home")
    write(tmp_path, "0.err", f"a warning\n{STACKS}")
    kept(plan, tmp_path, say(Reason.NoProgress, "no step", rank=0))
    metadata = Metadata(name="tiny", namespace="default", uid=plan.job.uid, labels={}, annotations={})
    home.save(FineTuneJob(metadata=metadata, spec=plan.spec, status=FineTuneJobStatus(attempt=2)))

    assert main(["logs", "tiny", "--attempt", "1", "--home", str(home.path)]) == 0
    shown = capsys.readouterr().out
    assert shown.index("node-0.log <==") < shown.index("stacks-0.txt <==")
    assert "in _step" in shown
    assert main(["logs", "tiny", "--attempt", "2", "--home", str(home.path)]) != 0
    assert main(["logs", "tiny", "--attempt", "1", "--node", "1", "--home", str(home.path)]) != 0
