"""For each job in tests/data/objects: the objects that the operator creates, and the status that it writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from finetune_api import manifest
from tests.support.golden_objects import created, golden, manifests


@pytest.mark.parametrize("job", manifests(), ids=lambda job: job.stem)
def test_what_a_job_creates_is_what_was_reviewed(job: Path) -> None:
    assert created(job) == golden(job).read_text(), "python -m tests.support.golden_objects writes it again"


@pytest.mark.parametrize("job", manifests(), ids=lambda job: job.stem)
def test_the_manifests_are_valid(job: Path) -> None:
    known = yaml.safe_load(job.read_text())
    known.pop("status", None)
    assert not manifest.validate(known)


def test_every_golden_file_belongs_to_a_manifest() -> None:
    folder = manifests()[0].parent
    assert {path.name for path in folder.glob("*.created.yaml")} == {golden(job).name for job in manifests()}
