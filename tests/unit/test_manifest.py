"""`finetune validate`: every bad manifest is refused where and why a user expects, and every good one is taken."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from finetune_api import manifest, schema
from finetune_api.manifest import ManifestError
from finetune_api.spec import FineTuneJobSpec
from tests.support.invalid_manifests import BAD, UNSEEN
from tests.support.manifests import BASE, Bad, changed
from tests.support.valid_manifests import GOOD

ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in pairwise("abcdefghij")
)
"""Ten thousand million values in 500 characters."""


def test_the_table_is_as_wide_as_promised() -> None:
    assert len(BAD) >= 40
    assert len({bad.name for bad in BAD}) == len(BAD)


@pytest.mark.parametrize("bad", BAD + UNSEEN, ids=lambda bad: bad.name)
def test_a_bad_manifest_is_refused_with_words_that_help(bad: Bad) -> None:
    problems = manifest.validate(bad.new, bad.old)

    assert [p for p in problems if p.path == bad.path and bad.says in p.message], problems


@pytest.mark.parametrize(("name", "changes", "before"), GOOD, ids=[name for name, _, _ in GOOD])
def test_a_good_manifest_is_taken(name: str, changes: dict, before: dict | None) -> None:
    old = None if before is None else changed(BASE, before)

    assert manifest.validate(changed(old or BASE, changes), old) == (), name


def test_numbers_are_read_as_kubectl_reads_them() -> None:
    assert manifest.parse("kind: FineTuneJob\nrate: 1e-4\nday: 2026-01-01") == {
        "kind": "FineTuneJob",
        "rate": 1e-4,
        "day": "2026-01-01",
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "not valid YAML"),
        ("a: 1\na: 2", "duplicate key 'a'"),
        ("", "must contain exactly one FineTuneJob"),
        (yaml.safe_dump_all([BASE, BASE]), "but contains 2"),
        ("- a", "must contain exactly one FineTuneJob"),
        pytest.param("a: " + "[" * 5000 + "]" * 5000, "nested too deeply", id="nested"),
        pytest.param(ALIASES, "more than 100,000 values", id="aliases of aliases"),
        ("a: &a [1, *a]", "an alias stands for something that contains it"),
        pytest.param(f"a: {'9' * 5000}", "not valid YAML", id="a long number"),
    ],
)
def test_a_file_that_is_no_manifest_says_so(text: str, says: str) -> None:
    with pytest.raises(ManifestError, match=says):
        manifest.load(text)


def test_what_is_no_text_says_so(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(b"\xff\xfe")

    with pytest.raises(ManifestError, match=r"job\.yaml is not UTF-8 text"):
        manifest.load(file)


def test_another_kind_is_named() -> None:
    problems = manifest.validate(changed(BASE, {"kind": "FinetuneJob", "apiVersion": "apps/v1"}))

    assert [p.message for p in problems] == [
        "must be finetune.dev/v1alpha1, not apps/v1",
        "must be FineTuneJob, not FinetuneJob",
    ]


def test_one_bad_entry_is_one_problem() -> None:
    problems = manifest.validate(changed(BASE, {"spec.data.train": [{"uri": "s3:/corp/train.jsonl"}]}))

    assert [p.path for p in problems] == ["spec.data.train[0].uri"]


def test_no_form_is_told_as_a_regular_expression() -> None:
    patterns = set(re.findall(r'"pattern": ("(?:[^"\\]|\\.)*")', json.dumps(schema.structural(FineTuneJobSpec))))

    assert patterns
    for pattern in map(json.loads, patterns):
        assert manifest.accepted_form(pattern) != pattern


def test_the_job_is_found_among_other_documents() -> None:
    text = yaml.safe_dump_all([{"kind": "Secret", "metadata": {"name": "s"}}, BASE])

    assert manifest.load(text).metadata.name == "cardiology"


def test_an_older_reader_survives_a_newer_writer() -> None:
    from finetune_api.job import FineTuneJob

    job = FineTuneJob.model_validate_json(json.dumps(changed(BASE, {"spec.invented": {"later": 1}})))

    assert job.spec.model.uri == BASE["spec"]["model"]["uri"]


def test_defaults_come_to_what_the_documents_say() -> None:
    spec = manifest.load(yaml.safe_dump(BASE)).spec

    assert (spec.method.type, spec.nodes, spec.world_size, spec.training.batch_size) == ("lora", 1, 1, 32)
    gpus = manifest.load(
        yaml.safe_dump(changed(BASE, {"spec.nodes": 2, "spec.resources": {"limits": {"nvidia.com/gpu": 4}}}))
    )
    assert gpus.spec.world_size == 8
