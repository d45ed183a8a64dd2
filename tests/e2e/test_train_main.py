"""`train.main` from a plan to an artifact: whole, interrupted, killed, of two ranks, and what fails."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from finetune_api import names
from finetune_api.failures import ExitCode, Reason, TerminationMessage
from finetune_trainer.report.record import decode
from finetune_trainer.store.artifact import verify
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.store.opening import open_folder
from tests.support.event_files import scalars
from tests.support.scored import scored
from tests.support.train_runs import JOB, Gang, difference, inputs_in, loss_on_test, spec_of, succeeded


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return inputs_in(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Gang, TerminationMessage]:
    """One undisturbed run of one rank."""
    folder = tmp_path_factory.mktemp("finished")
    return folder / "out", *succeeded(folder / "run", spec_of(inputs, folder / "out"), command=True)


@pytest.fixture(scope="module")
def finished_by_two(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TerminationMessage]:
    """The same run of two ranks."""
    folder = tmp_path_factory.mktemp("finished-by-two")
    _, words = succeeded(folder / "run", spec_of(inputs, folder / "out"), ranks=2)
    return folder / "out", words


def test_the_artifact_is_whole_and_says_what_it_is(finished: tuple[Path, Gang, TerminationMessage]) -> None:
    output, _, words = finished
    folder = open_folder(f"file://{output}", prefix="")
    assert words.artifact is not None
    assert verify(folder, words.artifact.digest).ok
    files = {entry.path for entry in folder.list()}
    wanted = {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert files >= wanted | {"run.json", "report.html", "README.md", "manifest.json"}
    assert not {name for name in files if name.startswith(".finetune/")}
    record = decode((output / "run.json").read_bytes())
    (event_file,) = (output / "tensorboard").iterdir()
    assert [step for step, _ in scalars(event_file.read_bytes())["train/loss"]] == list(range(1, 36))
    assert record.steps == words.step == 35
    assert record.evaluation == words.evaluation
    assert record.attempts[0].outcome == "finished"
    assert "<svg" in (output / "report.html").read_text()


def test_plain_peft_gives_the_loss_that_was_reported(
    inputs: Path, finished: tuple[Path, Gang, TerminationMessage], tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    output, _, words = finished
    base, tuned = scored(words.evaluation)
    assert tuned < base - 0.2
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(inputs / "model"), output)
    assert loss_on_test(loaded.get_base_model(), inputs, output, tmp_path) == pytest.approx(tuned, abs=1e-5)


def test_two_ranks_commit_what_one_commits(
    finished: tuple[Path, Gang, TerminationMessage], finished_by_two: tuple[Path, TerminationMessage]
) -> None:
    (output, _, words), (by_two, together) = finished, finished_by_two
    assert difference(output, by_two) < 2e-5
    assert scored(together.evaluation) == pytest.approx(scored(words.evaluation), abs=1e-5)
    assert together.plan is not None
    assert (together.plan.strategy, together.plan.world_size) == ("ddp", 2)


def test_a_killed_rank_is_a_lost_peer_to_the_other_and_a_new_attempt_ends_the_same(
    inputs: Path, finished_by_two: tuple[Path, TerminationMessage], tmp_path: Path
) -> None:
    spec = spec_of(inputs, tmp_path / "out")
    store = CheckpointStore(open_folder(f"file://{tmp_path}/out", prefix=""), JOB)
    gang = Gang(tmp_path / "cut", spec, ranks=2, held_at=12)
    gang.until(lambda: store.steps()[-1:] == [10])
    gang.when_held(lambda: gang.processes[1].send_signal(signal.SIGKILL))
    assert gang.wait() == [ExitCode.PEER_LOST, -signal.SIGKILL], gang.log()
    assert gang.run_dir.errors()[0].reason is Reason.PeerLost
    again, words = succeeded(tmp_path / "cut", spec, ranks=2)
    assert "resuming after step " in again.log()
    assert words.step == 35
    assert difference(tmp_path / "out", finished_by_two[0]) == 0.0


def test_a_stop_request_ends_with_a_checkpoint_and_the_next_attempt_goes_on(
    inputs: Path, finished: tuple[Path, Gang, TerminationMessage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = f"file://{tmp_path}/mlruns"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv(names.ENV_TRACKER_SECONDS, "1800")  # as long as it takes
    spec = spec_of(inputs, tmp_path / "out")
    gang = Gang(tmp_path / "run", spec, held_at=7)
    gang.when_held(lambda: gang.run_dir.request_stop("test"))
    assert gang.wait() == [ExitCode.INTERRUPTED], gang.log()
    assert gang.run_dir.errors()[0].reason is Reason.Interrupted
    assert gang.run_dir.result() is None
    assert _tracked(tracking) == ("KILLED", list(range(1, 9)), None)
    assert list((tmp_path / "out" / ".finetune" / JOB.uid / "tensorboard" / "1").iterdir())
    _, words = succeeded(tmp_path / "run", spec)
    assert difference(tmp_path / "out", finished[0]) == 0.0
    assert words.artifact is not None
    assert _tracked(tracking) == ("FINISHED", list(range(1, 36)), words.artifact.uri)
    assert list((tmp_path / "out" / ".finetune").rglob("*tfevents*")) == []


def _tracked(uri: str) -> tuple[str, list[int], str | None]:
    """Of the only run in MLflow: its status, the steps whose loss was logged, and its artifact."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("finetune").experiment_id])
    steps = sorted(metric.step for metric in client.get_metric_history(run.info.run_id, "train/loss"))
    return run.info.status, steps, run.data.tags.get("finetune.artifact")


def test_a_plan_that_halves_the_micro_batch_is_obeyed_and_changes_no_result(
    inputs: Path, finished: tuple[Path, Gang, TerminationMessage], tmp_path: Path
) -> None:
    spec = spec_of(inputs, tmp_path / "out")
    spec["training"]["activationCheckpointing"] = True  # changes none either
    gang = Gang(tmp_path / "run", spec, micro_batch_tokens=128)
    assert gang.wait() == [ExitCode.OK], gang.log()
    assert "2 run again for their gradients" in gang.log()
    words = gang.run_dir.result()
    assert words is not None
    assert words.plan is not None
    assert finished[2].plan is not None
    assert (words.plan.micro_batch_tokens, words.plan.batch_size) == (128, finished[2].plan.batch_size)
    assert difference(tmp_path / "out", finished[0]) < 1e-5


def test_a_committed_run_says_so_and_trains_no_more(
    inputs: Path, finished: tuple[Path, Gang, TerminationMessage], tmp_path: Path
) -> None:
    output, _, first = finished
    gang, second = succeeded(tmp_path / "run", spec_of(inputs, output))
    assert second.artifact == first.artifact
    assert second.evaluation == first.evaluation
    assert "step " not in gang.log()


FAILURES = [
    ("a missing file", {"data": {"train": [{"uri": "file:///nowhere/train.jsonl"}]}}, Reason.DataNotFound),
    ("a missing model", {"model": {"uri": "file:///nowhere/model"}}, Reason.ModelNotFound),
]


@pytest.mark.parametrize(("changes", "reason"), [f[1:] for f in FAILURES], ids=[f[0] for f in FAILURES])
def test_failures_have_a_reason_and_its_exit_code(
    inputs: Path, tmp_path: Path, changes: dict[str, Any], reason: Reason
) -> None:
    gang = Gang(tmp_path / "run", spec_of(inputs, tmp_path / "out", **changes))
    (code,) = gang.wait()
    words = gang.run_dir.errors()[0]
    assert words.reason is reason
    assert words.exit_code == code
    assert words.hint
