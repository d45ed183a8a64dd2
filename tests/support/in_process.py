"""Runs of one rank in this process, from the preflight to the artifact: no agents, no torchrun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_api import names
from finetune_api.failures import FinetuneError, TerminationMessage
from finetune_api.ladder import LadderStatus
from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.agent.climb import climb
from finetune_trainer.agent.preflight import check, foresee
from finetune_trainer.report.record import RunRecord, decode
from finetune_trainer.rundir import RunDir
from finetune_trainer.train.main import explain, words
from finetune_trainer.train.run import run


def plan_of(spec: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> RunPlan:
    monkeypatch.setenv(names.ENV_CACHE, str(folder / "cache"))
    typed = FineTuneJobSpec.model_validate(spec, strict=False)
    return RunPlan(job=JobIdentity(namespace="test", name="small", uid="u-1"), spec=typed)


def rank(plan: RunPlan, folder: Path) -> TerminationMessage:
    run_dir = RunDir(folder / "run")
    run_dir.clear()
    try:
        run(plan, run_dir, {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"})
    except FinetuneError as error:
        return words(explain(error), rank=0, step=0)
    return TerminationMessage()


def trained(spec: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    """Through the preflight and one rank."""
    plan = plan_of(spec, folder, monkeypatch)
    check(plan, cache=folder / "cache")
    ended = rank(plan, folder)
    assert ended.failure_class is None, ended.message
    return decode((Path(spec["output"]["uri"].removeprefix("file://")) / "run.json").read_bytes())


def climbed(spec: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> LadderStatus:
    """All rungs of a ladder, and the run that publishes the best."""
    plan, shown = plan_of(spec, folder, monkeypatch), list[LadderStatus]()
    foreseen = foresee(plan, cache=folder / "cache")
    ended = climb(plan, foreseen=foreseen, run=lambda each, _: rank(each, folder), tell=print, show=shown.append)
    assert ended.failure_class is None, ended.message
    return shown[-1]
