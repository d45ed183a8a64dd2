"""What several files of end-to-end tests stand on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.local_runs import Workspace, model_and_corpus


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and its corpus."""
    return model_and_corpus(tmp_path_factory.mktemp("files"))


@pytest.fixture
def workspace(tmp_path: Path, files: Path) -> Workspace:
    """A folder to run manifests in."""
    return Workspace(folder=tmp_path, files=files)
