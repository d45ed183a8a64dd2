"""The pages of an operator that has seen everything, and of an agent whose trainer has reported everything."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prometheus_client.core import Metric
from prometheus_client.registry import CollectorRegistry

from finetune_api import names
from finetune_api.failures import Reason
from finetune_api.ladder import LadderStatus, RungStatus
from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.status import Phase, Progress
from finetune_operator.kube.resources import FINETUNEJOBS
from finetune_operator.kube.workqueue import WorkQueue
from finetune_operator.metrics import Counters, State
from finetune_operator.state.cache import Cache
from finetune_operator.state.status import failure_of, rfc3339
from finetune_trainer.agent.serve import RunCollector
from finetune_trainer.rundir import RunDir, TrainerReport
from finetune_trainer.store.shared_entries import Shelf
from finetune_trainer.store.shared_leases import Leases, Outcome, keeping
from tests.support.operator_objects import NOW, SPEC, raw_job, spec

PROGRESS = Progress(
    step=5, total_steps=10, loss=2.5, eval_loss=2.0, tokens_per_second=9.0, eta_seconds=3, percent=50,
    last_update_time=rfc3339(NOW), last_checkpoint_time=rfc3339(NOW),
)  # fmt: skip
"""Every field of it has a value."""


CLIMBING = LadderStatus(
    rule="few rows",
    rungs=(
        RungStatus(name="fewShot", state="done"),
        RungStatus(name="probe", state="done", cost=1.0),
        RungStatus(name="lora", state="running"),
    ),
    spent=1.0, budget=4.0, money_spent=3.0, money_budget=6.0,
)  # fmt: skip
"""It has both series of a ladder."""


class Ages:
    """A watcher of one watch."""

    def age_seconds(self) -> dict[tuple[str, str | None], float]:
        return {("pods", "ml"): 1.0}


def of_operator() -> tuple[Metric, ...]:
    """Of an operator that has seen everything that happens."""
    cache, counters = Cache(), Counters()
    status = {
        "phase": "Running", "attempt": 1, "nodes": 2, "startTime": rfc3339(NOW), "progress": PROGRESS.to_json(),
        "usage": {"gpuHours": 2.0, "wastedGpuHours": 0.5},
        "lastFailure": failure_of(Reason.NoProgress, "m", attempt=1, at=NOW).to_json(),
        "artifact": {"uri": "s3://corp/out", "digest": "0", "sizeBytes": 9, "kind": "adapter"},
        "evaluation": {"guards": [{"name": "minGain", "bound": 0.0, "value": 0.1, "verdict": "passed"}]},
    }  # fmt: skip
    climbing = {"phase": "Running", "attempt": 1, "ladder": CLIMBING.to_json()}
    climber = raw_job(uid="c", status=climbing, spec=SPEC | {"method": {"type": "auto"}})
    climber["metadata"]["name"] = "climber"
    cache.feed(FINETUNEJOBS, None, climber)
    cache.feed(FINETUNEJOBS, None, raw_job(status=status, spec=SPEC | {"deadlines": {"active": "1d"}}))
    counters.request("GET", "/api/v1/pods", True, 200)
    counters.reconciles.labels("done").inc()
    counters.failures.labels("Hang", Reason.NoProgress).inc()
    counters.finished.labels(Phase.Failed, Reason.NoProgress).inc()
    counters.registry.register(State(cache, WorkQueue(), Ages()))  # type: ignore[arg-type]
    return tuple(counters.registry.collect())


def of_agent(folder: Path) -> tuple[Metric, ...]:
    """Of an agent whose trainer has reported everything."""
    run_dir = RunDir(folder)
    with keeping(folder, {names.ENV_MODEL_CACHE: str(folder)}) as given:
        leases = Leases(Shelf(folder), Path(given[names.ENV_MODEL_CACHE_NOTES]))
        leases.end(Outcome(result="miss", model_bytes=9, used_bytes=9))
    run_dir.write_report(
        TrainerReport(
            attempt=1,
            phase="training",
            progress=PROGRESS,
            last_step_time=1.0,
            last_checkpoint_time=1.0,
            learning_rate=1e-4,
            gradient_norm=1.0,
        )
    )
    job = JobIdentity(name="a", namespace="ml", uid="u")
    plan = RunPlan(job=job, attempt=1, nodes=1, spec=spec(nodes=1))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RunCollector(plan=plan, run_dir=run_dir, phase=lambda: "training"))
    return tuple(registry.collect())


def label_sets(metrics: Iterable[Metric]) -> dict[str, set[frozenset[str]]]:
    """Names of series with the label sets that they have."""
    found: dict[str, set[frozenset[str]]] = {}
    for metric in metrics:
        for sample in metric.samples:
            found.setdefault(sample.name, set()).add(frozenset(sample.labels))
    return found
