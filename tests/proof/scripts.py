"""The examples of `spec.command` with other packages, and event files read by TensorBoard: tests/proof/scripts.md.

    python -m tests.proof.scripts

The packages are not in requirements.lock. They are installed, at the versions below and with everything else at that of
the lock, into a virtual environment in a temporary folder (about 7 GB with torch, mostly links into the cache). Each
example runs through `finetune run` as two processes on CPUs, on a model of 0.2 million parameters.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from safetensors.numpy import load_file

from finetune_api import names
from finetune_trainer.agent.home import Home
from finetune_trainer.trackers import events
from tests.support.small_report import record
from tests.support.tiny_model import tiny_model

ROOT = Path(__file__).parents[2]
PAGE = Path(__file__).with_suffix(".md")
PACKAGES = ("trl==1.16.0", "sentence-transformers==6.2.0", "tensorboard==2.21.0")
SHOWN = ("trl", "sentence-transformers", "tensorboard", "transformers", "accelerate", "datasets", "peft", "torch")
ROWS = 64

READER = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = EventAccumulator(sys.argv[1]).Reload()
curves = {name: [[event.step, event.value] for event in found.Scalars(name)] for name in found.Tags()["scalars"]}
texts = {name: found.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in found.Tags()["tensors"]}
print(json.dumps({"curves": curves, "texts": texts}))
"""


@dataclass(frozen=True)
class Example:
    """A script of examples/, and rows for it."""

    script: str
    rows: Sequence[dict[str, str]]
    writes: str
    """A file that proves that it saved its result."""
    options: Sequence[str] = ("--pairs=rows.jsonl",)


EXAMPLES = (
    Example(
        "dpo.py",
        [
            {"prompt": f"Where is parcel {n}?", "chosen": f" It leaves on day {n}.", "rejected": " I do not know."}
            for n in range(ROWS)
        ],
        "adapter_model.safetensors",
    ),
    Example(
        "grpo.py",
        [{"prompt": f"Where is parcel {n}?", "answer": str(n)} for n in range(ROWS // 4)],
        "adapter_model.safetensors",
        ("--prompts=rows.jsonl", "--tokens=16"),
    ),
    Example(
        "embeddings.py",
        [{"anchor": f"parcel {n} is late", "positive": f"where is my parcel {n}?"} for n in range(ROWS)],
        "modules.json",
    ),
)


def environment(folder: Path) -> Path:
    """Makes the virtual environment; returns its interpreter."""
    constraints = folder / "constraints.txt"
    pinned = re.findall(r"^([A-Za-z0-9._-]+==[^ ;\\\n]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    constraints.write_text("\n".join(_once(pinned)) + "\n")
    python = folder / "venv" / "bin" / "python"
    uv("venv", "-q", str(folder / "venv"))
    uv("pip", "install", "-q", "--python", str(python), "-c", str(constraints), f"{ROOT}[trainer]", *PACKAGES)
    return python


def uv(*command: str) -> None:
    """With the cache of `make setup`."""
    cache = Path(os.environ.get("FINETUNE_CACHE") or Path.home() / ".cache" / "finetune-operator")
    program = max((cache / "tools").glob("uv-*/bin/uv"))
    here = {"UV_CACHE_DIR": str(cache / "uv"), "UV_PYTHON_DOWNLOADS": "never", "UV_PYTHON": sys.executable}
    subprocess.run([str(program), *command], env={**os.environ, **here}, check=True)


def _once(pinned: Sequence[str]) -> Iterator[str]:
    """A package with two pins has markers, which are not read here; it is left open."""
    count = [each.partition("==")[0] for each in pinned]
    yield from (each for each, name in zip(pinned, count, strict=True) if count.count(name) == 1)


def trained(example: Example, python: Path, folder: Path) -> str:
    """Runs it; returns how it ended, in a line. AssertionError with its output if it did not succeed."""
    folder.mkdir()
    tiny_model(folder / "model")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in example.rows))
    (folder / example.script).write_bytes((ROOT / "examples" / example.script).read_bytes())
    command = ["python", example.script, "--model=model", "--output=out", *example.options]
    spec = {"command": command, "processesPerNode": 2}
    job = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": {"name": "mine"}, "spec": spec}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    clean |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    run = [str(python), "-m", "finetune_trainer.cli.main", "run", "job.yaml"]
    done = subprocess.run(run, cwd=folder, env=clean, capture_output=True, text=True, check=False)
    found = Home(folder / ".finetune").load("mine")
    assert done.returncode == 0, done.stdout + done.stderr
    assert found is not None
    progress = found.status.progress
    assert progress is not None
    assert progress.percent == 100, progress
    assert progress.loss is not None
    saved = folder / "out" / example.writes
    assert saved.exists()
    if saved.name == "adapter_model.safetensors":  # B begins as zeros
        assert all(weight.any() for name, weight in load_file(saved).items() if "lora_B" in name)
    steps = progress.total_steps
    return f"{found.status.phase} after {steps} steps on two processes, with progress and loss in the status"


def read_by_tensorboard(python: Path, folder: Path) -> str:
    """What `trackers.events` writes is what the package reads."""
    folder.mkdir()
    name, content = events.of_record(record(), manifest="kind: FineTuneJob\n")
    (folder / name).write_bytes(content)
    done = subprocess.run([str(python), "-c", READER, str(folder)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert [step for step, _ in found["curves"]["train/loss"]] == list(range(1, 41))
    assert abs(found["curves"]["evaluation/test/accuracy/tuned"][0][1] - 0.883) < 1e-6
    assert found["texts"] == {"manifest": "```yaml\nkind: FineTuneJob\n```"}
    return f"{len(found['curves'])} curves and the manifest read"


def versions(python: Path) -> dict[str, str]:
    code = f"import importlib.metadata as m; print(*(m.version(name) for name in {SHOWN}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return dict(zip(SHOWN, done.stdout.split(), strict=True))


def page(results: dict[str, str], found: dict[str, str]) -> str:
    lines = [f"| {name} | {result} |" for name, result in results.items()]
    with_versions = ", ".join(f"{name} {version}" for name, version in found.items())
    return (
        "# Examples with other packages\n\n`python -m tests.proof.scripts`, "
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, on CPUs, with {with_versions}.\n\n"
        "| what | result |\n|---|---|\n" + "\n".join(lines) + "\n"
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory(prefix="finetune-scripts-") as temporary:
        folder = Path(temporary)
        python = environment(folder)
        results = {f"examples/{each.script}": trained(each, python, folder / each.script[:-3]) for each in EXAMPLES}
        results["event files"] = read_by_tensorboard(python, folder / "events")
        PAGE.write_text(page(results, versions(python)))
    print(f"scripts: {len(results)} of {len(results)} as they should be; the page is {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
