"""`finetune validate FILE…`: the API server's verdict without a server."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from finetune_api.failures import ExitCode
from finetune_api.job import FineTuneJob
from finetune_api.manifest import ManifestError, load
from finetune_trainer.cli.text import problems_text


def read_manifest(file: str) -> FineTuneJob:
    """A file, or standard input for `-`. ManifestError lists every problem."""
    return load(sys.stdin.read() if file == "-" else Path(file))


def validate_files(files: list[str]) -> int:
    """Prints a line for each good manifest, every problem of each bad one."""
    good = True
    for file in files:
        try:
            job = read_manifest(file)
        except ManifestError as error:
            good = False
            print(problems_text(file, error.problems), file=sys.stderr)
        else:
            spec = job.spec
            nodes = str(spec.max_nodes) if spec.min_nodes == spec.max_nodes else f"{spec.min_nodes} to {spec.max_nodes}"
            shape = f"{nodes} node(s) with {spec.processes} process(es) each"
            what = shlex.join(spec.command) if spec.command else f"{spec.method.type} on {spec.model.uri}"
            print(f"{file}: valid: {job.metadata.name}, {what}, {shape}")
    return ExitCode.OK if good else ExitCode.CONFIG
