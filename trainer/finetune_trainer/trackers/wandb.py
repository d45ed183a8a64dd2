"""Weights & Biases, where WANDB_API_KEY or WANDB_MODE is set; its own variables (WANDB_PROJECT, WANDB_ENTITY,
WANDB_BASE_URL, WANDB_DIR, …) hold as everywhere.

The id of the run is the job's UID, so that all attempts of a job are one run, also those that are synchronised later
(WANDB_MODE=offline). Neither code nor console output nor the command line is sent, only what is logged here, and the
usage of the machine that Weights & Biases measures by itself. The package's reports of its own errors are off unless
WANDB_ERROR_REPORTING says otherwise: they go to the vendor wherever the server is, and each failed start leaves two
threads and more than a megabyte.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .base import Ending, Kind, TrackedRun
from .points import Outcome, Point

PROJECT = "finetune"
STEP = "step"
"""The axis of all curves. W&B's own counter cannot go back, as a run does that resumes from a checkpoint."""


class WeightsAndBiases:
    """A run of Weights & Biases."""

    def __init__(self, run: TrackedRun, environ: Mapping[str, str]) -> None:
        self._run, self._environ = run, environ
        self._wandb: Any = None
        self._logged = -1
        """The last step that an earlier attempt has logged, as far as known."""

    def start(self) -> str:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read by the import
        import wandb

        run = self._run
        if not self._environ.get("WANDB_DIR"):
            (run.folder / "wandb").mkdir(parents=True, exist_ok=True)
        self._wandb = wandb.init(
            project=self._environ.get("WANDB_PROJECT") or PROJECT,
            id=re.sub(r"[^\w-]", "-", run.job.uid),
            resume="allow",
            name=self._environ.get("WANDB_NAME") or run.name,
            group=self._environ.get("WANDB_RUN_GROUP") or run.job.name,
            dir=self._environ.get("WANDB_DIR") or str(run.folder),
            config={**run.settings, "manifest": run.manifest, "output": run.output, "attempt": run.attempt},
            allow_val_change=True,
            settings=wandb.Settings(console="off", silent=True, save_code=False, disable_git=True, x_disable_meta=True),
        )
        self._wandb.define_metric(STEP)
        self._wandb.define_metric("*", step_metric=STEP)
        if self._wandb.resumed:
            self._logged = int(self._wandb.summary.get(STEP) or -1)
        if self._wandb.offline:
            return f"{Path(self._wandb.dir).parent} (offline; wandb sync uploads it)"
        return str(self._wandb.url)

    def log(self, points: Sequence[Point]) -> None:
        for point in points:
            if point.step > self._logged:
                self._wandb.log({STEP: point.step, **point.values})

    def finish(self, outcome: Outcome) -> None:
        self._wandb.log({STEP: outcome.step})
        self._wandb.summary.update({**outcome.values, **outcome.words})
        self._wandb.finish(exit_code=1 if outcome.words.get("refused") else 0)

    def leave(self, ending: Ending) -> None:
        self._wandb.summary.update({"ending": str(ending)})
        self._wandb.finish(exit_code=1)


def _asked_by(environ: Mapping[str, str]) -> str:
    mode = environ.get("WANDB_MODE", "")
    if mode == "disabled" or environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return ""
    return "WANDB_MODE" if mode else "WANDB_API_KEY" if environ.get("WANDB_API_KEY") else ""


WANDB = Kind(title="Weights & Biases", asked_by=_asked_by, open=WeightsAndBiases, module="wandb", package="wandb")
