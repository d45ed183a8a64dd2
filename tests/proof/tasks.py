"""The pages in docs/tasks show what commands print: each manifest of a page is run, and the end is put into the page.

    python -m tests.proof.tasks [PAGE …]

They train a model of 0.2 million weights on real text from packages (tests/support/preset_rows.py), each within half a
minute of CPU time, or SmolLM2-135M-Instruct. The buckets of the manifests are those of a MinIO on loopback. What else
differs from the manifest is in tests/proof/task_runs.py and is stated on the page. `air-gapped` runs in a network
namespace that has only loopback (root), and shared-cluster on an API server with Kueue (tests/proof/task_queue.py).
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from finetune_api.reasons import ExitCode
from finetune_trainer.agent.home import Home
from finetune_trainer.rundir import RunDir
from tests.proof import task_queue
from tests.proof.task_runs import MODEL, RUNS, TaskRun
from tests.support import fake_hub, preset_rows, task_pages
from tests.support.documents import ROOT, manifests
from tests.support.minio import Server
from tests.support.pause_at_step import PauseAtStep
from tests.support.tiny_model import tiny_model

PAGES = (*RUNS, task_queue.PAGE.stem)
FINETUNE = Path(sys.executable).with_name("finetune")


def changed(manifest: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted path below the spec; None removes a field."""
    for path, value in changes.items():
        *parents, last = path.split(".")
        node = manifest["spec"]
        for name in parents:
            node = node.setdefault(name, {})
        if value is None:
            del node[last]
        else:
            node[last] = value
    return manifest


def trained(run: TaskRun, page: Path, folder: Path) -> list[str]:
    """What each manifest of the page printed at its end."""
    with ExitStack() as held:
        server = Server(folder / "minio")
        server.folder.mkdir()
        server.start()
        held.callback(server.kill)
        upload(run, server)
        environ = {**os.environ, **server.s3.environment, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environ |= {"FINETUNE_PVC_ROOT": str(folder / "claims"), "PATH": f"{FINETUNE.parent}:{os.environ['PATH']}"}
        for repository, rows in run.hub().items():
            hub = held.enter_context(fake_hub.serving(repository, {"data/train-0.jsonl": preset_rows.encoded(rows)}))
            environ |= fake_hub.environ(hub)
        if run.real:
            command = [sys.executable, "tools/models.py"]  # fetches it, and prints where it is
            made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()[-1]
            (folder / MODEL).symlink_to(made)
        else:
            tiny_model(folder / MODEL)
        for name, content in run.files().items():
            (folder / name).write_text(content)
        ends = []
        for text in manifests(page):
            job = changed(yaml.safe_load(text), run.changes)
            if "model" in job["spec"]:
                job["spec"]["model"] |= {"uri": provided(job["spec"]["model"]["uri"], folder, server)}
            (folder / "job.yaml").write_text(yaml.safe_dump(job))
            if run.stopped_at:
                ends.append(stopped(folder, environ, name=job["metadata"]["name"], step=run.stopped_at))
            ends.append(printed(["finetune", "run", "job.yaml"], folder, environ, progress=run.progress))
    return ends


def provided(uri: str, folder: Path, server: Server) -> str:
    """Puts the model where the manifest names one; returns its URI, which is a path for a model on the hub."""
    at = urlsplit(uri)
    if at.scheme == "pvc":
        shutil.copytree(folder / MODEL, folder / "claims" / at.netloc / at.path.lstrip("/"))
    elif at.scheme == "s3":
        for file in (folder / MODEL).iterdir():
            server.s3.store(at.netloc).put(f"{at.path.strip('/')}/{file.name}", file.read_bytes())
    else:
        return f"./{MODEL}"
    return uri


def printed(command: Sequence[str], folder: Path, environ: Mapping[str, str], *, progress: bool) -> str:
    """The standard output, which is the result, or with the lines of progress before it."""
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return (done.stderr * progress + done.stdout).strip("\n")


def stopped(folder: Path, environ: Mapping[str, str], *, name: str, step: int) -> str:
    """What it prints when it gets SIGTERM, as a pod does whose node is taken back, after this step."""
    pause = PauseAtStep(folder / "pause", step)
    beats = RunDir(Home(folder / ".finetune").node(name, 0)).heartbeats
    log = folder / "stopped.log"
    with log.open("w") as out:
        command = [str(FINETUNE), "run", "job.yaml"]
        process = subprocess.Popen(
            command, cwd=folder, env={**environ, **pause.environment}, stdout=out, stderr=out
        )  # fmt: skip
        while 0 not in beats() or beats()[0].step < step:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        process.terminate()
        assert process.wait(300) == ExitCode.INTERRUPTED, log.read_text()
    pause.release()
    return log.read_text().strip("\n")


def upload(run: TaskRun, server: Server) -> None:
    made = set()
    for uri, rows in run.rows().items():
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        if bucket not in made:
            made.add(server.s3.named(bucket))
        server.s3.store(bucket).put(key, preset_rows.encoded(rows, name=key))


def block(run: TaskRun, page: Path, ends: Sequence[str]) -> str:
    """For the page: the command, what it printed, and what was different."""
    differs = [f"`{path}: {flow(value)}`" for path, value in run.changes.items() if value is not None]
    differs[:1] = [f"with {each}" for each in differs[:1]]
    differs += [f"without `{path}`" for path, value in run.changes.items() if value is None]
    shown = "\n\n".join(f"```sh\nfinetune run job.yaml\n```\n\n```text\n{end}\n```" for end in ends)
    model = (
        "The model is SmolLM2-135M-Instruct, on one CPU."
        if run.real
        else "The model is one of 0.2 million random weights, which trains in seconds on a CPU: the figures show the "
        "output, not what your task gains."
    )
    of = "this manifest" if len(manifests(page)) == 1 else "these manifests"
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    said = f"Printed on {today} by {of} {', '.join(differs)}, on {run.told}. {model}"
    return f"{shown}\n\n{textwrap.fill(said, 120, break_long_words=False, break_on_hyphens=False)}"


def flow(value: object) -> str:
    """As YAML on one line."""
    return (
        str(yaml.safe_dump(value, default_flow_style=True, width=1000, sort_keys=False)).removesuffix("...\n").strip()
    )


def in_own_network(page: str) -> int:
    """This program again, where nothing but loopback exists."""
    command = f"ip link set lo up && exec {sys.executable} -m tests.proof.tasks --inside {page}"
    return subprocess.run(["unshare", "--net", "sh", "-c", command], cwd=ROOT, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"default: all of {', '.join(PAGES)}")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name in arguments.pages or PAGES:
        if name == task_queue.PAGE.stem:
            task_queue.show()
            continue
        run, page = RUNS[name], task_pages.PAGES / f"{name}.md"
        if run.alone and not arguments.inside:
            if code := in_own_network(name):
                return code
            continue
        with tempfile.TemporaryDirectory(prefix="finetune-tasks-") as folder:
            task_pages.write(page, block(run, page, trained(run, page, Path(folder))))
        print(f"tasks: {page.relative_to(ROOT)} written", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
