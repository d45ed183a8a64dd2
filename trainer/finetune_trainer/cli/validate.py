"""`finetune validate FILE…`: validates manifests as the API server does, without a cluster. It accepts relative paths,
and notes that they only work on this machine."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from finetune_api.advice import advice, undecidable
from finetune_api.failures import ExitCode
from finetune_api.job import FineTuneJob
from finetune_api.ladder import refused_on_cluster
from finetune_api.manifest import ManifestError, Problem, load
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.cli.checked import FieldProblem, ValidatedFile
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


def validate_files(files: list[str], *, as_json: bool = False) -> int:
    """Prints a line per valid manifest, with warnings, and every problem of each invalid one."""
    found = [checked(file) for file in files]
    if as_json:
        print(json.dumps([each.to_json() for each in found], indent=2))
    else:
        for each in found:
            _tell(each)
    return ExitCode.OK if all(each.valid for each in found) else ExitCode.CONFIG


def _tell(found: ValidatedFile) -> None:
    if not found.valid:
        problems = [Problem(each.path, each.message) for each in found.problems]
        print(problems_text(found.file, problems), file=sys.stderr)
        return
    print(f"{found.file}: valid: {found.name}, {found.summary}")
    for warning in found.warnings:
        print(f"{found.file}: {warning}", file=sys.stderr)


def checked(file: str) -> ValidatedFile:
    try:
        job = read_manifest(file)
    except ManifestError as error:
        problems = tuple(FieldProblem(path=each.path, message=each.message) for each in error.problems)
        return ValidatedFile(file=file, valid=False, problems=problems)
    spec = job.spec
    nodes = str(spec.max_nodes) if spec.min_nodes == spec.max_nodes else f"{spec.min_nodes} to {spec.max_nodes}"
    shape = f"{nodes} node(s) with {spec.processes} process(es) each"
    what = shlex.join(spec.command) if spec.command else f"{spec.method.type} on {spec.model.uri}"
    return ValidatedFile(
        file=file, valid=True, name=job.metadata.name, summary=f"{what}, {shape}", warnings=tuple(_warnings(file, spec))
    )


def _warnings(file: str, spec: FineTuneJobSpec) -> Iterator[str]:
    if relative := _of_clusters(file):
        fields = ", ".join(problem.path for problem in relative)
        yield (
            f"valid on this machine only: {fields}: relative path; pods need a URI such as s3://bucket/path or "
            "pvc://claim/path"
        )
    if spec.method.is_auto and (refused := refused_on_cluster(skips=spec.training.skip_bad_batch)):
        yield f"valid with finetune run only: {refused}"
    yield from (f"warning: {warning}" for warning in (*advice(spec), *undecidable(spec)))
