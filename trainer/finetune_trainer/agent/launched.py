"""The result of torchrun's process in the run directory: how each rank of this node ended."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from finetune_api.base import ApiModel
from finetune_trainer.rundir import write_atomic

FILE = "launch.json"


class RankEnd(ApiModel):
    """A rank that did not end with exit status 0, as torchrun saw it."""

    rank: int = Field(description="Global rank.")
    exit_code: int = Field(description="Negative: killed by that signal.")
    time: str = Field(description="RFC 3339, UTC.")
    error: str = Field("", description="The text of its torchelastic error file, if it wrote one.")
    log_tail: str = Field("", description="The end of its standard error.")


class Launch(ApiModel):
    """Written once, when torchrun ends; empty on success."""

    ranks: tuple[RankEnd, ...] = ()
    error: str = Field("", description="torchrun's own failure, such as a rendezvous that never completed.")

    def write(self, run_dir: Path) -> None:
        write_atomic(run_dir / FILE, self.model_dump_json(by_alias=True))

    @classmethod
    def read(cls, run_dir: Path) -> Launch | None:
        try:
            return cls.model_validate_json((run_dir / FILE).read_bytes())
        except FileNotFoundError:
            return None
