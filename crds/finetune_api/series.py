"""Every metric that operator and agents export: one record each.

The operator's page, the agents' page, docs/metrics.md and the alerts' tests come from these records. Those that show a
job's progress name the field, and are exported as soon as it has a value. See docs/extending.md for how to add one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, get_args

from .measurements import GuardName
from .methods import TRAITS
from .plan import PHASES
from .status import FailureClass, Phase
from .verdicts import GuardVerdict

Values = tuple[str, ...]


class Scope(StrEnum):
    """Who exports a series, and with which labels beyond its own."""

    JOB = "job"
    """The operator, for each job that it knows."""
    OPERATOR = "operator"
    """The operator, of itself."""
    AGENT = "agent"
    """The agent of a pod."""

    @property
    def labels(self) -> tuple[str, ...]:
        return {
            Scope.JOB: ("namespace", "name"),
            Scope.OPERATOR: (),
            Scope.AGENT: ("namespace", "name", "attempt"),
        }[self]


class Unit(StrEnum):
    """Of a series' values, as docs/metrics.md says it."""

    NONE = ""
    ONE = "1"
    RATIO = "0 to 1"
    FLAG = "0 or 1"
    NATS = "nats per token"
    SECONDS = "seconds"
    MOMENT = "Unix time"
    BYTES = "bytes"


@dataclass(frozen=True, kw_only=True, eq=False)
class Series:
    """What is known of one metric."""

    name: str
    help: str
    """One sentence: what a value means."""
    scope: Scope
    kind: Literal["gauge", "counter", "histogram"] = "gauge"
    unit: Unit = Unit.NONE
    labels: Mapping[str, Values] = field(default_factory=dict)
    """Its own labels, each with the values that it may have; none: they cannot be listed."""
    shows: str = ""
    """The field of `status.Progress`, or of the agent's TrainerReport, that it shows."""
    each: int = 1
    """Series that a job, or a pod, has of it at most."""
    period: str = ""
    """When a job has it, where it is not at any time. No job is in two periods at once."""

    def __str__(self) -> str:
        return self.name

    @property
    def text(self) -> str:
        """What it means, with the values of its labels."""
        told = [f"{label}: {', '.join(values)}" for label, values in self.labels.items() if values]
        return " ".join([self.help, *(f"{each}." for each in told)])

    @property
    def stem(self) -> str:
        """Its name as prometheus_client takes that of a counter."""
        return self.name.removesuffix("_total")


GUARDS: Values = tuple(name for name in get_args(GuardName) if name != "collapse")
"""A job has three series for each. The two on generated text are one, `generation`: the worse of them."""

CLIMBING, JUDGED = "while a ladder decides", "after that, and for other jobs"
"""A ladder's guards are those of the run that publishes, which follows its last decision."""

# For each job
JOB_INFO = Series(
    name="finetune_job_info", help="What the job is.", scope=Scope.JOB, unit=Unit.ONE,
    labels={"method": (), "model": ()},
)  # fmt: skip
JOB_PHASE = Series(
    name="finetune_job_phase", help="The present phase; other phases have no series.", scope=Scope.JOB, unit=Unit.ONE,
    labels={"phase": tuple(Phase)},
)  # fmt: skip
JOB_ATTEMPT = Series(name="finetune_job_attempt", help="Number of the present attempt.", scope=Scope.JOB)
JOB_NODES = Series(name="finetune_job_nodes", help="Pods of the present attempt.", scope=Scope.JOB)
JOB_NODES_WANTED = Series(
    name="finetune_job_nodes_wanted", help="Pods that the job asks for: spec.nodes, or the maximum of its range.",
    scope=Scope.JOB,
)  # fmt: skip
JOB_PROGRESS_RATIO = Series(
    name="finetune_job_progress_ratio", help="Steps done of the steps planned.", scope=Scope.JOB, unit=Unit.RATIO,
    shows="ratio",
)  # fmt: skip
JOB_LOSS = Series(
    name="finetune_job_loss", help="Training loss of the last logged step.", scope=Scope.JOB, unit=Unit.NATS,
    shows="loss",
)  # fmt: skip
JOB_EVAL_LOSS = Series(
    name="finetune_job_eval_loss", help="Validation loss.", scope=Scope.JOB, unit=Unit.NATS, shows="eval_loss"
)  # fmt: skip
JOB_TOKENS_PER_SECOND = Series(
    name="finetune_job_tokens_per_second", help="Tokens that all nodes process in a second.", scope=Scope.JOB,
    shows="tokens_per_second",
)  # fmt: skip
JOB_ETA_SECONDS = Series(
    name="finetune_job_eta_seconds", help="Time to the last step.", scope=Scope.JOB, unit=Unit.SECONDS,
    shows="eta_seconds",
)  # fmt: skip
JOB_LAST_PROGRESS_TIMESTAMP = Series(
    name="finetune_job_last_progress_timestamp_seconds", help="When progress last changed.", scope=Scope.JOB,
    unit=Unit.MOMENT, shows="last_update_time",
)  # fmt: skip
JOB_LAST_CHECKPOINT_TIMESTAMP = Series(
    name="finetune_job_last_checkpoint_timestamp_seconds", help="When the last checkpoint was complete.",
    scope=Scope.JOB, unit=Unit.MOMENT, shows="last_checkpoint_time",
)  # fmt: skip
JOB_GPU_HOURS = Series(
    name="finetune_job_gpu_hours", help="GPU hours of all attempts up to the last status write; none without GPUs.",
    scope=Scope.JOB,
)  # fmt: skip
JOB_WASTED_GPU_HOURS = Series(
    name="finetune_job_wasted_gpu_hours", help="GPU hours without result; see status.usage.", scope=Scope.JOB
)  # fmt: skip
JOB_DEADLINE_SECONDS = Series(
    name="finetune_job_deadline_seconds", help="spec.deadlines, for alerts that fit each job.", scope=Scope.JOB,
    unit=Unit.SECONDS, labels={"deadline": ("startup", "active", "stall")}, each=3,
)  # fmt: skip
JOB_RESTARTS = Series(
    name="finetune_job_restarts", help="Restarts, by whether they count against retry.maxRestarts.", scope=Scope.JOB,
    labels={"counted": ("true", "false")}, each=2,
)  # fmt: skip
JOB_RESTARTS_LEFT = Series(
    name="finetune_job_restarts_left",
    help="Counted restarts that retry.maxRestarts still allows within retry.window.", scope=Scope.JOB,
)  # fmt: skip
JOB_START_TIMESTAMP = Series(
    name="finetune_job_start_timestamp_seconds",
    help="When deadlines.active began to count; none while the job is suspended or queued.", scope=Scope.JOB,
    unit=Unit.MOMENT,
)  # fmt: skip
JOB_LAST_FAILURE_TIMESTAMP = Series(
    name="finetune_job_last_failure_timestamp_seconds",
    help="When the last failure was; also what a pending attempt waits for.", scope=Scope.JOB, unit=Unit.MOMENT,
    labels={"class": tuple(FailureClass), "reason": ()},
)  # fmt: skip
JOB_CHECKPOINT_INTERVAL_SECONDS = Series(
    name="finetune_job_checkpoint_interval_seconds", help="checkpoint.every, if it is a duration.", scope=Scope.JOB,
    unit=Unit.SECONDS,
)  # fmt: skip
JOB_AVOIDED_NODES = Series(
    name="finetune_job_avoided_nodes", help="Nodes that the next attempts avoid.", scope=Scope.JOB
)  # fmt: skip
JOB_ARTIFACT_BYTES = Series(
    name="finetune_job_artifact_size_bytes", help="Size of the committed artifact; none before that.", scope=Scope.JOB,
    unit=Unit.BYTES,
)  # fmt: skip
JOB_GUARD_VALUE = Series(
    name="finetune_job_guard_value",
    help="What a guard measured, in the unit of its bound: a gain, an increase of bits per byte, the worst regression.",
    scope=Scope.JOB, labels={"guard": GUARDS}, each=len(GUARDS), period=JUDGED,
)  # fmt: skip
JOB_GUARD_BOUND = Series(
    name="finetune_job_guard_bound", help="The bound of a guard, as in spec.guards.", scope=Scope.JOB,
    labels={"guard": GUARDS}, each=len(GUARDS), period=JUDGED,
)  # fmt: skip
JOB_GUARD_STATE = Series(
    name="finetune_job_guard_state",
    help="The verdict of a guard; none for inconclusive under guards.onInconclusive: pass.", scope=Scope.JOB,
    unit=Unit.ONE, labels={"guard": GUARDS, "state": get_args(GuardVerdict)},
    each=len(GUARDS), period=JUDGED,
)  # fmt: skip

JOB_LADDER_RUNG = Series(
    name="finetune_job_ladder_rung", help="While a ladder decides: number of the present rung, counted from 1.",
    scope=Scope.JOB, labels={"rung": tuple(TRAITS)}, period=CLIMBING,
)  # fmt: skip
JOB_BUDGET_SPENT_RATIO = Series(
    name="finetune_job_budget_spent_ratio",
    help="While a ladder decides: what its rungs have cost, of ladder.budget (the larger share of GPU hours and "
    "money); above 1 if a rung cost more than its estimate.", scope=Scope.JOB, unit=Unit.RATIO, period=CLIMBING,
)  # fmt: skip

# Of the operator
JOBS_FINISHED = Series(
    name="finetune_jobs_finished_total", help="Jobs that ended, by their last phase and its reason.",
    scope=Scope.OPERATOR, kind="counter", labels={"result": (Phase.Succeeded, Phase.Failed), "reason": ()},
)  # fmt: skip
JOB_FAILURES = Series(
    name="finetune_job_failures_total", help="Failed attempts.", scope=Scope.OPERATOR, kind="counter",
    labels={"class": tuple(FailureClass), "reason": ()},
)  # fmt: skip
RECONCILE_SECONDS = Series(
    name="finetune_operator_reconcile_duration_seconds", help="Time of one reconcile of a job, writes included.",
    scope=Scope.OPERATOR, kind="histogram", unit=Unit.SECONDS,
)  # fmt: skip
RECONCILES = Series(
    name="finetune_operator_reconciles_total", help="Reconciles of jobs.", scope=Scope.OPERATOR, kind="counter",
    labels={"result": ("done", "error")},
)  # fmt: skip
QUEUE_DEPTH = Series(
    name="finetune_operator_queue_depth", help="Jobs that wait for a worker.", scope=Scope.OPERATOR
)  # fmt: skip
QUEUE_OLDEST_SECONDS = Series(
    name="finetune_operator_queue_oldest_seconds", help="How long the first of them has waited.", scope=Scope.OPERATOR,
    unit=Unit.SECONDS,
)  # fmt: skip
API_REQUESTS = Series(
    name="finetune_operator_api_requests_total",
    help="Requests to the API server, watches included; code 0: no answer.", scope=Scope.OPERATOR, kind="counter",
    labels={"verb": ("get", "list", "watch", "create", "update", "patch", "delete"), "resource": (), "code": ()},
)  # fmt: skip
WATCH_AGE_SECONDS = Series(
    name="finetune_operator_watch_age_seconds", help="Time since a watch was answered or brought an event.",
    scope=Scope.OPERATOR, unit=Unit.SECONDS, labels={"resource": (), "namespace": ()},
)  # fmt: skip
LEADER = Series(
    name="finetune_operator_leader", help="1 for the replica that acts, 0 for one that stands by.",
    scope=Scope.OPERATOR, unit=Unit.FLAG,
)  # fmt: skip
OPERATOR_INFO = Series(
    name="finetune_operator_build_info", help="The operator's version.", scope=Scope.OPERATOR, unit=Unit.ONE,
    labels={"version": ()},
)  # fmt: skip

# Of the agent in each training pod
AGENT_UP = Series(
    name="finetune_agent_ranks_alive", help="Ranks of this node with a recent heartbeat.", scope=Scope.AGENT
)  # fmt: skip
AGENT_PHASE = Series(
    name="finetune_agent_phase", help="1 for what the node does at present, 0 for the other phases.",
    scope=Scope.AGENT, unit=Unit.FLAG, labels={"phase": PHASES}, each=len(PHASES),
)  # fmt: skip
TRAIN_STEP = Series(name="finetune_train_step", help="Optimizer steps done.", scope=Scope.AGENT, shows="step")
TRAIN_TOTAL_STEPS = Series(
    name="finetune_train_total_steps", help="Optimizer steps planned.", scope=Scope.AGENT, shows="total_steps"
)  # fmt: skip
TRAIN_LOSS = Series(
    name="finetune_train_loss", help="Training loss of the last logged step.", scope=Scope.AGENT, unit=Unit.NATS,
    shows="loss",
)  # fmt: skip
TRAIN_EVAL_LOSS = Series(
    name="finetune_train_eval_loss", help="Validation loss.", scope=Scope.AGENT, unit=Unit.NATS, shows="eval_loss"
)  # fmt: skip
TRAIN_LEARNING_RATE = Series(
    name="finetune_train_learning_rate", help="Learning rate of the last step.", scope=Scope.AGENT,
    shows="learning_rate",
)  # fmt: skip
TRAIN_GRAD_NORM = Series(
    name="finetune_train_gradient_norm", help="Gradient norm of the last step, before clipping.", scope=Scope.AGENT,
    shows="gradient_norm",
)  # fmt: skip
TRAIN_TOKENS_PER_SECOND = Series(
    name="finetune_train_tokens_per_second", help="Tokens that all nodes process in a second.", scope=Scope.AGENT,
    shows="tokens_per_second",
)  # fmt: skip
TRAIN_TRAINED_TOKENS = Series(
    name="finetune_train_trained_tokens", help="Tokens that the loss was computed on so far.", scope=Scope.AGENT,
    shows="trained_tokens",
)  # fmt: skip
TRAIN_EPOCH = Series(
    name="finetune_train_epoch", help="Passes over the training rows, with fraction.", scope=Scope.AGENT, shows="epoch"
)  # fmt: skip
TRAIN_LAST_STEP_TIMESTAMP = Series(
    name="finetune_train_last_step_timestamp_seconds", help="When the last step ended.", scope=Scope.AGENT,
    unit=Unit.MOMENT, shows="last_step_time",
)  # fmt: skip
TRAIN_LAST_CHECKPOINT_TIMESTAMP = Series(
    name="finetune_train_last_checkpoint_timestamp_seconds", help="When the last checkpoint was written.",
    scope=Scope.AGENT, unit=Unit.MOMENT, shows="last_checkpoint_time",
)  # fmt: skip
MODEL_CACHE_RESULTS: Values = ("hit", "miss", "healed", "bypass")
"""How the shared cache served a model: from the cache, downloaded into it, repaired in it, not used."""
AGENT_MODEL_CACHE_BYTES = Series(
    name="finetune_agent_model_cache_bytes",
    help="Bytes of the node's model, by how the shared cache of models served it; none without such a cache.",
    scope=Scope.AGENT, unit=Unit.BYTES, labels={"result": MODEL_CACHE_RESULTS},
)  # fmt: skip
AGENT_MODEL_CACHE_USED_BYTES = Series(
    name="finetune_agent_model_cache_used_bytes",
    help="Bytes of all models in the shared cache when the node got its own.", scope=Scope.AGENT, unit=Unit.BYTES,
)  # fmt: skip

SERIES: tuple[Series, ...] = tuple(each for each in globals().values() if isinstance(each, Series))
"""All of them."""


def of(scope: Scope) -> tuple[Series, ...]:
    """Those that one page has."""
    return tuple(each for each in SERIES if each.scope is scope)
