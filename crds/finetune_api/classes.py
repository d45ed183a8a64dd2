"""One record for each failure class: exit code, budget of restarts, alert, and the reasons with their hints.

Agent and operator classify failures by these records; budgets, exit codes of the `finetune` command, docs/manifest.md
and the headings of docs/runbooks.md come from them too. A failure has a reason, and its class is the one whose record
has that reason. docs/extending.md describes how to add a class or a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum, auto

from .reasons import ExitCode, FailureClass, Reason
from .restarts import COUNTED, FREE, HALVED, ONCE, Budget


class Echo(IntEnum):
    """Whether a failure may be the consequence of another one; larger values say less about the cause."""

    NONE = 0
    """The failure is a cause, not a consequence."""
    ASKED = 1
    """The process was asked to stop."""
    PEER = 2
    """The process lost a peer; the cause is reported by another node."""


class Reporter(Enum):
    """Which component reports a reason."""

    AGENT = auto()
    """The agent in a pod; the operator may report it too."""
    OPERATOR = auto()
    """Only Kubernetes and its operator."""
    COMMAND = auto()
    """Only the `finetune` command: no job has it."""


@dataclass(frozen=True)
class Cause:
    """Properties of one reason of failure."""

    hint: str
    """Returns the general hint for a reason, used if nothing more specific is known."""
    reported_by: Reporter = Reporter.AGENT
    waited_for: bool = False
    """Whether an attempt waits and has not failed yet, since the cause may go away. After deadlines.startup it fails
    with StartupDeadline."""
    held: bool = False
    """Whether no attempt is created while the cause lasts, however long that is."""
    blames_node: bool = True
    """False if the node is not to blame, whatever the class says."""
    exit_code: int | None = None
    """Exit codes that differ from that of the class."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """Properties of one failure class."""

    exit_code: int
    meaning: str
    """Meaning of the exit code, in the help of the `finetune` command."""
    default: Reason
    """Reason for a process that exits with the code and reports nothing else."""
    budget: Budget | None
    """Budget that another attempt uses. None: not retried, since another attempt cannot help."""
    alert: str | None
    """The alert that fires for it (charts/finetune-operator/rules); None if no action is needed."""
    causes: Mapping[Reason, Cause]
    echo: Echo = Echo.NONE
    blames_node: bool = False
    """Whether the node may be to blame, and is avoided if it happens again."""
    yields: bool = False
    """Whether a Kubernetes status of the pod, such as an eviction, takes precedence."""
    by_script: bool = True
    """Whether a custom script may report the class by its exit code."""

    @property
    def retried(self) -> bool:
        return self.budget is not None

    @property
    def counted(self) -> bool:
        """Whether a retry uses up `retry.maxRestarts`."""
        return self.budget is COUNTED


CLASSES: dict[FailureClass, Traits] = {
    FailureClass.Config: Traits(
        exit_code=ExitCode.CONFIG,
        meaning="manifest or configuration",
        default=Reason.InvalidSpec,
        budget=None,
        alert="FineTuneJobFailed",
        causes={
            Reason.InvalidSpec: Cause("Correct the manifest; `finetune validate FILE` checks it without a cluster."),
            Reason.PolicyViolated: Cause(
                "Create the job again within the administrator's policy, or ask for an exception: the job then starts "
                "by itself.",
                reported_by=Reporter.OPERATOR,
                held=True,
            ),
            Reason.OutputExists: Cause("Choose another output.uri, or set output.overwrite: true."),
            Reason.ModelNotFound: Cause("Check model.uri and model.revision."),
            Reason.ModelUnsupported: Cause("Use a causal language model in safetensors format."),
            Reason.InsufficientMemory: Cause("Use a smaller model, method lora, or more memory."),
            Reason.CommandMissing: Cause(
                "The image does not contain the trainer. Use a trainer image built for this operator."
            ),
            Reason.DeadlineExceeded: Cause(
                "Raise deadlines.active, or train fewer steps. A new job with the same output does not resume this "
                "one.",
                reported_by=Reporter.OPERATOR,
            ),
            Reason.NotFound: Cause(
                "Check the name and the namespace. `finetune status NAME` shows the state of a job.",
                reported_by=Reporter.COMMAND,
                exit_code=ExitCode.NO_INPUT,
            ),
            Reason.AlreadyExists: Cause("Choose another metadata.name.", reported_by=Reporter.COMMAND),
            Reason.WrongPhase: Cause(
                "The job's phase does not allow this command. `finetune status NAME` shows the phase.",
                reported_by=Reporter.COMMAND,
                exit_code=ExitCode.USAGE,
            ),
        },
    ),
    FailureClass.Data: Traits(
        exit_code=ExitCode.DATA,
        meaning="data",
        default=Reason.DataUnreadable,
        budget=None,
        alert="FineTuneJobFailed",
        causes={
            Reason.DataNotFound: Cause("Check the URI. The file must exist and be readable from the pods."),
            Reason.DataEmpty: Cause("Use a file with at least one row."),
            Reason.DataUnreadable: Cause("Fix the row named in the message; the format is one JSON object per line."),
            Reason.DataChanged: Cause(
                "Restore the original file, or start a new run with another FineTuneJob or `finetune run --fresh`."
            ),
            Reason.DataLeak: Cause(
                "Remove the rows from one of the two data sets, or set data.allowDuplicates: true and interpret "
                "scores with care."
            ),
            Reason.LabelsMissing: Cause("Give every row a label, or choose another data.format."),
            Reason.NothingToTrain: Cause("All tokens are masked. Rows need an assistant turn or a completion."),
            Reason.SequenceTooLong: Cause("Raise data.sequenceLength, or set data.overlong to drop or truncate."),
        },
    ),
    FailureClass.Authentication: Traits(
        exit_code=ExitCode.AUTHENTICATION,
        meaning="credentials",
        default=Reason.CredentialsRejected,
        budget=None,
        alert="FineTuneJobStorageFailing",
        causes={
            Reason.CredentialsMissing: Cause(
                "Set credentials.secretName to a Secret with the store's keys. On your own machine, set them as "
                "environment variables (AWS_ACCESS_KEY_ID, HF_TOKEN …)."
            ),
            Reason.CredentialsRejected: Cause(
                "Check the keys in the Secret or in your environment, and their permissions on the bucket."
            ),
        },
    ),
    FailureClass.OutOfMemory: Traits(
        exit_code=ExitCode.OUT_OF_MEMORY,
        meaning="out of memory",
        default=Reason.OutOfMemory,
        budget=HALVED,
        alert="FineTuneJobOutOfMemory",
        causes={
            Reason.OutOfMemory: Cause("Reduce training.microBatchTokens or data.sequenceLength, or use more memory."),
        },
    ),
    FailureClass.NonFinite: Traits(
        exit_code=ExitCode.NON_FINITE,
        meaning="loss not finite",
        default=Reason.LossNonFinite,
        budget=ONCE,
        alert="FineTuneJobLossNonFinite",
        causes={
            Reason.LossNonFinite: Cause(
                "Reduce training.learningRate, and look for invalid rows near the step in the message."
            ),
        },
    ),
    FailureClass.Hang: Traits(
        exit_code=ExitCode.HANG,
        meaning="hang",
        default=Reason.NoProgress,
        budget=COUNTED,
        alert="FineTuneJobCrashLooping",
        blames_node=True,
        causes={
            Reason.NoProgress: Cause("Check the stack traces of the ranks, and the network between the nodes."),
        },
    ),
    FailureClass.PeerLost: Traits(
        exit_code=ExitCode.PEER_LOST,
        meaning="peer lost",
        default=Reason.PeerLost,
        budget=COUNTED,
        alert="FineTuneJobCrashLooping",
        echo=Echo.PEER,
        yields=True,
        causes={
            Reason.PeerLost: Cause("Another pod of the attempt ended first; see its log."),
        },
    ),
    FailureClass.Infrastructure: Traits(
        exit_code=ExitCode.UNAVAILABLE,
        meaning="unavailable",
        default=Reason.StorageUnavailable,
        budget=COUNTED,
        alert="FineTuneJobCrashLooping",
        blames_node=True,
        causes={
            Reason.StorageUnavailable: Cause("Check that the pods can reach the store's endpoint.", blames_node=False),
            Reason.PodFailed: Cause("See the events and the log of the pod."),
            Reason.PodLost: Cause(
                "The pod disappeared without a termination message. Check its node.", reported_by=Reporter.OPERATOR
            ),
            Reason.NodeLost: Cause(
                "The node stopped responding. Check it, and cordon it if this happens again.",
                reported_by=Reporter.OPERATOR,
            ),
            Reason.DiskLimitExceeded: Cause(
                "Raise ephemeral-storage in resources.limits (for /dev/shm: pod.shmSize), or mount a volume at "
                "/var/cache/finetune.",
                blames_node=False,
            ),
            Reason.ImageUnavailable: Cause(
                "Check spec.image, and pod.imagePullSecrets if the registry is private.", waited_for=True
            ),
            Reason.ReferenceMissing: Cause(
                "Create the Secret, ConfigMap, key or claim named in the message. The pods then start by themselves.",
                waited_for=True,
            ),
            Reason.VolumeUnavailable: Cause(
                "Check the volume named in the message. A ReadWriteOnce claim, for example, can be used by one node "
                "at a time.",
                waited_for=True,
            ),
            Reason.Unschedulable: Cause(
                "Request fewer resources, change pod.nodeSelector, pod.tolerations or pod.affinity, or add nodes.",
                waited_for=True,
            ),
            Reason.PodsRefused: Cause(
                "Free or raise the namespace's ResourceQuota, or change what its admission policy rejects.",
                waited_for=True,
            ),
            Reason.StartupDeadline: Cause(
                "Not all pods were running within deadlines.startup. The message says what was missing.",
                reported_by=Reporter.OPERATOR,
            ),
            Reason.SlowStart: Cause(
                "Possible causes are a large image, a volume that does not attach, and the network. See `kubectl "
                "describe pod`.",
                waited_for=True,
            ),
            Reason.ClusterUnavailable: Cause(
                "Check the kubeconfig, the context and your permissions.", reported_by=Reporter.COMMAND
            ),
        },
    ),
    FailureClass.Preemption: Traits(
        exit_code=ExitCode.INTERRUPTED,
        meaning="interrupted (run again to resume)",
        default=Reason.Interrupted,
        budget=FREE,
        alert=None,
        echo=Echo.ASKED,
        yields=True,
        by_script=False,
        causes={
            Reason.Interrupted: Cause("No action needed. The run continues from its last checkpoint."),
            Reason.Evicted: Cause(
                "No action needed. The run continues from its last checkpoint.", reported_by=Reporter.OPERATOR
            ),
            Reason.NodeRefused: Cause(
                "No action needed. The node changed after the pod was scheduled; the next attempt is scheduled again.",
                reported_by=Reporter.OPERATOR,
            ),
            Reason.Preempted: Cause(
                "No action needed. The run continues from its last checkpoint when its queue admits it again.",
                reported_by=Reporter.OPERATOR,
            ),
        },
    ),
    FailureClass.Guard: Traits(
        exit_code=ExitCode.GUARD,
        meaning="held back by a guard",
        default=Reason.GuardViolated,
        budget=None,
        alert="FineTuneJobFailed",
        by_script=False,
        causes={
            Reason.GuardViolated: Cause(
                "See the guards in the report. Change the data or the training, or relax the bound named in the "
                "message."
            ),
            Reason.GuardInconclusive: Cause(
                "Use a test set with as many rows as the message names, or set guards.onInconclusive: warn."
            ),
            Reason.NoGain: Cause(
                "Use the base model, or give more or better training rows; if the decision is inconclusive, as many "
                "validation rows as the message names."
            ),
        },
    ),
    FailureClass.Internal: Traits(
        exit_code=ExitCode.INTERNAL,
        meaning="internal",
        default=Reason.UnexpectedError,
        budget=COUNTED,
        alert="FineTuneJobCrashLooping",
        blames_node=True,
        yields=True,
        by_script=False,
        causes={
            Reason.UnexpectedError: Cause("See the traceback in the log, and please report it."),
            Reason.ScriptFailed: Cause(
                "See the traceback in the log of the rank in the message: `finetune logs NAME`."
            ),
        },
    ),
}

_CLASS_OF = {reason: failure_class for failure_class, traits in CLASSES.items() for reason in traits.causes}
_CAUSES = {reason: cause for traits in CLASSES.values() for reason, cause in traits.causes.items()}
_OF_CODE = {traits.exit_code: failure_class for failure_class, traits in CLASSES.items()}

OF_THE_COMMAND = tuple(
    reason for reason in Reason if reason in _CAUSES and _CAUSES[reason].reported_by is Reporter.COMMAND
)
"""Reasons that only the `finetune` command uses, because it cannot find or reach a job."""

WAITED_FOR = tuple(reason for reason, cause in _CAUSES.items() if cause.waited_for)
"""Reasons for which an attempt waits until deadlines.startup."""

HELD = tuple(reason for reason, cause in _CAUSES.items() if cause.held)
"""Reasons for which no attempt is created, without a time limit."""

OF_THE_OPERATOR = frozenset(
    reason for reason, cause in _CAUSES.items() if cause.waited_for or cause.reported_by is not Reporter.AGENT
)
"""Reasons that no pod can report. Some of them do not cost a restart."""

NODE_NOT_TO_BLAME = frozenset(reason for reason, cause in _CAUSES.items() if not cause.blames_node)
"""Reasons for which no node is to blame, whatever their class says."""


def class_of(reason: Reason) -> FailureClass:
    """Returns the class of a failure's reason. Raises KeyError for a reason that is not a failure."""
    return _CLASS_OF[reason]


def hint_of(reason: Reason) -> str:
    """Returns the general hint for a reason, used if nothing more specific is known."""
    return _CAUSES[reason].hint


def exit_code_of(reason: Reason) -> int:
    """Returns the exit code for a reason. Raises KeyError for a reason that is not a failure."""
    return _CAUSES[reason].exit_code or CLASSES[class_of(reason)].exit_code


def default_reason(exit_code: int) -> Reason | None:
    """Returns the reason for a process that exited with this code and reported nothing else; None for other codes."""
    failure_class = _OF_CODE.get(exit_code)
    return CLASSES[failure_class].default if failure_class else None
