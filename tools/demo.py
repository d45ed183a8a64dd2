"""`make demo`: a real small model, tuned on real text, by two processes as two nodes of one machine.

    python tools/demo.py [--rows N] [--fresh] [--folder DIR]

The manifest is examples/sentiment-lora.yaml with local files in the places of the bucket's; everything happens below
.finetune/demo and in the package cache, and no port is opened beyond loopback.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("FINETUNE_CACHE", Path.home() / ".cache" / "finetune-operator"))


def manifest(data: Path, *, model: Path, output: Path) -> dict[str, Any]:
    """The example of the cluster, with files for the bucket's objects."""
    job = yaml.safe_load((ROOT / "examples" / "sentiment-lora.yaml").read_text())
    spec = job["spec"]
    spec["model"] = {"uri": model.as_uri()}
    spec["output"] = {"uri": output.as_uri(), "overwrite": True}
    del spec["data"]["credentials"]
    sources = [
        *spec["data"]["train"],
        *spec["data"]["slices"],
        *(spec["data"][k] for k in ("validation", "test", "general")),
    ]
    for source in sources:
        source["uri"] = (data / Path(source["uri"]).name).as_uri()
    return job


def main() -> int:
    parser = argparse.ArgumentParser(description="Tune a real small model on real text, end to end.")
    parser.add_argument("--rows", type=int, default=320, help="training rows (default 320)")
    parser.add_argument("--heldout", type=int, default=80, help="rows of each held-out set (default 80)")
    parser.add_argument("--general", type=int, default=24, help="rows of general text (default 24)")
    parser.add_argument("--fresh", action="store_true", help="forget an earlier demo")
    parser.add_argument("--folder", type=Path, default=ROOT / ".finetune" / "demo", help="data, manifest and output")
    arguments = parser.parse_args()

    began = time.monotonic()
    model = CACHE / "models" / "SmolLM2-135M-Instruct"
    folder: Path = arguments.folder.resolve()
    data = folder / "data"
    run(ROOT / "tools" / "models.py")
    sizes = ["--train", arguments.rows, "--heldout", arguments.heldout, "--general", arguments.general]
    run(ROOT / "tools" / "corpora.py", data, *sizes)
    file = folder / "sentiment-lora.yaml"
    file.write_text(yaml.safe_dump(manifest(data, model=model, output=folder / "output"), sort_keys=False))
    print(f"demo: finetune run {file}", flush=True)
    finetune = Path(sys.executable).with_name("finetune")
    done = subprocess.run([finetune, "run", file, *(["--fresh"] if arguments.fresh else [])], cwd=ROOT, check=False)
    if done.returncode == 0:
        print(f"demo: finished in {time.monotonic() - began:.0f} s; open {folder / 'output' / 'report.html'}")
    return done.returncode


def run(script: Path, *arguments: object) -> None:
    subprocess.run([sys.executable, script, *map(str, arguments)], cwd=ROOT, check=True)


if __name__ == "__main__":
    sys.exit(main())
