"""The commands without a run: what they answer, and with which exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from finetune_api.failures import ExitCode
from finetune_api.job import FineTuneJob, Metadata
from finetune_api.manifest import load
from finetune_api.status import Artifact, FineTuneJobStatus, Phase, Progress
from finetune_trainer.agent.home import Home
from finetune_trainer.agent.local import local_plan, run_uid
from finetune_trainer.cli.main import main
from tests.support.manifests import minimal
from tests.support.printed_json import conforms
from tests.support.small_artifact import adapter, committed
from tests.support.small_report import record


def write(path: Path, content: object) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


def job(folder: Path, **spec: object) -> FineTuneJob:
    return load(yaml.safe_dump(minimal(folder, **spec)))


def test_a_good_manifest_is_summed_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", write(tmp_path / "job.yaml", minimal(tmp_path, nodes=2))]) == ExitCode.OK
    assert "valid: tiny, lora on" in capsys.readouterr().out


def test_every_problem_of_every_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = write(tmp_path / "bad.yaml", minimal(tmp_path, node=2, training={"epochs": 0}))
    missing = str(tmp_path / "missing.yaml")
    assert main(["validate", bad, missing]) == ExitCode.CONFIG
    told = capsys.readouterr().err
    for word in (
        "spec.node: unknown field; did you mean nodes?",
        "spec.training.epochs",
        "missing.yaml",
        "No such file",
    ):
        assert word in told


def test_as_json_each_file_has_its_problems_or_its_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "job.yaml", minimal(tmp_path, data={"train": [{"uri": "./train.jsonl"}]}))
    bad = write(tmp_path / "bad.yaml", minimal(tmp_path, nodes=0))
    assert main(["validate", good, bad, "-o", "json"]) == ExitCode.CONFIG
    first, second = printed = json.loads(capsys.readouterr().out)

    conforms("validate", printed)
    assert (first["valid"], first["name"], first["problems"]) == (True, "tiny", [])
    assert first["warnings"][0].startswith("valid on this machine only: spec.data.train[0].uri")
    assert (second["valid"], second["file"]) == (False, bad)
    assert [problem["path"] for problem in second["problems"]] == ["spec.nodes"]


def test_a_bad_manifest_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "bad.yaml", minimal(tmp_path, nodes=0))
    assert main(["run", file, "--home", str(tmp_path / "home")]) == ExitCode.CONFIG
    assert "spec.nodes" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("arguments", [[], ["fly"], ["validate"], ["agent", "--listen", "nowhere"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == ExitCode.USAGE
    assert "usage: finetune" in capsys.readouterr().err


def test_the_plugin_calls_itself_kubectl_finetune(tmp_path: Path) -> None:
    program = "import sys; sys.argv[0] = '/usr/bin/kubectl-finetune'\n"
    program += "from finetune_trainer.cli.main import main; main(['-h'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: kubectl finetune")


def test_validating_loads_nothing_heavy(tmp_path: Path) -> None:
    file = write(tmp_path / "job.yaml", minimal(tmp_path))
    heavy = ("torch", "numpy", "transformers", "rich", "prometheus_client", "obstore", "psutil", "asyncio")
    program = f"import sys; from finetune_trainer.cli.main import main; main(['validate', {file!r}])\n"
    program += f"print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_run_is_named_by_what_it_trains(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a"}\n')
    uid = run_uid(job(tmp_path))
    same = [
        {"nodes": 2},
        {"suspend": True},
        {"retry": {"maxRestarts": 9}},
        {"checkpoint": {"every": 3}},
        {"image": "x"},
    ]
    assert {run_uid(job(tmp_path, **change)) for change in same} == {uid}
    for change in ({"training": {"epochs": 9}}, {"method": {"type": "full"}}, {"output": {"uri": "file:///elsewhere"}}):
        assert run_uid(job(tmp_path, **change)) != uid
    (tmp_path / "train.jsonl").write_text('{"text": "b"}\n')
    assert run_uid(job(tmp_path)) != uid, "the rows are part of what is trained"


def test_the_local_plan_is_that_of_a_cluster_on_loopback(tmp_path: Path) -> None:
    plan = local_plan(job(tmp_path, nodes=3, processesPerNode=2), uid="u", attempt=4)
    assert (plan.nodes, plan.processes_per_node, plan.world_size, plan.attempt) == (3, 2, 6, 4)
    assert plan.master_address == "127.0.0.1"
    assert plan.job.name == "tiny"
    assert local_plan(job(tmp_path, nodes={"min": 1, "max": 2}), uid="u", attempt=1).nodes == 2


def finished(home: Home, folder: Path, **status: object) -> FineTuneJob:
    base = job(folder)
    known = FineTuneJobStatus(phase=Phase.Succeeded, attempt=1, **status)  # type: ignore[arg-type]
    metadata = Metadata(name="tiny", uid=run_uid(base))
    kept = base.model_copy(update={"status": known, "metadata": metadata})
    home.save(kept)
    return kept


def artifact(folder: Path) -> Artifact:
    return Artifact(uri=(folder / "out").as_uri(), digest="0" * 64, size_bytes=10, kind="adapter")


EXTRAS = ("torch", "numpy", "transformers", "rich", "prometheus_client", "obstore", "psutil")
"""Of pip install finetune-operator[trainer]: None in sys.modules is a package that is not installed."""


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        ("validate {file}", ExitCode.OK, "valid: tiny"),
        ("status tiny --home {home}", ExitCode.OK, "Succeeded"),
        ("logs tiny --home {home}", ExitCode.OK, "step 1"),
        ("report tiny --home {home}", ExitCode.OK, "report.html"),
        ("run {file} --home {home}", ExitCode.CONFIG, "finetune-operator[trainer]"),
        ("verify s3://corp/models", ExitCode.CONFIG, "finetune-operator[trainer]"),
    ],
)
def test_looking_at_a_job_needs_none_of_the_trainers_packages(
    tmp_path: Path, command: str, status: int, says: str
) -> None:
    home = Home(tmp_path / "home")
    finished(home, tmp_path, artifact=artifact(tmp_path))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_text("report")
    log = home.log("tiny", node=0, attempt=1)
    log.parent.mkdir(parents=True)
    log.write_text("step 1")
    file = write(tmp_path / "job.yaml", minimal(tmp_path))
    words = command.format(file=file, home=home.path).split()
    program = f"import sys; sys.modules.update(dict.fromkeys({EXTRAS}))\n"
    program += f"from finetune_trainer.cli.main import main; sys.exit(main({words!r}))"
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=os.environ | keys
    )
    assert (done.returncode, says in done.stdout + done.stderr) == (status, True), done.stdout + done.stderr


def test_a_finished_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(tmp_path / "home")
    finished(home, tmp_path, artifact=artifact(tmp_path))
    file = write(tmp_path / "job.yaml", minimal(tmp_path))
    assert main(["run", file, "--home", str(home.path)]) == ExitCode.OK
    said = capsys.readouterr().out
    assert "already complete" in said
    assert artifact(tmp_path).uri in said


def test_status_of_a_local_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(tmp_path / "home")
    finished(home, tmp_path, progress=Progress(step=4, total_steps=4))
    assert main(["status", "tiny", "--home", str(home.path)]) == ExitCode.OK
    assert "step 4/4 (100 %)" in capsys.readouterr().out
    assert main(["status", "tiny", "--home", str(home.path), "-o", "json"]) == ExitCode.OK
    printed = json.loads(capsys.readouterr().out)
    conforms("status", printed)
    assert printed["status"]["phase"] == "Succeeded"


def test_logs_of_a_local_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(tmp_path / "home")
    finished(home, tmp_path)
    log = home.log("tiny", node=0, attempt=1)
    log.parent.mkdir(parents=True)
    log.write_text("a line\n")
    assert main(["logs", "tiny", "--home", str(home.path)]) == ExitCode.OK
    assert capsys.readouterr().out == "a line\n"
    assert main(["logs", "tiny", "--node", "7", "--home", str(home.path)]) == ExitCode.NO_INPUT
    assert "no log of node 7" in capsys.readouterr().err
    assert main(["logs", "tiny", "--attempt", "2", "--home", str(home.path)]) == ExitCode.NO_INPUT
    assert "message  tiny has no attempt 2: the current one is 1" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "logs", "report"])
def test_a_name_that_nobody_has_is_no_mistake_in_a_manifest(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([command, "nobody", "--home", str(tmp_path)]) == ExitCode.NO_INPUT
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("reason NotFound message no run named nobody in /")
    assert "manifest" not in said


def test_the_report_of_a_local_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(tmp_path / "home")
    finished(home, tmp_path, artifact=artifact(tmp_path))
    (tmp_path / "out").mkdir()
    assert main(["report", "tiny", "--home", str(home.path)]) == ExitCode.DATA
    assert "report.html not found" in capsys.readouterr().err
    (tmp_path / "out" / "report.html").write_text("<html>")
    assert main(["report", "tiny", "--home", str(home.path)]) == ExitCode.OK
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "report.html")
    copy = tmp_path / "copy.html"
    assert main(["report", artifact(tmp_path).uri, "--save", str(copy)]) == ExitCode.OK
    assert copy.read_text() == "<html>"


def test_the_report_as_text_has_all_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(tmp_path / "home")
    finished(home, tmp_path, artifact=artifact(tmp_path))
    (tmp_path / "out").mkdir()
    assert main(["report", "tiny", "--text", "--home", str(home.path)]) == ExitCode.DATA
    assert "no run.json" in capsys.readouterr().err
    (tmp_path / "out" / "run.json").write_text("{}")
    assert main(["report", "tiny", "--text", "--home", str(home.path)]) == ExitCode.DATA
    assert "not the record of a run" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "out" / "run.json").write_text(record().encode())
    assert main(["report", "tiny", "--text", "--home", str(home.path)]) == ExitCode.OK
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "On the test rows the tuned model is better", "test 400 accuracy 62.3 % 88.3 % +26.0 points",
        "test 400 loss 1.187 0.212 −0.975",
        "What could not be seen test 400 rows: a change of accuracy below 5.7 points",
    ):  # fmt: skip
        assert words in said


def test_verifying_what_is_no_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = tmp_path.as_uri()
    assert main(["verify", uri]) == ExitCode.DATA
    assert capsys.readouterr().err == f"{uri}: manifest.json is missing: nothing is committed in {uri}\n"


def test_an_artifact_is_verified_by_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    adapter(tmp_path / "tuned")
    uri = committed(tmp_path / "tuned")
    assert main(["verify", "tuned", "-o", "json"]) == ExitCode.OK
    printed = json.loads(capsys.readouterr().out)
    conforms("verify", printed)
    assert (printed["uri"], printed["intact"], printed["kind"], printed["files"]) == (uri, True, "adapter", 3)

    (tmp_path / "tuned" / "adapter_config.json").write_text("{}")
    assert main(["verify", "./tuned", "-o", "json"]) == ExitCode.DATA
    printed = json.loads(capsys.readouterr().out)
    conforms("verify", printed)
    assert printed["intact"] is False
    assert "adapter_config.json" in printed["problems"][0]


def test_what_promotion_published_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    candidate = tmp_path / "tuned" / ".finetune" / "u" / "candidate"
    adapter(candidate)
    uri = committed(candidate, record().model_copy(update={"refused": "guards.minGain is violated"}))
    assert main(["promote", uri, "-o", "json"]) == ExitCode.OK
    printed = json.loads(capsys.readouterr().out)
    conforms("promote", printed)
    assert printed["uri"].endswith("/tuned")
    assert printed["refused"] == "guards.minGain is violated"
    assert main(["verify", printed["uri"]]) == ExitCode.OK


@pytest.mark.parametrize("uri", ["hf://org/name", "ftp://nowhere"])
def test_verifying_what_is_no_folder(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", uri]) == ExitCode.CONFIG
    assert "Give a folder as in output.uri" in capsys.readouterr().err


def test_errors_come_without_tracebacks_unless_asked_for(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "finetune_trainer.cli.main", "verify", "ftp://nowhere"]
    for debug in (False, True):
        environment = os.environ | ({"FINETUNE_DEBUG": "1"} if debug else {})
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == ExitCode.CONFIG
        assert ("Traceback" in done.stderr) is debug
        assert "ftp://nowhere" in done.stderr
