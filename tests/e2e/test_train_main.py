"""`train.main` as torchrun starts it, from a plan to an artifact: real processes, real files, a tiny model.

Most processes are forked from one that has imported torch, which takes longer than what they do."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune_api import names
from finetune_api.failures import ExitCode, Reason, TerminationMessage
from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.load import load_datasets
from finetune_trainer.parallel.single import Single
from finetune_trainer.report.record import decode
from finetune_trainer.rundir import RunDir
from finetune_trainer.store.artifact import verify
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.store.opening import open_folder
from finetune_trainer.train.capabilities import probe
from finetune_trainer.train.model import LanguageModel
from finetune_trainer.transfer.evaluate import Layout, evaluate
from tests.support import rank_processes
from tests.support.event_files import scalars
from tests.support.pause_at_step import PauseAtStep
from tests.support.scored import scored
from tests.support.tiny_model import tiny_corpus, tiny_model

ROOT = Path(__file__).resolve().parents[2]
JOB = JobIdentity(namespace="test", name="tiny", uid="u-1")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny_model(folder / "model")
    tiny_corpus(folder / "data")
    return folder


def _spec(inputs: Path, output: Path, **changes: Any) -> dict[str, Any]:
    spec = {
        "model": {"uri": f"file://{inputs}/model"},
        "data": {
            "train": [{"uri": f"file://{inputs}/data/train.jsonl"}],
            "validation": {"fraction": 0.2},
            "test": {"uri": f"file://{inputs}/data/heldout.jsonl"},
            "slices": [{"name": "again", "uri": f"file://{inputs}/data/heldout.jsonl"}],
        },
        "output": {"uri": f"file://{output}"},
        "training": {"epochs": 5, "batchSize": 8, "learningRate": 0.003},
        "checkpoint": {"every": 5},
    }
    return {**spec, **changes}


class Gang:
    """The ranks of one attempt, each a process; `command`: started as torchrun does, and not forked."""

    def __init__(
        self,
        folder: Path,
        spec: dict[str, Any],
        *,
        ranks: int = 1,
        held_at: int | None = None,
        command: bool = False,
        **plan_fields: Any,
    ) -> None:
        self.folder, self.ranks, self.run_dir = folder, ranks, RunDir(folder / "run")
        self.command = command
        folder.mkdir(parents=True, exist_ok=True)
        self.pause = PauseAtStep(folder / "pause", held_at) if held_at else None
        self.run_dir.clear()
        typed = FineTuneJobSpec.model_validate(spec, strict=False)
        plan = RunPlan(job=JOB, spec=typed, processes_per_node=ranks, **plan_fields)
        (folder / "plan.json").write_text(plan.model_dump_json(by_alias=True, exclude_none=True))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = [self._start(rank, port) for rank in range(ranks)]

    def _start(self, rank: int, port: int) -> rank_processes.TrainMain | subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.ranks), "OMP_NUM_THREADS": "1"},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            names.ENV_CACHE: str(self.folder.parent / "cache"),
            **(self.pause.environment if self.pause else {}),
        }
        arguments = ["--plan", str(self.folder / "plan.json"), "--run-dir", str(self.run_dir.path)]
        log = self.folder / f"log.{rank}"
        if not self.command:
            return rank_processes.TrainMain(arguments, environment=environment, log=log)
        command = [sys.executable, "-m", "finetune_trainer.train.main", *arguments]
        with log.open("wb") as out:
            return subprocess.Popen(command, env=environment, stdout=out, stderr=out)

    def wait(self) -> list[int]:
        return [process.wait(timeout=500) for process in self.processes]

    def log(self, rank: int = 0) -> str:
        return (self.folder / f"log.{rank}").read_text()

    def when_held(self, act: Callable[[], None]) -> None:
        """Act once rank 0 has done the step at which the ranks are held, and let them go."""
        assert self.pause is not None
        self.until(lambda: (beat := self.run_dir.heartbeats().get(0)) is not None and beat.step == self.pause.step)
        act()
        self.pause.release()

    def until(self, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not ready():
            assert self.processes[0].poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)


def _succeeded(
    folder: Path, spec: dict[str, Any], *, ranks: int = 1, command: bool = False
) -> tuple[Gang, TerminationMessage]:
    gang = Gang(folder, spec, ranks=ranks, command=command)
    assert gang.wait() == [0] * ranks, "\n".join(gang.log(rank) for rank in range(ranks))
    result = gang.run_dir.result()
    assert result is not None
    return gang, result


def _adapter(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "adapter_model.safetensors")


def _difference(left: Path, right: Path) -> float:
    one, other = _adapter(left), _adapter(right)
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Gang, TerminationMessage]:
    """One undisturbed run of one rank."""
    folder = tmp_path_factory.mktemp("finished")
    return folder / "out", *_succeeded(folder / "run", _spec(inputs, folder / "out"), command=True)


@pytest.fixture(scope="module")
def finished_by_two(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TerminationMessage]:
    """The same run of two ranks."""
    folder = tmp_path_factory.mktemp("finished-by-two")
    _, words = _succeeded(folder / "run", _spec(inputs, folder / "out"), ranks=2)
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
    assert _test_loss(loaded.get_base_model(), inputs, output, tmp_path) == pytest.approx(tuned, abs=1e-5)


def _test_loss(network: torch.nn.Module, inputs: Path, output: Path, cache: Path) -> float:
    spec = FineTuneJobSpec.model_validate(_spec(inputs, output), strict=False)
    data = load_datasets(spec.data, tokenizer_path=output, cache=cache, seed=1)
    assert data.test is not None
    device = torch.device("cpu")
    scorer = LanguageModel(network.eval(), device, None, probe(network, device))
    layout = Layout(max_tokens=256, sequence_length=2048, packing=False, pad_id=0)
    with torch.no_grad():
        return evaluate(scorer, data.test, layout=layout, strategy=Single(), going_on=lambda: True).scores.loss


def test_two_ranks_commit_what_one_commits(
    finished: tuple[Path, Gang, TerminationMessage], finished_by_two: tuple[Path, TerminationMessage]
) -> None:
    (output, _, words), (by_two, together) = finished, finished_by_two
    assert _difference(output, by_two) < 2e-5
    assert scored(together.evaluation) == pytest.approx(scored(words.evaluation), abs=1e-5)
    assert together.plan is not None
    assert (together.plan.strategy, together.plan.world_size) == ("ddp", 2)


def test_a_killed_rank_is_a_lost_peer_to_the_other_and_a_new_attempt_ends_the_same(
    inputs: Path, finished_by_two: tuple[Path, TerminationMessage], tmp_path: Path
) -> None:
    spec = _spec(inputs, tmp_path / "out")
    store = CheckpointStore(open_folder(f"file://{tmp_path}/out", prefix=""), JOB)
    gang = Gang(tmp_path / "cut", spec, ranks=2, held_at=12)
    gang.until(lambda: store.steps()[-1:] == [10])
    gang.when_held(lambda: gang.processes[1].send_signal(signal.SIGKILL))
    assert gang.wait() == [ExitCode.PEER_LOST, -signal.SIGKILL], gang.log()
    assert gang.run_dir.errors()[0].reason is Reason.PeerLost
    again, words = _succeeded(tmp_path / "cut", spec, ranks=2)
    assert "resuming after step " in again.log()
    assert words.step == 35
    assert _difference(tmp_path / "out", finished_by_two[0]) == 0.0


def test_a_stop_request_ends_with_a_checkpoint_and_the_next_attempt_goes_on(
    inputs: Path, finished: tuple[Path, Gang, TerminationMessage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = f"file://{tmp_path}/mlruns"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv(names.ENV_TRACKER_SECONDS, "1800")  # as long as it takes
    spec = _spec(inputs, tmp_path / "out")
    gang = Gang(tmp_path / "run", spec, held_at=7)
    gang.when_held(lambda: gang.run_dir.request_stop("test"))
    assert gang.wait() == [ExitCode.INTERRUPTED], gang.log()
    assert gang.run_dir.errors()[0].reason is Reason.Interrupted
    assert gang.run_dir.result() is None
    assert _tracked(tracking) == ("KILLED", list(range(1, 9)), None)
    assert list((tmp_path / "out" / ".finetune" / JOB.uid / "tensorboard" / "1").iterdir())
    _, words = _succeeded(tmp_path / "run", spec)
    assert _difference(tmp_path / "out", finished[0]) == 0.0
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
    spec = _spec(inputs, tmp_path / "out")
    spec["training"]["activationCheckpointing"] = True  # changes none either
    gang = Gang(tmp_path / "run", spec, micro_batch_tokens=128)
    assert gang.wait() == [ExitCode.OK], gang.log()
    assert "2 run again for their gradients" in gang.log()
    words = gang.run_dir.result()
    assert words is not None
    assert words.plan is not None
    assert finished[2].plan is not None
    assert (words.plan.micro_batch_tokens, words.plan.batch_size) == (128, finished[2].plan.batch_size)
    assert _difference(tmp_path / "out", finished[0]) < 1e-5


def test_a_committed_run_says_so_and_trains_no_more(
    inputs: Path, finished: tuple[Path, Gang, TerminationMessage], tmp_path: Path
) -> None:
    output, _, first = finished
    gang, second = _succeeded(tmp_path / "run", _spec(inputs, output))
    assert second.artifact == first.artifact
    assert second.evaluation == first.evaluation
    assert "step " not in gang.log()


def test_full_fine_tuning_commits_a_model_that_transformers_loads(inputs: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    spec = _spec(inputs, tmp_path / "out", method={"type": "full"})
    _, words = _succeeded(tmp_path / "run", spec)
    assert words.artifact is not None
    assert words.artifact.kind == "model"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert _test_loss(loaded, inputs, tmp_path / "out", tmp_path) == pytest.approx(
        scored(words.evaluation)[1], abs=1e-5
    )


def test_classification_is_scored_by_accuracy(inputs: Path, tmp_path: Path) -> None:
    kinds = (("aaa", "up"), ("zzz", "down"))
    rows = [{"text": f"{word} {i}", "label": label} for i in range(24) for word, label in kinds]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    rows_uri = {"uri": f"file://{tmp_path}/rows.jsonl"}
    data = {"train": [rows_uri], "test": rows_uri, "validation": rows_uri, "allowDuplicates": True}
    training = {"epochs": 12, "batchSize": 8, "learningRate": 0.005}
    guards = {"calibration": {"maxIncrease": 0.5}}
    spec = _spec(inputs, tmp_path / "out", data=data, training=training, method={"type": "full"}, guards=guards)
    _, words = _succeeded(tmp_path / "run", spec)
    assert scored(words.evaluation, metric="accuracy")[1] == 1.0
    assert words.evaluation is not None
    found = words.evaluation.calibration
    assert found is not None
    assert (found.name, found.rows) == ("test", 48)
    assert found.tuned.nll < found.base.nll
    assert [(guard.name, guard.verdict) for guard in words.evaluation.guards] == [("calibration", "passed")]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["temperature"] == found.temperature is not None
    assert "Calibration" in (tmp_path / "out" / "report.html").read_text()


def test_weighted_and_augmented_tables_resume_to_the_bit_and_are_told_in_the_artifact(
    inputs: Path, tmp_path: Path
) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [json.loads(line) for line in (inputs / "data" / "train.jsonl").read_text().splitlines()]
    (tmp_path / "shards").mkdir()
    for number in range(3):
        parquet.write_table(pyarrow.Table.from_pylist(rows[number:48:3]), tmp_path / "shards" / f"{number}.parquet")
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[48:]))
    data = {
        "train": [{"uri": f"file://{tmp_path}/shards/"}, {"uri": f"file://{tmp_path}/more.jsonl", "weight": 1.5}],
        "test": {"uri": f"file://{inputs}/data/heldout.jsonl"},
        "augmentation": [
            {"type": "characterNoise", "probability": 0.5},
            {"type": "templates", "probability": 0.2, "templates": ["say {text}"]},
        ],
    }
    training = {"epochs": 3, "batchSize": 16, "learningRate": 0.003}
    _, words = _succeeded(tmp_path / "whole", _spec(inputs, tmp_path / "expected", data=data, training=training))
    spec = _spec(inputs, tmp_path / "out", data=data, training=training)
    gang = Gang(tmp_path / "cut", spec, held_at=6)
    gang.when_held(lambda: gang.run_dir.request_stop("test"))
    assert gang.wait() == [ExitCode.INTERRUPTED], gang.log()
    _succeeded(tmp_path / "cut", spec)
    assert _difference(tmp_path / "out", tmp_path / "expected") == 0.0
    record = decode((tmp_path / "out" / "run.json").read_bytes())
    assert record.data.statistics is not None
    assert record.data.layout is not None
    assert len(record.data.statistics.digests) == 5
    assert record.data.weights == {f"file://{tmp_path}/more.jsonl": 1.5}
    seen = sum(each.rows for each in record.data.augmentation) // 2
    assert words.plan is not None
    assert seen == 3 * sum(
        round(s.documents * w) for s, w in zip(record.data.statistics.sources, (1, 1.5), strict=True)
    )
    for text in ((tmp_path / "out" / "README.md").read_text(), gang.log()):
        assert "augmentation characterNoise: " in text
        assert "packing efficiency" in text
        assert "% trained" in text
    assert "packing efficiency" in (tmp_path / "out" / "report.html").read_text()


FAILURES = [
    ("a missing file", {"data": {"train": [{"uri": "file:///nowhere/train.jsonl"}]}}, Reason.DataNotFound),
    ("a missing model", {"model": {"uri": "file:///nowhere/model"}}, Reason.ModelNotFound),
]


@pytest.mark.parametrize(("changes", "reason"), [f[1:] for f in FAILURES], ids=[f[0] for f in FAILURES])
def test_failures_have_a_reason_and_its_exit_code(
    inputs: Path, tmp_path: Path, changes: dict[str, Any], reason: Reason
) -> None:
    gang = Gang(tmp_path / "run", _spec(inputs, tmp_path / "out", **changes))
    (code,) = gang.wait()
    words = gang.run_dir.errors()[0]
    assert words.reason is reason
    assert words.exit_code == code
    assert words.hint


def test_a_sharded_run_commits_the_whole_model(inputs: Path, tmp_path: Path) -> None:
    """Two processes, neither of which ever holds it."""
    training = {"maxSteps": 4, "batchSize": 8, "learningRate": 0.003}
    spec = _spec(inputs, tmp_path / "out", method={"type": "full"}, strategy={"type": "fsdp"}, training=training)
    _, result = _succeeded(tmp_path / "two", spec, ranks=2)
    assert result.plan is not None
    assert (result.plan.strategy, result.plan.world_size) == ("fsdp", 2)
    assert result.plan.parameters == result.plan.trainable_parameters
    alone = _spec(inputs, tmp_path / "alone-out", method={"type": "full"}, training=training)
    _, other = _succeeded(tmp_path / "one", alone)
    assert scored(result.evaluation) == pytest.approx(scored(other.evaluation), rel=1e-5)
    assert not verify(open_folder(f"file://{tmp_path}/out", prefix="")).problems


def test_a_run_on_shares_of_4_bits_writes_adapter_and_model(inputs: Path, tmp_path: Path) -> None:
    """Two processes, which count the weights of the base and not their bytes."""
    training = {"maxSteps": 3, "batchSize": 8, "learningRate": 0.003}
    sharded = {"method": {"type": "qlora"}, "strategy": {"type": "fsdp"}}
    spec = _spec(inputs, tmp_path / "out", training=training, **sharded)
    spec["output"]["merged"] = True
    _, result = _succeeded(tmp_path / "two", spec, ranks=2)
    assert result.plan is not None
    assert result.plan.strategy == "fsdp"
    whole = load_file(inputs / "model" / "model.safetensors")
    assert result.plan.parameters == sum(tensor.numel() for tensor in whole.values())
    merged = load_file(tmp_path / "out" / "merged" / "model.safetensors")
    assert {name: tensor.shape for name, tensor in merged.items()} == {n: tensor.shape for n, tensor in whole.items()}
    assert not verify(open_folder(f"file://{tmp_path}/out", prefix="")).problems


def test_one_process_offloads_to_its_host_by_deepspeed(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = subprocess.run([ROOT / "tools" / "deepspeed.sh"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip("DeepSpeed cannot be installed here: tools/deepspeed.sh says why")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), made.stdout.strip()])))
    strategy = {"type": "deepspeed", "zeroStage": 3, "offload": "all"}
    training = {"maxSteps": 3, "batchSize": 8}
    spec = _spec(inputs, tmp_path / "out", strategy=strategy, training=training)
    _, result = _succeeded(tmp_path / "one", spec, command=True)  # DeepSpeed's folder is on its path from the start
    assert result.plan is not None
    assert result.plan.strategy == "deepspeed"
    assert not verify(open_folder(f"file://{tmp_path}/out", prefix="")).problems
