"""MLflow with a server, and Weights & Biases offline, as `finetune run` logs to them: tests/proof/trackers.md.

    python -m tests.proof.trackers

The server is MLflow's own with its basic authentication, on SQLite and loopback, in a virtual environment in a
temporary folder (about 700 MB, mostly links into the cache); runs log with the packages of requirements.lock. A job is
interrupted at step 4 and resumed, one is kept back by a guard, and one has a wrong password. What the server then has
is read through MLflow's client, and the files of Weights & Biases with the messages of its package. Nothing is uploaded
to Weights & Biases, whose server is not published as a package.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import secrets
import signal
import socket
import struct
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.reasons import ExitCode
from tests.proof.scripts import uv
from tests.support.local_runs import Json, Workspace, model_and_corpus

ROOT = Path(__file__).parents[2]
PAGE = Path(__file__).with_suffix(".md")
MLFLOW = importlib.metadata.version("mlflow-skinny")
USER = "admin"
_BLOCK = 32768
"""Bytes of a block of LevelDB's log format, in which Weights & Biases writes its files after seven bytes of its own."""


@dataclass
class Server:
    """MLflow's, with one user."""

    folder: Path
    password: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    port: int = 0

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, **changes: str) -> dict[str, str]:
        return {
            "MLFLOW_TRACKING_URI": self.uri, "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": self.password, "FINETUNE_TRACKER_SECONDS": "600", **changes,
        }  # fmt: skip

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        python = self.folder / "venv" / "bin" / "python"
        uv("venv", "-q", str(self.folder / "venv"))
        uv("pip", "install", "-q", "--python", str(python), f"mlflow[auth]=={MLFLOW}")
        settings = {
            "default_permission": "READ", "database_uri": f"sqlite:///{self.folder}/users.db",
            "admin_username": USER, "admin_password": self.password,
            "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
        }  # fmt: skip
        written = "".join(f"{name} = {value}\n" for name, value in settings.items())
        (self.folder / "auth.ini").write_text(f"[mlflow]\n{written}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [
            str(python), "-m", "mlflow", "server", "--app-name", "basic-auth", "--host", "127.0.0.1",
            "--port", str(self.port), "--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/runs.db",
            "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environ |= {"MLFLOW_AUTH_CONFIG_PATH": str(self.folder / "auth.ini")}
        environ |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16)}
        with (self.folder / "server.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=environ, stdout=log, stderr=log, start_new_session=True
            )
            try:
                self._until_healthy(process)
                yield
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)

    def _until_healthy(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + 1800
        while True:
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            assert process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < until, (self.folder / "server.log").read_text()
            time.sleep(0.5)


def guarded(workspace: Workspace, name: str, *, strict: bool = False) -> Json:
    """`strict`: its few rows cannot decide the guard, and that keeps the artifact back."""
    made = workspace.manifest(
        name=name, nodes=1, checkpoint={"every": 1},
        guards={"forgetting": {"maxBitsPerByteIncrease": 1.0}, "onInconclusive": "fail" if strict else "pass"},
        pod={"env": [{"name": "CANARY", "value": "not-for-a-tracker"}]},
    )  # fmt: skip
    made["spec"]["data"]["general"] = {"uri": (workspace.files / "corpus" / "heldout.jsonl").as_uri()}
    return made


def interrupted_and_resumed(workspace: Workspace) -> None:
    manifest = guarded(workspace, "resumed")
    pause = workspace.pause_at(4)
    process = workspace.start(manifest)
    workspace.wait(process, lambda: workspace.steps_done("resumed") >= 4, name="resumed")
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == ExitCode.INTERRUPTED, workspace.story("resumed")
    pause.release()
    assert workspace.run(manifest) == ExitCode.OK, workspace.story("resumed")


def runs_of(server: Server) -> dict[str, Any]:
    """By name, all that there are in the experiment."""
    from mlflow.tracking import MlflowClient

    os.environ.update(server.environment())
    client = MlflowClient(tracking_uri=server.uri)
    experiment = client.get_experiment_by_name("finetune")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    for run in found:
        run.losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert len({run.info.run_name for run in found}) == len(found), "one run for all attempts of a job"
    return {run.info.run_name: run for run in found}


def check_mlflow(workspace: Workspace, found: dict[str, Any]) -> Iterator[str]:
    resumed, kept = found["resumed"], found["kept"]
    job = workspace.job("resumed")
    tags = resumed.data.tags
    steps = sorted(metric.step for metric in resumed.losses)
    assert (resumed.info.status, tags["finetune.uid"]) == ("FINISHED", job.metadata.uid)
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 4
    assert int(tags["finetune.attempt"]) == 2
    yield f"a job interrupted at step 4 and resumed is one run with {len(steps)} steps, each once"
    assert resumed.data.params["method"] == "lora"
    assert job.status.artifact is not None
    assert tags["finetune.artifact"] == job.status.artifact.uri
    assert job.status.evaluation is not None
    assert [tags["finetune.guards.forgetting"]] == [guard.verdict for guard in job.status.evaluation.guards]
    assert resumed.data.metrics["guards/forgetting/bound"] > 0
    assert "evaluation/test/loss/difference" in resumed.data.metrics
    note = tags["mlflow.note.content"]
    assert "maxBitsPerByteIncrease" in note
    assert "not-for-a-tracker" not in note
    yield (
        f"{len(resumed.data.params)} parameters, {len(resumed.data.metrics)} metrics, the manifest without values of "
        "`pod.env`, guards and the URI of the artifact"
    )
    assert (kept.info.status, kept.data.tags["finetune.guards.forgetting"]) == ("FAILED", "inconclusive")
    assert "finetune.refused" in kept.data.tags
    yield "a job that a guard kept back has the status FAILED and its reason"


def check_refused(workspace: Workspace, found: dict[str, Any], wrong: str) -> str:
    story = workspace.story("refused")
    (line,) = [line for line in story.splitlines() if "MLflow:" in line]
    assert "refused" not in found
    assert wrong not in story
    return f"a job with a wrong password succeeds; its log has one line: `{line.partition('MLflow: ')[2][:60]}…`"


def records(file: Path) -> Iterator[Any]:
    """The messages of a file of Weights & Biases."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if _BLOCK - at % _BLOCK < 7:
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, at + 4)
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def check_wandb(workspace: Workspace) -> str:
    """All attempts have the same id, and together each step once."""
    uid = workspace.job("resumed").metadata.uid
    files = sorted(workspace.folder.rglob(f"run-{uid}.wandb"))
    steps: list[int] = []
    texts = ""
    for file in files:
        for record in records(file):
            texts += str(record)
            kept = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            steps += [kept["step"]] if "train/loss" in kept else []
    assert len(files) == 2, files
    assert sorted(set(steps)) == list(range(1, max(steps) + 1))
    assert "not-for-a-tracker" not in texts
    job = workspace.job("resumed")
    assert job.status.artifact is not None
    for word in (job.status.artifact.uri, "guards/forgetting", "maxBitsPerByteIncrease"):
        assert word in texts, word
    repeated = len(steps) - len(set(steps))
    return (
        f"{len(files)} attempts with one id, {max(steps)} steps, of which {repeated} twice; manifest, guards and the "
        "URI of the artifact"
    )


def page(results: dict[str, list[str]]) -> str:
    names = ("mlflow-skinny", "wandb")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    lines = [f"| {title} | {result} |" for title, each in results.items() for result in each]
    return (
        f"# Trackers\n\n`python -m tests.proof.trackers`, {today}, with {versions}, and a server of "
        f"mlflow {MLFLOW} on SQLite with basic authentication.\n\n"
        "| tracker | result |\n|---|---|\n" + "\n".join(lines) + "\n"
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory(prefix="finetune-trackers-") as temporary:
        folder = Path(temporary)
        server, wrong = Server(folder / "server"), secrets.token_urlsafe(24)
        for each in ("server", "files", "work"):
            (folder / each).mkdir()
        with server.running():
            workspace = Workspace(folder=folder / "work", files=model_and_corpus(folder / "files"))
            workspace.environ.update(server.environment(WANDB_MODE="offline"))
            interrupted_and_resumed(workspace)
            kept = guarded(workspace, "kept", strict=True)
            assert workspace.run(kept) == ExitCode.GUARD, workspace.story("kept")
            workspace.environ["MLFLOW_TRACKING_PASSWORD"] = wrong
            refused = guarded(workspace, "refused")
            assert workspace.run(refused) == ExitCode.OK, workspace.story("refused")
            found = runs_of(server)
            in_mlflow = [*check_mlflow(workspace, found), check_refused(workspace, found, wrong)]
        results = {"MLflow": in_mlflow, "Weights & Biases, offline": [check_wandb(workspace)]}
        PAGE.write_text(page(results))
    print(f"trackers: as they should be; the page is {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
