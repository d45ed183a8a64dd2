"""The trackers of a run: what of it they are given."""

from __future__ import annotations

import os
from collections.abc import Mapping

from finetune_api.failures import FinetuneError, Reason
from finetune_api.text import redact
from finetune_trainer.report.html import manifest
from finetune_trainer.report.record import RunRecord
from finetune_trainer.trackers.base import Ending, TrackedRun
from finetune_trainer.trackers.group import Trackers, opened

from .setup import Setup
from .state import State


def tracked(setup: Setup, state: State, environ: Mapping[str, str] = os.environ) -> Trackers:
    """Those that the environment asks for; none on other ranks than the first."""
    trainer, plan = setup.trainer, setup.plan
    if not trainer.strategy.place.first:
        return Trackers()
    settings = {"model": setup.spec.model.uri, **setup.resolved.model_dump(by_alias=True, exclude_none=True)}
    part = plan.rung or (plan.remedy.name if plan.remedy else None)
    run = TrackedRun(
        job=plan.job,
        name=f"{plan.job.name}/{part}" if part else plan.job.name,
        attempt=plan.attempt,
        manifest=redact(manifest(RunRecord(job=plan.job, spec=setup.spec, asked=plan.spec))),
        settings={name: redact(value) if isinstance(value, str) else value for name, value in settings.items()},
        output=redact(setup.spec.output.uri),
        folder=trainer.reporter.run_dir.path,
    )
    trackers = opened(run, environ, trainer.reporter.say)
    trackers.progress(state.curve, state.validation)
    return trackers


def ending_of(error: BaseException) -> Ending:
    stopped = isinstance(error, FinetuneError) and error.reason is Reason.Interrupted
    return Ending.interrupted if stopped else Ending.failed
