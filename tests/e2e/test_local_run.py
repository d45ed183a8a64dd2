"""`finetune run` for real: two agents on loopback train a tiny model; interrupted and resumed; and every bad input."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import yaml

from finetune_api.failures import ExitCode, Reason, hint_of
from finetune_api.job import FineTuneJob
from finetune_api.status import Phase
from finetune_trainer.agent.local import Home, free_port
from tests.tiny import tiny_corpus, tiny_model

pytestmark = pytest.mark.timeout(240)

Json = dict[str, Any]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    tiny_model(folder / "model")
    tiny_corpus(folder / "corpus", rows=64)
    return folder


@dataclass(frozen=True, kw_only=True)
class Desk:
    """A folder in which somebody runs `finetune`."""

    folder: Path
    files: Path
    environ: dict[str, str] = field(default_factory=dict)

    def manifest(self, *, name: str = "tiny", **changes: object) -> Json:
        spec: Json = {
            "model": {"uri": (self.files / "model").as_uri()},
            "data": {
                "train": [{"uri": (self.files / "corpus" / "train.jsonl").as_uri()}],
                "test": {"uri": (self.files / "corpus" / "heldout.jsonl").as_uri()},
                "sequenceLength": 128,
            },
            "training": {"epochs": 3, "batchSize": 16, "learningRate": 0.001},
            "output": {"uri": (self.folder / "output" / name).as_uri()},
            "retry": {"maxRestarts": 1},
            "nodes": 2,
        }
        spec.update(changes)
        return {
            "apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": spec,
        }  # fmt: skip

    def start(self, manifest: Json, *arguments: str) -> psutil.Popen:
        name = manifest["metadata"]["name"]
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(manifest))
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | self.environ
        command = [sys.executable, "-m", "finetune_trainer.cli.main", "run", str(file), *arguments]
        with self.log(name).open("ab") as log:
            return psutil.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def run(self, manifest: Json, *arguments: str) -> int:
        return int(self.start(manifest, *arguments).wait(200))

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def said(self, name: str = "tiny") -> str:
        return self.log(name).read_text()

    @property
    def home(self) -> Home:
        return Home(self.folder / ".finetune")

    def job(self, name: str = "tiny") -> FineTuneJob:
        job = self.home.load(name)
        assert job is not None
        return job

    def story(self, name: str = "tiny") -> str:
        """All that was said, for a failed assertion."""
        logs = sorted(self.home.run(name).glob("node-*/attempt-*.log"))
        return "\n".join([self.said(name), *(f"--- {log}\n{log.read_text()}" for log in logs)])

    def wait(self, process: psutil.Popen, ready: Callable[[], bool], *, name: str = "tiny") -> None:
        deadline = time.monotonic() + 120
        while not ready():
            assert process.poll() is None, self.story(name)
            assert time.monotonic() < deadline, self.story(name)
            time.sleep(0.02)

    def steps_done(self, name: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            report = json.loads((self.home.node(name, 0) / "report.json").read_text())
            return int(report["progress"]["step"])
        return 0


@pytest.fixture
def desk(tmp_path: Path, files: Path) -> Desk:
    return Desk(folder=tmp_path, files=files)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, files: Path) -> Desk:
    """A run that nobody disturbs."""
    desk = Desk(folder=tmp_path_factory.mktemp("calm"), files=files)
    assert desk.run(desk.manifest()) == ExitCode.OK, desk.story()
    return desk


def adapter(desk: Desk, name: str = "tiny") -> dict[str, Any]:
    from safetensors.numpy import load_file

    return dict(load_file(desk.folder / "output" / name / "adapter_model.safetensors"))


def finetune(desk: Desk, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "finetune_trainer.cli.main", *arguments]
    return subprocess.run(command, cwd=desk.folder, capture_output=True, text=True, check=False)


def test_two_nodes_train_and_the_artifact_is_whole(calm: Desk) -> None:
    status = calm.job().status
    assert status.phase is Phase.Succeeded
    assert status.artifact is not None
    assert status.plan is not None
    assert status.plan.world_size == 2
    assert status.evaluation is not None
    assert status.evaluation.base.test is not None
    assert status.evaluation.tuned.test is not None
    assert status.evaluation.tuned.test.loss < status.evaluation.base.test.loss
    verified = finetune(calm, "verify", status.artifact.uri)
    assert verified.returncode == ExitCode.OK, verified.stderr


def test_the_end_of_a_run_shows_before_and_after_artifact_and_report(calm: Desk) -> None:
    said = calm.said()
    for word in ("test loss", "base", "tuned", (calm.folder / "output" / "tiny").as_uri(), "report.html"):
        assert word in said
    shown = finetune(calm, "report", "tiny")
    assert Path(shown.stdout.strip()).is_file(), shown.stderr
    assert "Succeeded" in finetune(calm, "status", "tiny").stdout
    assert "step" in finetune(calm, "logs", "tiny").stdout


def test_a_second_run_of_a_finished_job_says_so(calm: Desk) -> None:
    before = (calm.folder / "output" / "tiny" / "manifest.json").stat().st_mtime_ns
    assert calm.run(calm.manifest()) == ExitCode.OK
    assert "finished already" in calm.said()
    assert (calm.folder / "output" / "tiny" / "manifest.json").stat().st_mtime_ns == before


def test_interrupted_and_resumed_equals_uninterrupted(calm: Desk, desk: Desk) -> None:
    slow = desk.manifest(checkpoint={"every": 1})
    process = desk.start(slow)
    desk.wait(process, lambda: desk.steps_done("tiny") >= 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == ExitCode.INTERRUPTED, desk.story()
    assert "run again to resume" in desk.said()
    assert desk.job().status.phase is Phase.Suspended
    assert not (desk.folder / "output" / "tiny" / "manifest.json").exists()

    assert desk.run(slow) == ExitCode.OK, desk.story()

    assert "resuming after step" in desk.story()
    expected, found = adapter(calm), adapter(desk)
    assert found.keys() == expected.keys()
    for name in expected:
        assert abs(found[name] - expected[name]).max() <= 1e-6, name


def test_a_killed_rank_restarts_and_ends_the_same(calm: Desk, desk: Desk) -> None:
    process = desk.start(desk.manifest(checkpoint={"every": 1}))
    desk.wait(process, lambda: desk.steps_done("tiny") >= 2)
    rank = next(p for p in process.children(recursive=True) if p.environ().get("RANK") == "1")
    rank.kill()
    assert process.wait(120) == ExitCode.OK, desk.story()
    status = desk.job().status
    assert status.restarts is not None
    assert (status.attempt, status.restarts.counted) == (2, 1)
    assert status.last_failure is not None
    assert status.last_failure.rank == 1
    assert "rank 1 was killed (SIGKILL)" in status.last_failure.message
    expected, found = adapter(calm), adapter(desk)
    for name in expected:
        assert abs(found[name] - expected[name]).max() <= 1e-6, name


def test_a_second_interrupt_ends_at_once_and_leaves_nobody(desk: Desk) -> None:
    process = desk.start(desk.manifest(training={"epochs": 500, "batchSize": 16}))
    desk.wait(process, lambda: desk.steps_done("tiny") >= 1)
    below = process.children(recursive=True)
    process.send_signal(signal.SIGINT)
    desk.wait(process, lambda: "Ctrl-C again" in desk.said())
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == ExitCode.INTERRUPTED, desk.story()
    _, alive = psutil.wait_procs(below, timeout=15)
    assert not alive


def test_a_run_that_is_killed_takes_its_ranks_along(desk: Desk) -> None:
    process = desk.start(desk.manifest(training={"epochs": 500, "batchSize": 16}))
    desk.wait(process, lambda: desk.steps_done("tiny") >= 1)
    below = process.children(recursive=True)
    process.kill()
    _, alive = psutil.wait_procs(below, timeout=60)
    assert not alive


def test_one_run_of_a_name_at_a_time(desk: Desk) -> None:
    process = desk.start(desk.manifest(training={"epochs": 500, "batchSize": 16}))
    desk.wait(process, lambda: desk.home.load("tiny") is not None)
    second = finetune(desk, "run", "tiny.yaml")
    assert second.returncode == ExitCode.CONFIG
    assert "running already" in second.stderr
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == ExitCode.INTERRUPTED


def test_fresh_starts_again_and_replaces_its_own_result(calm: Desk, files: Path, tmp_path: Path) -> None:
    desk = Desk(folder=tmp_path / "again", files=files)
    shutil.copytree(calm.folder, desk.folder)
    again = calm.manifest()  # the same output as before
    assert desk.run(again, "--fresh") == ExitCode.OK, desk.story()
    assert "resuming after step" not in (desk.home.log("tiny", node=0, attempt=1)).read_text()


# Bad input: each ends in seconds with its class, reason and hint, and is tried once.


def rows(desk: Desk, *lines: object) -> Json:
    path = desk.folder / "bad.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return {"train": [{"uri": path.as_uri()}], "sequenceLength": 64}


def no_file(desk: Desk) -> Json:
    return {"data": {"train": [{"uri": (desk.folder / "none.jsonl").as_uri()}]}}


def empty_file(desk: Desk) -> Json:
    return {"data": rows(desk)}


def broken_row(desk: Desk) -> Json:
    return {"data": rows(desk, {"text": "good"}, "{not json\n")}


def no_labels(desk: Desk) -> Json:
    return {"data": rows(desk, {"text": "a"}, {"text": "b"}) | {"format": "classification"}}


def nothing_to_train(desk: Desk) -> Json:
    return {"data": rows(desk, *[{"messages": [{"role": "user", "content": f"hello {i}"}]} for i in range(4)])}


def too_long(desk: Desk) -> Json:
    return {"data": rows(desk, *[{"prompt": "p", "completion": "c" * 500}] * 3, {"prompt": "p", "completion": "c"})}


def no_model(desk: Desk) -> Json:
    return {"model": {"uri": (desk.folder / "nowhere").as_uri()}}


def no_causal_model(desk: Desk) -> Json:
    folder = desk.folder / "bert"
    shutil.copytree(desk.files / "model", folder)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    return {"model": {"uri": folder.as_uri()}}


def measured_on_what_it_learned(desk: Desk) -> Json:
    return {
        "data": {
            "train": [{"uri": (desk.files / "corpus" / "train.jsonl").as_uri()}],
            "test": {"uri": (desk.files / "corpus" / "train.jsonl").as_uri()},
        }
    }


def longer_than_the_model(desk: Desk) -> Json:
    return {"data": {"train": [{"uri": (desk.files / "corpus" / "train.jsonl").as_uri()}], "sequenceLength": 4096}}


def little_memory(_desk: Desk) -> Json:
    return {"resources": {"limits": {"memory": "64Mi"}}}


def taken_output(desk: Desk) -> Json:
    folder = desk.folder / "taken"
    folder.mkdir()
    (folder / "manifest.json").write_text('{"some": "other"}')
    return {"output": {"uri": folder.as_uri()}}


def unwritable_output(desk: Desk) -> Json:
    return {"output": {"uri": (desk.files / "model" / "config.json" / "below-a-file").as_uri()}}


def bucket_out_of_reach(desk: Desk) -> Json:
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    desk.environ.update(keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"})
    return {"data": {"train": [{"uri": "s3://corp/train.jsonl"}]}, "retry": {"maxRestarts": 0}}


BAD: list[tuple[Callable[[Desk], Json], Reason, int, str]] = [
    (no_file, Reason.DataNotFound, ExitCode.DATA, "none.jsonl"),
    (empty_file, Reason.DataEmpty, ExitCode.DATA, "bad.jsonl"),
    (broken_row, Reason.DataUnreadable, ExitCode.DATA, "line 2"),
    (no_labels, Reason.LabelsMissing, ExitCode.DATA, "label"),
    (nothing_to_train, Reason.NothingToTrain, ExitCode.DATA, ""),
    (too_long, Reason.SequenceTooLong, ExitCode.DATA, "3"),
    (measured_on_what_it_learned, Reason.DataLeak, ExitCode.DATA, "test: "),
    (longer_than_the_model, Reason.InvalidSpec, ExitCode.CONFIG, "data.sequenceLength: 512"),
    (no_model, Reason.ModelNotFound, ExitCode.CONFIG, "nowhere"),
    (no_causal_model, Reason.ModelUnsupported, ExitCode.CONFIG, "BertForMaskedLM"),
    (little_memory, Reason.InsufficientMemory, ExitCode.CONFIG, "64.0 MiB"),
    (taken_output, Reason.OutputExists, ExitCode.CONFIG, "taken"),
    (unwritable_output, Reason.InvalidSpec, ExitCode.CONFIG, "below-a-file"),
    (bucket_out_of_reach, Reason.StorageUnavailable, ExitCode.UNAVAILABLE, "corp"),
]


def assert_refused(desk: Desk, changes: Json, reason: Reason, code: int, word: str) -> None:
    began = time.monotonic()
    assert desk.run(desk.manifest(**changes)) == code, desk.story()
    assert time.monotonic() - began < 60, "seconds, not minutes; the machine may be busy"
    said = " ".join(desk.said().split())
    status = desk.job().status
    assert status.phase is Phase.Failed
    assert status.last_failure is not None
    assert status.last_failure.reason == reason
    assert status.last_failure.exit_code == code
    assert status.last_failure.hint
    assert status.attempt == 1, "trying again cannot help"
    assert f"{reason} (class {status.last_failure.failure_class})" in said
    assert word in said
    assert " ".join(status.last_failure.hint.split()) in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("make", "reason", "code", "word"), BAD, ids=[case[0].__name__ for case in BAD])
def test_bad_input(desk: Desk, make: Callable[[Desk], Json], reason: Reason, code: int, word: str) -> None:
    assert_refused(desk, make(desk), reason, code, word)


class _Refuses(BaseHTTPRequestHandler):
    """An object store that knows none of our keys."""

    def do_GET(self) -> None:
        body = b"<Error><Code>InvalidAccessKeyId</Code><Message>no such key</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_PUT = do_POST = do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def refusing_store() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Refuses)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("section", ["data", "output"])
def test_wrong_credentials(desk: Desk, refusing_store: str, section: str) -> None:
    prefix = f"FINETUNE_{section.upper()}_"
    keys = {
        "AWS_ACCESS_KEY_ID": "wrong",
        "AWS_SECRET_ACCESS_KEY": "secret-never-shown",
        "AWS_ENDPOINT_URL": refusing_store,
    }
    desk.environ.update({prefix + name: value for name, value in keys.items()})
    data = {"data": {"train": [{"uri": "s3://corp/train.jsonl"}]}}
    changes = data if section == "data" else {"output": {"uri": "s3://corp/out"}}
    assert_refused(desk, changes, Reason.CredentialsRejected, ExitCode.AUTHENTICATION, "corp")
    assert "secret-never-shown" not in desk.story()


def test_hints_exist_for_all_that_is_refused() -> None:
    assert all(hint_of(reason) for _, reason, _, _ in BAD)
