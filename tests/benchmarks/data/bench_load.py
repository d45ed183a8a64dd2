"""Memory and time to tokenise a file of 200 MB, by format: `python tests/benchmarks/data/bench_load.py [MB [FORM …]]`.

Each row is a process of its own that does what the preflight does with the data. Memory is the most that it had beyond
what it had after its imports, without mapped files, which the kernel takes back when it needs to.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMS = ("jsonl", "jsonl.gz", "parquet", "four parquet files")


def main() -> None:
    parser = argparse.ArgumentParser(description="Loads and encodes large files of every format.")
    parser.add_argument("megabytes", nargs="?", type=int, default=200, help="size of each file (default 200)")
    parser.add_argument("forms", nargs="*", help=f"of {', '.join(FORMS)} (default: all)")
    parser.add_argument("--load", nargs=2, metavar=("URI", "FOLDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.load:
        uri, cache = chosen.load
        print(json.dumps(load(uri, Path(cache))))
        return
    megabytes, forms = chosen.megabytes, chosen.forms or FORMS
    print(f"{megabytes} MB of prompts and completions, tokens as SmolLM2's")
    print("| files | rows | tokens | seconds | CPU seconds | peak memory beyond imports |")
    print("|---|---:|---:|---:|---:|---:|")
    for form in forms:
        with tempfile.TemporaryDirectory() as folder:
            uri = write(Path(folder), form, megabytes)
            command = [sys.executable, __file__, "--load", uri, folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout)
        print(
            f"| {form} | {found['rows']:,} | {found['tokens']:,} | {found['seconds']:.0f} | {found['cpu']:.0f} "
            f"| {found['memory'] / 2**20:.0f} MiB |",
            flush=True,
        )


def rows(megabytes: int) -> Iterator[dict[str, str]]:
    chosen = random.Random(1)
    words = ["".join(chosen.choice("etaoinshrdlu") for _ in range(chosen.randint(2, 9))) for _ in range(20_000)]
    size = 0
    while size < megabytes << 20:
        row = {key: " ".join(chosen.choices(words, k=chosen.randint(20, 300))) for key in ("prompt", "completion")}
        row["completion"] = f" {row['completion']}"
        size += sum(map(len, row.values())) + 32
        yield row


def write(folder: Path, form: str, megabytes: int) -> str:
    """The URI."""
    if form.startswith("jsonl"):
        import gzip

        path = folder / f"train.{form}"
        with gzip.open(path, "wt", 1) if form.endswith("gz") else path.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows(megabytes))
        return f"file://{path}"
    import pyarrow
    from pyarrow import parquet

    files = 1 if form == "parquet" else 4
    schema = pyarrow.schema([("prompt", pyarrow.string()), ("completion", pyarrow.string())])
    for number in range(files):
        with parquet.ParquetWriter(folder / f"train-{number}.parquet", schema) as writer:
            batch: list[dict[str, str]] = []
            for row in rows(megabytes // files):
                batch.append(row)
                if len(batch) == 10_000:
                    writer.write_table(pyarrow.Table.from_pylist(batch, schema))
                    batch = []
            writer.write_table(pyarrow.Table.from_pylist(batch, schema))
    return f"file://{folder}/*.parquet"


def load(uri: str, folder: Path) -> dict[str, Any]:
    from finetune_api.data import Data
    from finetune_trainer.data.load import load_datasets

    models = Path(os.environ.get("FINETUNE_CACHE") or Path.home() / ".cache" / "finetune-operator") / "models"
    spec = Data.model_validate({"train": ({"uri": uri},), "sequenceLength": 4096})
    started, cpu = time.monotonic(), time.process_time()
    with Peak() as memory:
        data = load_datasets(spec, tokenizer_path=models / "SmolLM2-135M-Instruct", cache=folder / "cache", seed=1)
    train = data.statistics.splits["train"]
    return {
        "rows": train.rows,
        "tokens": train.tokens,
        "seconds": time.monotonic() - started,
        "cpu": time.process_time() - cpu,
        "memory": memory.most,
    }


@dataclass
class Peak:
    """Of this process's own memory, looked at fifty times a second."""

    most: int = 0
    first: int = field(default_factory=lambda: own_memory())
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Peak:
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.most = max(self.most, own_memory() - self.first)


def own_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
