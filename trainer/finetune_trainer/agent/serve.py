"""/metrics for Prometheus, /progress for the operator, /healthz for people. Three answers to GET, nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from finetune_api import pages, series
from finetune_api.ladder import LadderStatus
from finetune_api.pages import TEXT, Limits, Page, Route
from finetune_api.plan import PHASES, ProgressReport, RunPlan
from finetune_api.series import Scope, Series
from finetune_trainer.rundir import RunDir
from finetune_trainer.store.shared_leases import cache_outcome

ALIVE_SECONDS = 300
"""A rank whose last heartbeat is older counts as gone."""

KEPT_SECONDS = 1.0
"""For which /metrics shows the same page, however often it is asked for."""

SHOWN = tuple(each for each in series.of(Scope.AGENT) if each.shows)
"""Those that show a field of rank 0's report."""


class RunCollector(Collector):
    """Reads the run directory at scrape time, so nothing is ever stale."""

    def __init__(self, *, plan: RunPlan, run_dir: RunDir, phase: Callable[[], str]) -> None:
        self.plan, self.run_dir, self.phase = plan, run_dir, phase

    def collect(self) -> Iterator[Metric]:
        job, attempt = self.plan.job, str(self.plan.attempt)
        oldest = time.time() - ALIVE_SECONDS
        families = {each: _family(each) for each in series.of(Scope.AGENT)}
        for of, labels, value in self._samples(oldest):
            families[of].add_metric((job.namespace, job.name, attempt, *labels), value)
        yield from (family for family in families.values() if family.samples)

    def _samples(self, oldest: float) -> Iterator[tuple[Series, tuple[str, ...], float]]:
        yield series.AGENT_UP, (), sum(beat.time >= oldest for beat in self.run_dir.heartbeats().values())
        present = progress(self.plan, self.run_dir, self.phase()).phase
        for phase in PHASES:
            yield series.AGENT_PHASE, (phase,), float(phase == present)
        if (outcome := cache_outcome(self.run_dir.path)) is not None:
            yield series.AGENT_MODEL_CACHE_BYTES, (outcome.result,), outcome.model_bytes
            yield series.AGENT_MODEL_CACHE_USED_BYTES, (), outcome.used_bytes
        report = self.run_dir.report()
        if report is None:
            return
        for of in SHOWN:
            where = report if of.shows in type(report).model_fields else report.progress
            if (value := getattr(where, of.shows)) is not None:
                yield of, (), value


def _family(of: Series) -> GaugeMetricFamily:
    return GaugeMetricFamily(of.name, of.text, labels=(*of.scope.labels, *of.labels))


def progress(plan: RunPlan, run_dir: RunDir, phase: str, ladder: LadderStatus | None = None) -> ProgressReport:
    """What rank 0 reported; before it could, and once it is gone, the agent's own phase. Results of rungs are in
    `ladder`; the job's are those of the run that publishes, after the ladder has stopped."""
    report = run_dir.report()
    who = ProgressReport(attempt=plan.attempt, phase=phase, uid=plan.job.uid, nonce=plan.nonce, ladder=ladder)
    if report is None:
        return who
    climbing = plan.spec.method.is_auto and (ladder is None or ladder.stop_reason is None)
    shown = ("progress", "plan") if climbing else ("progress", "plan", "evaluation", "artifact")
    told = {name: getattr(report, name) for name in shown}
    own = phase if phase in ("done", "failed") else report.phase
    return who.model_copy(update={**told, "phase": own})


@contextmanager
def serving(
    address: str,
    port: int,
    *,
    plan: RunPlan,
    run_dir: RunDir,
    phase: Callable[[], str],
    ladder: Callable[[], LadderStatus | None] = lambda: None,
    limits: Limits | None = None,
) -> Iterator[int]:
    """Answers in the background while the block runs; yields the port. OSError if the port is taken.

    /progress is for the operator, which has the plan's token; a plan without one was made by an older operator."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunCollector(plan=plan, run_dir=run_dir, phase=phase))

    def report() -> Page:
        text = progress(plan, run_dir, phase(), ladder()).model_dump_json(by_alias=True, exclude_none=True)
        return Page("application/json", text.encode())

    token = plan.token
    routes = {
        "/metrics": Route(lambda: Page(CONTENT_TYPE_LATEST, generate_latest(registry)), keep=lambda _: KEPT_SECONDS),
        "/progress": Route(report, token=(lambda: token) if token else None),
        "/healthz": Route(lambda: Page(TEXT, b"ok\n")),
    }
    with pages.serving(address, port, routes, limits=limits) as found:
        yield found
