"""`finetune compare ARTIFACT` computes everything in status.evaluation again from the records, and two artifacts by the
same figures."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from finetune_api.failures import ExitCode
from finetune_api.measurements import Evaluation
from finetune_api.plan import JobIdentity
from finetune_trainer.cli.main import main
from finetune_trainer.data.corpus import Marks
from finetune_trainer.statistics.divergence import per_token
from finetune_trainer.store.artifact import commit_artifact
from finetune_trainer.store.opening import open_folder
from finetune_trainer.transfer.evidence import Evidence, Subject, evidence_of, subjects
from finetune_trainer.transfer.generated.files import answer_files
from finetune_trainer.transfer.records import encode
from tests.support.printed_json import conforms
from tests.unit.test_generated_evidence import LOOP, REFERENCES, judged, prose
from tests.unit.test_transfer_evidence import LABELS, classified, measured, texts

FILES = ("code", "wiki")


def run(*, right: float, apart: float, loops: bool) -> tuple[tuple[Subject, ...], Evidence, dict[str, bytes]]:
    """Test and validation rows, general text of two files of which the first is forgotten, a sweep, KL, answers."""
    general = texts(80)
    assert general.marks is not None
    marks = Marks(general.marks.rows, general.marks.groups, (np.arange(80) % 2).astype(np.uint64), FILES)
    corpora = {"test": classified(200), "validation": classified(60), "general": replace(general, marks=marks)}
    base = {name: measured(corpus, 20.0, right=0.5) for name, corpus in corpora.items()}
    tuned = {name: measured(corpus, 20.0, seed=1, right=right) for name, corpus in corpora.items()}
    worse = tuned["general"].nats + np.where(np.arange(80) % 2 == 0, 2.0, 0.0)
    tuned["general"] = replace(tuned["general"], nats=worse)
    given = []
    for each in subjects(corpora, base, tuned):
        if each.kind == "test":
            nats = np.random.default_rng(4).gamma(2, apart, len(each.corpus))
            each = replace(each, apart=nats)
            found = per_token(nats, each.corpus.targets, groups=range(len(nats)))
        else:
            each = replace(each, tried_on=each.corpus, tried={0.0: base[each.name], 0.5: tuned[each.name]})
        given.append(each)
    evidence = evidence_of(tuple(given), LABELS)
    said = judged(prose(60, seed=2), LOOP if loops else prose(50, seed=5), REFERENCES)
    told = {"name": "test", **{name: getattr(found, name) for name in ("value", "low", "high", "rows", "groups")}}
    divergence = Evaluation.model_validate({"kl_to_base": told}).kl_to_base
    evidence = replace(evidence, divergence=divergence, generation=said.told, collapse=said.collapse)
    files = {each.path: encode(each) for each in (subject.data_set(LABELS) for subject in given)}
    return tuple(given), evidence, files | answer_files(said.written)


def committed(folder: Path, files: dict[str, bytes]) -> str:
    identity = JobIdentity(name=folder.name, namespace="default", uid=folder.name)
    commit_artifact(open_folder(folder.as_uri(), prefix=""), {"adapter.bin": b"x", **files}, run=identity,
                    kind="adapter", overwrite=False)  # fmt: skip
    return folder.as_uri()


def close(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(close(found[name], wanted[name]) for name in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(close, found, wanted))
    return bool(found == (pytest.approx(wanted) if isinstance(wanted, float) else wanted))


def test_everything_in_the_status_comes_again_from_the_records(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, evidence, files = run(right=0.9, apart=0.02, loops=True)
    uri = committed(tmp_path / "a", files)
    assert main(["compare", uri, "-o", "json"]) == ExitCode.OK
    again = json.loads(capsys.readouterr().out)
    conforms("compare", again)
    status = evidence.evaluation().to_json()
    for name in ("calibration", "klToBase", "generation", "collapse"):
        assert close(again[name], status[name]), name
    lines = {(each["kind"], each["name"], each["metric"]): each for each in again["data"]}
    for each in (*evidence.measurements, *evidence.sources):
        shown = each.to_json()
        line = lines[each.kind, each.name, each.metric]
        assert close({name: line[name] for name in shown}, shown)
    assert [(each["scale"], each["forgetting"] > 0.05) for each in again["scale"]["curve"]] == [(0, False), (0.5, True)]
    assert [(each.name, each.verdict) for each in evidence.sources] == [
        ("general/code", "worse"), ("general/wiki", "inconclusive"),
    ]  # fmt: skip


def test_two_artifacts_are_compared_by_their_answers_and_by_how_far_they_went(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (
        committed(tmp_path / name, run(right=0.8, apart=apart, loops=loops)[2])
        for name, apart, loops in (("a", 0.02, False), ("b", 0.06, True))
    )
    assert main(["compare", first, second, "-o", "json"]) == ExitCode.OK
    found = json.loads(capsys.readouterr().out)
    assert found["collapse"]["verdict"] == "violated"
    far = next(each for each in found["data"] if each["metric"] == "klToBase")
    assert (far["verdict"], far["low"] > 0) == (None, True)
    assert main(["compare", first, second]) == ExitCode.OK
    shown = capsys.readouterr().out
    assert "test, generated length" in shown
    assert "test klToBase" in shown
    assert "collapse: the variety of generated text drops by" in shown


def test_answers_to_other_prompts_are_not_compared_and_the_numbers_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (run(right=0.8, apart=0.02, loops=False)[2] for _ in range(2))
    path = "evaluation/generated/test.parquet"
    table = parquet.read_table(pyarrow.BufferReader(second[path]))
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table.filter(pyarrow.compute.not_equal(table["row"], f"{0:016x}")), sink)
    second[path] = sink.getvalue().to_pybytes()
    uris = [committed(tmp_path / name, files) for name, files in (("a", first), ("b", second))]
    assert main(["compare", *uris]) == ExitCode.OK
    assert "generated answers: 80 prompts in the first and 79 in the second, 79 in both" in capsys.readouterr().out


def test_a_file_of_answers_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = run(right=0.8, apart=0.02, loops=False)[2] | {"evaluation/generated/test.parquet": b"PAR1"}
    assert main(["compare", committed(tmp_path / "a", files)]) != ExitCode.OK
    assert "is not a file of answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mode", "model", "score", "why"),
    [
        ("greedy", "base", math.nan, "a score is not finite"),
        ("other", "tuned", 0.0, "same prompts|KeyError"),
        ("greedy", "third", 0.0, "same prompts"),
    ],
)
def test_answers_that_no_run_writes_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, model: str, score: float, why: str
) -> None:
    """The first greedy answer of the base model becomes one of another mode or model, or gets another score."""
    files, path = run(right=0.8, apart=0.02, loops=False)[2], "evaluation/generated/test.parquet"
    table = parquet.read_table(pyarrow.BufferReader(files[path]))
    rows = table.to_pylist()
    rows[0] |= {"mode": mode, "model": model, table.column_names[-1]: score}
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=table.schema), sink)
    files[path] = sink.getvalue().to_pybytes()
    assert main(["compare", committed(tmp_path / "a", files)]) != ExitCode.OK
    told = " ".join(capsys.readouterr().err.split())
    assert "is not a file of answers" in told
    assert re.search(why, told)
