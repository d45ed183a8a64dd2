"""What the two Grafana dashboards show: fleet (all jobs and the operator) and run (one job).

A panel is one record: the series that it is about, from `finetune_api.series`, gives its unit and the text of its
help; the alerts that it helps to judge are named. tools/dashboards.py turns the records into Grafana's JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from finetune_api import series as s
from finetune_api.series import Series
from finetune_api.status import Phase

FLEET = '{namespace=~"$namespace"}'
RUN = '{namespace="$namespace",name="$name"}'
ALERTS = 'ALERTS{alertname=~"FineTune.+",alertstate="firing"'
JOB = "{{namespace}}/{{name}}"
GPUS = f"""\
label_replace(label_replace(label_replace(
DCGM_FI_DEV_GPU_UTIL or 100 * DCGM_FI_PROF_GR_ENGINE_ACTIVE,
"namespace", "$1", "exported_namespace", "(.+)"), "pod", "$1", "exported_pod", "(.+)"),
"name", "$1", "pod", "(.+)-[0-9]+-[0-9]+-[a-z0-9]+") and on (namespace, name) {s.JOB_PHASE}{RUN}"""
"""GPUs of the chosen run, as charts/finetune-operator/rules/FineTuneJobGPUUnused.yaml finds them."""
WAITING = "|".join((Phase.Pending, Phase.Starting, Phase.Restarting, Phase.Queued))


@dataclass(frozen=True, kw_only=True)
class Query:
    """One PromQL expression, and how Grafana names its series."""

    expr: str
    legend: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel."""

    title: str
    about: Series
    """Its unit and its help are the panel's."""
    queries: tuple[Query, ...]
    alerts: tuple[str, ...] = ()
    """The alerts whose condition the panel shows."""
    kind: Literal["timeseries", "stat", "table"] = "timeseries"
    width: int = 8
    """Of 24 columns."""
    height: int = 7
    unit: str = ""
    """Replaces the unit of the series, in Grafana's terms: where an expression counts series, or subtracts times."""


@dataclass(frozen=True, kw_only=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, kw_only=True)
class Dashboard:
    """One dashboard, and its file in charts/finetune-operator/dashboards."""

    uid: str
    title: str
    about: str
    variables: tuple[str, ...]
    """Labels of a job that a reader chooses, each among those that the choices before it leave."""
    several: bool
    """Whether more than one value of them can be chosen."""
    rows: tuple[Row, ...]


def per_job(series: Series, where: str, *labels: str) -> str:
    """The same from whichever replica exports it."""
    return f"max by ({', '.join(('namespace', 'name', *labels))}) ({series}{where})"


def one(expr: str, legend: str) -> tuple[Query, ...]:
    return (Query(expr=expr, legend=legend),)


def curve(title: str, *shown: Series, alerts: tuple[str, ...] = (), width: int = 8) -> Panel:
    """Series of the chosen run over time. Those of an agent come from each pod; the highest is shown."""
    queries = tuple(Query(expr=f"max ({each}{RUN})", legend=each.name.removeprefix("finetune_")) for each in shown)
    return Panel(title=title, about=shown[0], queries=queries, alerts=alerts, width=width)


def value(title: str, series: Series, *, expr: str = "", legend: str = "", unit: str = "", width: int = 4) -> Panel:
    """The present value of the chosen run."""
    queries = one(expr or f"max ({series}{RUN})", legend or title)
    return Panel(title=title, about=series, queries=queries, kind="stat", width=width, height=4, unit=unit)


FAILURES = ("FineTuneJobFailed", "FineTuneJobLossNonFinite", "FineTuneJobOutOfMemory", "FineTuneJobStorageFailing")
GUARDS = ("FineTuneJobGuardViolated", "FineTuneJobGuardInconclusive")
SINCE_FAILURE = "time() - " + per_job(s.JOB_LAST_FAILURE_TIMESTAMP, "{WHERE}", "class", "reason")
QUANTILE = "histogram_quantile({q}, sum by (le) (rate({name}_bucket[$__rate_interval])))"

OVERVIEW = Row(
    title="Overview",
    panels=(
        Panel(
            title="Firing alerts", about=s.JOB_INFO, kind="table", width=12,
            queries=one(f'max by (severity, alertname, namespace, name) ({ALERTS},namespace=~"$namespace|"}})', ""),
        ),
        Panel(
            title="Jobs by phase", about=s.JOB_PHASE, width=12,
            queries=one(f"count by (phase) ({per_job(s.JOB_PHASE, FLEET, 'phase')})", "{{phase}}"),
        ),
        Panel(
            title="Jobs finished in this time range", about=s.JOBS_FINISHED, kind="stat",
            queries=one(f"sum by (result, reason) (increase({s.JOBS_FINISHED}[$__range]))", "{{result}}: {{reason}}"),
        ),
        Panel(
            title="Pods held and pods asked for", about=s.JOB_NODES,
            queries=(
                Query(expr=f"sum ({per_job(s.JOB_NODES, FLEET)})", legend="of the present attempts"),
                Query(expr=f"sum ({per_job(s.JOB_NODES_WANTED, FLEET)})", legend="asked for"),
            ),
        ),
        Panel(
            title="GPU hours of the jobs that exist", about=s.JOB_GPU_HOURS,
            queries=(
                Query(expr=f"sum ({per_job(s.JOB_GPU_HOURS, FLEET)})", legend="all"),
                Query(expr=f"sum ({per_job(s.JOB_WASTED_GPU_HOURS, FLEET)})", legend="without result"),
            ),
        ),
        Panel(
            title="Jobs by method and model", about=s.JOB_INFO, kind="table",
            queries=one(f"count by (method, model) ({per_job(s.JOB_INFO, FLEET, 'method', 'model')})", ""),
        ),
        Panel(
            title="Pods by what the shared cache of models did", about=s.AGENT_MODEL_CACHE_BYTES, unit="none", width=24,
            queries=one(f"count by (result) ({s.AGENT_MODEL_CACHE_BYTES}{FLEET})", "{{result}}"),
        ),
    ),
)  # fmt: skip
JOBS = Row(
    title="Jobs",
    panels=(
        Panel(
            title="Progress", about=s.JOB_PROGRESS_RATIO, queries=one(per_job(s.JOB_PROGRESS_RATIO, FLEET), JOB),
        ),
        Panel(
            title="Tokens per second, relative to the job's own median of an hour", about=s.JOB_TOKENS_PER_SECOND,
            alerts=("FineTuneJobSlow",), unit="percentunit",
            queries=one(
                f"{per_job(s.JOB_TOKENS_PER_SECOND, FLEET)} / on (namespace, name) max by (namespace, name) "
                f"(quantile_over_time(0.5, {s.JOB_TOKENS_PER_SECOND}{FLEET}[1h]))", JOB,
            ),
        ),
        Panel(
            title="Time without progress, relative to deadlines.stall", about=s.JOB_LAST_PROGRESS_TIMESTAMP,
            alerts=("FineTuneJobStalled",), unit="percentunit",
            queries=one(
                f"(time() - {per_job(s.JOB_LAST_PROGRESS_TIMESTAMP, FLEET)}) / on (namespace, name) "
                + per_job(s.JOB_DEADLINE_SECONDS, FLEET[:-1] + ',deadline="stall"}')
                + f' and on (namespace, name) {s.JOB_PHASE}{{phase="{Phase.Running}"}}', JOB,
            ),
        ),
        Panel(
            title="Jobs whose pods do not all run", about=s.JOB_PHASE,
            alerts=("FineTuneJobPendingTooLong", "FineTuneJobQueuedTooLong"),
            queries=one(per_job(s.JOB_PHASE, FLEET[:-1] + f',phase=~"{WAITING}"}}', "phase"), JOB + " {{phase}}"),
        ),
        Panel(
            title="Restarts that are left", about=s.JOB_RESTARTS_LEFT, alerts=("FineTuneJobRestartsNearlyExhausted",),
            queries=one(per_job(s.JOB_RESTARTS_LEFT, FLEET), JOB),
        ),
        Panel(
            title="Counted restarts", about=s.JOB_RESTARTS, alerts=("FineTuneJobCrashLooping",),
            queries=one(per_job(s.JOB_RESTARTS, FLEET[:-1] + ',counted="true"}'), JOB),
        ),
        Panel(
            title="Time since the last failure", about=s.JOB_LAST_FAILURE_TIMESTAMP, alerts=FAILURES, kind="table",
            width=12, unit="s", queries=one(SINCE_FAILURE.replace("{WHERE}", FLEET), ""),
        ),
        Panel(
            title="Failed attempts by reason", about=s.JOB_FAILURES, width=12,
            queries=one(
                f"sum by (class, reason) (increase({s.JOB_FAILURES}[$__rate_interval]))", "{{class}}: {{reason}}"
            ),
        ),
        Panel(
            title="Nodes that jobs avoid", about=s.JOB_AVOIDED_NODES, alerts=("FineTuneJobNodeAvoided",),
            queries=one(per_job(s.JOB_AVOIDED_NODES, FLEET), JOB),
        ),
        Panel(
            title="Pods that are not scraped", about=s.AGENT_UP, alerts=("FineTuneMetricsMissing",),
            queries=one(
                f'({per_job(s.JOB_NODES, FLEET)} and on (namespace, name) {s.JOB_PHASE}{{phase="{Phase.Running}"}}) '
                f"- on (namespace, name) (count by (namespace, name) ({s.AGENT_UP}{FLEET}) "
                f"or on (namespace, name) 0 * {per_job(s.JOB_NODES, FLEET)})", JOB,
            ),
        ),
        Panel(
            title="Jobs that succeeded and have no artifact", about=s.JOB_ARTIFACT_BYTES, unit="none",
            alerts=("FineTuneJobArtifactMissing",),
            queries=one(
                per_job(s.JOB_PHASE, FLEET[:-1] + f',phase="{Phase.Succeeded}"}}')
                + f" unless on (namespace, name) {s.JOB_ARTIFACT_BYTES}", JOB,
            ),
        ),
        Panel(
            title="Guards that are not passed", about=s.JOB_GUARD_STATE, alerts=GUARDS, kind="table", width=24,
            queries=one(per_job(s.JOB_GUARD_STATE, FLEET[:-1] + ',state!="passed"}', "guard", "state"), ""),
        ),
    ),
)  # fmt: skip
OPERATOR = Row(
    title="Operator",
    panels=(
        Panel(
            title="Replicas and leaders", about=s.LEADER,
            alerts=("FineTuneOperatorDown", "FineTuneOperatorNoLeader"), unit="none",
            queries=(
                Query(expr=f"sum by (version) ({s.OPERATOR_INFO})", legend="replicas, {{version}}"),
                Query(expr=f"sum ({s.LEADER})", legend="leaders"),
            ),
        ),
        Panel(
            title="Reconciles a second", about=s.RECONCILES, alerts=("FineTuneOperatorReconcileErrors",), unit="ops",
            queries=one(f"sum by (result) (rate({s.RECONCILES}[$__rate_interval]))", "{{result}}"),
        ),
        Panel(
            title="Time of a reconcile", about=s.RECONCILE_SECONDS,
            queries=tuple(
                Query(expr=QUANTILE.format(q=q, name=s.RECONCILE_SECONDS), legend=f"{q:.0%}") for q in (0.5, 0.99)
            ),
        ),
        Panel(
            title="Oldest job in the queue", about=s.QUEUE_OLDEST_SECONDS, alerts=("FineTuneOperatorQueueBacklog",),
            queries=one(f"max ({s.QUEUE_OLDEST_SECONDS})", "oldest"),
        ),
        Panel(title="Jobs in the queue", about=s.QUEUE_DEPTH, queries=one(f"max ({s.QUEUE_DEPTH})", "jobs")),
        Panel(
            title="Time since a watch answered", about=s.WATCH_AGE_SECONDS, alerts=("FineTuneOperatorWatchStale",),
            queries=one(f"max by (resource, namespace) ({s.WATCH_AGE_SECONDS})", "{{resource}} {{namespace}}"),
        ),
        Panel(
            title="API requests a second, by answer", about=s.API_REQUESTS, alerts=("FineTuneOperatorThrottled",),
            unit="reqps", width=12,
            queries=one(f"sum by (code) (rate({s.API_REQUESTS}[$__rate_interval]))", "{{code}}"),
        ),
        Panel(
            title="API requests a second, by kind", about=s.API_REQUESTS, unit="reqps", width=12,
            queries=one(
                f"sum by (verb, resource) (rate({s.API_REQUESTS}[$__rate_interval]))", "{{verb}} {{resource}}"
            ),
        ),
    ),
)  # fmt: skip
NOW = Row(
    title="Now",
    panels=(
        value("Phase", s.JOB_PHASE, expr=f"max by (phase) ({s.JOB_PHASE}{RUN})", legend="{{phase}}"),
        value("Progress", s.JOB_PROGRESS_RATIO),
        value("Time left", s.JOB_ETA_SECONDS),
        value("Attempt", s.JOB_ATTEMPT),
        value("Restarts left", s.JOB_RESTARTS_LEFT),
        value("Artifact", s.JOB_ARTIFACT_BYTES),
        value("GPU hours", s.JOB_GPU_HOURS),
        value("GPU hours without result", s.JOB_WASTED_GPU_HOURS),
        value("Step", s.TRAIN_STEP),
        value("Steps planned", s.TRAIN_TOTAL_STEPS),
        value("Epoch", s.TRAIN_EPOCH),
        value("Tokens trained", s.TRAIN_TRAINED_TOKENS, unit="short"),
        value("Time since the last step", s.TRAIN_LAST_STEP_TIMESTAMP, unit="s",
              expr=f"time() - max ({s.TRAIN_LAST_STEP_TIMESTAMP}{RUN})"),
        value("Time since the last failure", s.JOB_LAST_FAILURE_TIMESTAMP, legend="{{class}}: {{reason}}", unit="s",
              expr=SINCE_FAILURE.replace("{WHERE}", RUN)),
    ),
)  # fmt: skip
TRAINING = Row(
    title="Training",
    panels=(
        curve("Loss", s.JOB_LOSS, s.JOB_EVAL_LOSS, alerts=("FineTuneJobOverfitting",), width=12),
        curve("Loss, as the trainer reports it", s.TRAIN_LOSS, s.TRAIN_EVAL_LOSS, width=12),
        curve("Tokens per second", s.JOB_TOKENS_PER_SECOND, s.TRAIN_TOKENS_PER_SECOND, alerts=("FineTuneJobSlow",)),
        curve("Gradient norm", s.TRAIN_GRAD_NORM),
        curve("Learning rate", s.TRAIN_LEARNING_RATE),
    ),
)  # fmt: skip
HEALTH = Row(
    title="Health",
    panels=(
        Panel(
            title="Time without progress", about=s.JOB_LAST_PROGRESS_TIMESTAMP, alerts=("FineTuneJobStalled",),
            unit="s",
            queries=(
                Query(expr=f"time() - max ({s.JOB_LAST_PROGRESS_TIMESTAMP}{RUN})", legend="without progress"),
                Query(expr=f'max ({s.JOB_DEADLINE_SECONDS}{RUN[:-1]},deadline="stall"}})', legend="deadlines.stall"),
            ),
        ),
        Panel(
            title="Expected duration", about=s.JOB_START_TIMESTAMP, alerts=("FineTuneJobDeadlineNear",), unit="s",
            queries=(
                Query(
                    expr=f"time() - max ({s.JOB_START_TIMESTAMP}{RUN}) + max ({s.JOB_ETA_SECONDS}{RUN})",
                    legend="until now, and what is left",
                ),
                Query(expr=f'max ({s.JOB_DEADLINE_SECONDS}{RUN[:-1]},deadline="active"}})', legend="deadlines.active"),
            ),
        ),
        Panel(
            title="Age of the last checkpoint", about=s.TRAIN_LAST_CHECKPOINT_TIMESTAMP, unit="s",
            alerts=("FineTuneJobCheckpointStale",),
            queries=(
                Query(expr=f"time() - max ({s.TRAIN_LAST_CHECKPOINT_TIMESTAMP}{RUN})", legend="age"),
                Query(expr=f"time() - max ({s.JOB_LAST_CHECKPOINT_TIMESTAMP}{RUN})", legend="age, from the status"),
                Query(expr=f"3 * max ({s.JOB_CHECKPOINT_INTERVAL_SECONDS}{RUN})", legend="3 × checkpoint.every"),
            ),
        ),
        Panel(
            title="What the nodes do", about=s.AGENT_PHASE, alerts=("FineTuneJobGPUIdle",),
            queries=one(f"sum by (phase) ({s.AGENT_PHASE}{RUN}) > 0", "{{phase}}"),
        ),
        Panel(
            title="GPU utilisation (dcgm-exporter)", about=s.JOB_PHASE, alerts=("FineTuneJobGPUUnused",),
            unit="percent",
            queries=(
                Query(expr=f"min ({GPUS})", legend="the least used GPU"),
                Query(expr=f"max ({GPUS})", legend="the most used GPU"),
            ),
        ),
        Panel(
            title="Pods and ranks", about=s.AGENT_UP, alerts=("FineTuneMetricsMissing",), unit="none",
            queries=(
                Query(expr=f"max ({s.JOB_NODES}{RUN})", legend="pods"),
                Query(expr=f"max ({s.JOB_NODES_WANTED}{RUN})", legend="pods asked for"),
                Query(expr=f"count ({s.AGENT_UP}{RUN})", legend="pods scraped"),
                Query(expr=f"sum ({s.AGENT_UP}{RUN})", legend="ranks alive"),
            ),
        ),
        Panel(
            title="Restarts", about=s.JOB_RESTARTS,
            alerts=("FineTuneJobCrashLooping", "FineTuneJobRestartsNearlyExhausted"),
            queries=(
                Query(expr=f"max by (counted) ({s.JOB_RESTARTS}{RUN})", legend="counted: {{counted}}"),
                Query(expr=f"max ({s.JOB_RESTARTS_LEFT}{RUN})", legend="left"),
            ),
        ),
        Panel(
            title="Guards: value and bound", about=s.JOB_GUARD_VALUE, width=12,
            queries=(
                Query(expr=f"max by (guard) ({s.JOB_GUARD_VALUE}{RUN})", legend="{{guard}}"),
                Query(expr=f"max by (guard) ({s.JOB_GUARD_BOUND}{RUN})", legend="{{guard}}: bound"),
            ),
        ),
        Panel(
            title="Guards: verdict", about=s.JOB_GUARD_STATE, alerts=GUARDS, kind="table", width=12,
            queries=one(f"max by (guard, state) ({s.JOB_GUARD_STATE}{RUN})", ""),
        ),
        Panel(
            title="Ladder: present rung", about=s.JOB_LADDER_RUNG, width=12,
            queries=one(f"max by (rung) ({s.JOB_LADDER_RUNG}{RUN})", "{{rung}}"),
        ),
        Panel(
            title="Ladder: budget spent", about=s.JOB_BUDGET_SPENT_RATIO, width=12,
            queries=one(f"max ({s.JOB_BUDGET_SPENT_RATIO}{RUN})", "spent"),
        ),
        Panel(
            title="Shared cache of models", about=s.AGENT_MODEL_CACHE_BYTES, width=24,
            queries=(
                Query(expr=f"sum by (result) ({s.AGENT_MODEL_CACHE_BYTES}{RUN})", legend="own model: {{result}}"),
                Query(expr=f"max ({s.AGENT_MODEL_CACHE_USED_BYTES}{RUN})", legend="all models in the cache"),
            ),
        ),
    ),
)  # fmt: skip
DASHBOARDS = (
    Dashboard(
        uid="finetune-fleet", title="FineTuneJobs: fleet", variables=("namespace",), several=True,
        about="All FineTuneJobs of the chosen namespaces, and the operator.", rows=(OVERVIEW, JOBS, OPERATOR),
    ),
    Dashboard(
        uid="finetune-run", title="FineTuneJobs: run", variables=("namespace", "name"), several=False,
        about="One FineTuneJob: progress, curves, deadlines and guards.", rows=(NOW, TRAINING, HEALTH),
    ),
)  # fmt: skip
