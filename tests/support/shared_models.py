"""Pods that share a cache of models, and a bucket that counts what it gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from finetune_api import names
from finetune_api.spec import ModelSource
from finetune_trainer.store import remote_models
from finetune_trainer.store.folder import Digest
from finetune_trainer.store.models import LocalModel, resolve_model
from finetune_trainer.store.object_store import ObjectFolder
from finetune_trainer.store.shared_leases import cache_outcome
from finetune_trainer.store.shared_lock import Pace
from tests.unit.test_store_models import MODEL

SOURCE = ModelSource(uri="s3://corp/model")
QUICK = Pace(beat=0.02, dead=600, dead_here=0.1, poll=0.01)
"""A holder that lives keeps its lock, also on a machine that lets it wait for minutes."""


@dataclass(frozen=True)
class Bucket(ObjectFolder):
    given: Counter[str] = field(default_factory=Counter)
    before: list[Callable[[str], None]] = field(default_factory=list)
    """Called with the name of each file that is about to be given."""

    def download(self, path: str, target: Path) -> Digest:
        self.given[path] += 1
        for call in self.before:
            call(path)
        return super().download(path, target)


@dataclass
class Pod:
    """Asks for the model as the processes of a pod do."""

    tmp: Path
    name: str = "pod"
    said: list[str] = field(default_factory=list)
    more: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.notes.mkdir(parents=True, exist_ok=True)

    @property
    def notes(self) -> Path:
        return self.tmp / self.name / "model-cache"

    @property
    def root(self) -> Path:
        return self.tmp / "shared"

    @property
    def environ(self) -> dict[str, str]:
        return {names.ENV_MODEL_CACHE: str(self.root), names.ENV_MODEL_CACHE_NOTES: str(self.notes)} | self.more

    def resolve(self, source: ModelSource = SOURCE) -> LocalModel:
        return resolve_model(source, cache=self.tmp / self.name, environ=self.environ, tell=self.said.append)

    @property
    def result(self) -> str:
        outcome = cache_outcome(self.tmp / self.name)
        return outcome.result if outcome else ""


def counting(patch: pytest.MonkeyPatch) -> Bucket:
    """What `s3://corp/model` is opened as from now on; it holds a model."""
    folder = Bucket("s3://corp/model", "corp", "", MemoryStore())
    for name, data in MODEL.items():
        folder.put(name, data)
    patch.setattr(remote_models, "open_folder", lambda *_, **__: folder)
    patch.setattr("finetune_trainer.store.fetch.open_folder", lambda *_, **__: folder)
    return folder
