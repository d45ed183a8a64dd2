"""Where runs on this machine keep what they know. Needs nothing that trains, so that `finetune status` does not either.

.finetune/runs/<name>/job.json                  the FineTuneJob with its status, as a cluster would hold it
.finetune/runs/<name>/node-<i>/                 a node's run directory
.finetune/runs/<name>/node-<i>/attempt-<k>.log  what that agent and its ranks said
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from finetune_api.job import FineTuneJob
from finetune_trainer.rundir import write_atomic


@dataclass(frozen=True)
class Home:
    """Where local runs keep what they know."""

    path: Path

    @property
    def cache(self) -> Path:
        """Models and tokenized data, for all runs."""
        return self.path.absolute() / "cache"

    def run(self, name: str) -> Path:
        return self.path / "runs" / name

    def node(self, name: str, node: int) -> Path:
        return self.run(name) / f"node-{node}"

    def log(self, name: str, *, node: int, attempt: int) -> Path:
        return self.node(name, node) / f"attempt-{attempt}.log"

    def load(self, name: str) -> FineTuneJob | None:
        """What an earlier run left; None if there was none, or of a version that cannot be read."""
        try:
            return FineTuneJob.model_validate_json((self.run(name) / "job.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def names(self) -> list[str]:
        """Of all runs, sorted."""
        return sorted(file.parent.name for file in (self.path / "runs").glob("*/job.json"))

    def save(self, job: FineTuneJob) -> None:
        write_atomic(self.run(job.metadata.name) / "job.json", json.dumps(job.to_json(), indent=1) + "\n")
