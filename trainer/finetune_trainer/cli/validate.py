"""`finetune validate FILE…`: validates manifests as the API server does, without a cluster. It accepts relative paths,
and notes that they only work on this machine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from finetune_api.advice import advice, undecidable
from finetune_api.failures import ExitCode
from finetune_api.job import FineTuneJob
from finetune_api.ladder import refused_on_cluster
from finetune_api.manifest import ManifestError, Problem, load
from finetune_trainer.cli.paths import resolved
from finetune_trainer.cli.text import problems_text


def read_manifest(file: str) -> FineTuneJob:
    """Reads a manifest from a file, or from standard input for `-`, and resolves relative paths from its folder. Raises
    ManifestError, which lists every problem."""
    base = Path() if file == "-" else Path(file).parent
    return load(sys.stdin.read() if file == "-" else Path(file), given=lambda raw: resolved(raw, base))


def _of_clusters(file: str) -> tuple[Problem, ...]:
    """Returns problems that only a cluster has with the manifest: relative paths. Empty for standard input."""
    try:
        if file != "-":
            load(Path(file))
    except ManifestError as error:
        return error.problems
    return ()


def validate_files(files: list[str]) -> int:
    """Prints a line per valid manifest, with warnings, and every problem of each invalid one."""
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
            if relative := _of_clusters(file):
                fields = ", ".join(problem.path for problem in relative)
                print(f"{file}: valid on this machine only: {fields}: relative path; pods need a URI such as "
                      "s3://bucket/path or pvc://claim/path", file=sys.stderr)  # fmt: skip
            if spec.method.is_auto and (refused := refused_on_cluster(skips=spec.training.skip_bad_batch)):
                print(f"{file}: valid with finetune run only: {refused}", file=sys.stderr)
            for warning in (*advice(spec), *undecidable(spec)):
                print(f"{file}: warning: {warning}", file=sys.stderr)
    return ExitCode.OK if good else ExitCode.CONFIG
