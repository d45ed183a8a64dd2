"""What can go wrong, in words that status, exit code, log and terminal share.

Every failure has a class (who decides about a retry), a reason (what alerts match on) and a hint (what a person does
next). Exit codes are those of sysexits.h where one fits; 80 and up are our own.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from pydantic import Field

from .base import ApiModel
from .names import TERMINATION_LIMIT
from .status import Artifact, Evaluation, FailureClass, ResolvedPlan


class ExitCode:
    """Of every process that we start, and of the `finetune` command."""

    OK = 0
    USAGE = 64
    DATA = 65
    NO_INPUT = 66
    """Of the `finetune` command: what it was asked about is not there."""
    UNAVAILABLE = 69
    INTERNAL = 70
    INTERRUPTED = 75
    """Stopped on request after a checkpoint: running again resumes."""
    AUTHENTICATION = 77
    CONFIG = 78
    OUT_OF_MEMORY = 80
    NON_FINITE = 81
    HANG = 82
    PEER_LOST = 83


class Reason(StrEnum):
    """Reasons of failures and conditions. Stable: alert rules match on them."""

    # failures, by class
    InvalidSpec = "InvalidSpec"
    OutputExists = "OutputExists"
    ModelNotFound = "ModelNotFound"
    ModelUnsupported = "ModelUnsupported"
    InsufficientMemory = "InsufficientMemory"
    DataNotFound = "DataNotFound"
    DataEmpty = "DataEmpty"
    DataUnreadable = "DataUnreadable"
    DataChanged = "DataChanged"
    DataLeak = "DataLeak"
    LabelsMissing = "LabelsMissing"
    NothingToTrain = "NothingToTrain"
    SequenceTooLong = "SequenceTooLong"
    CredentialsMissing = "CredentialsMissing"
    CredentialsRejected = "CredentialsRejected"
    OutOfMemory = "OutOfMemory"
    LossNonFinite = "LossNonFinite"
    NoProgress = "NoProgress"
    PeerLost = "PeerLost"
    StorageUnavailable = "StorageUnavailable"
    PodFailed = "PodFailed"
    PodLost = "PodLost"
    NodeLost = "NodeLost"
    DiskLimitExceeded = "DiskLimitExceeded"
    CommandMissing = "CommandMissing"
    ImageUnavailable = "ImageUnavailable"
    ReferenceMissing = "ReferenceMissing"
    VolumeUnavailable = "VolumeUnavailable"
    Unschedulable = "Unschedulable"
    PodsRefused = "PodsRefused"
    StartupDeadline = "StartupDeadline"
    DeadlineExceeded = "DeadlineExceeded"
    SlowStart = "SlowStart"
    Interrupted = "Interrupted"
    Evicted = "Evicted"
    Preempted = "Preempted"
    UnexpectedError = "UnexpectedError"
    ScriptFailed = "ScriptFailed"
    # of the finetune command alone
    NotFound = "NotFound"
    ClusterUnavailable = "ClusterUnavailable"
    # conditions and events of the life cycle
    GangCreated = "GangCreated"
    GangRunning = "GangRunning"
    Restarting = "Restarting"
    RestartsExhausted = "RestartsExhausted"
    Queued = "Queued"
    Admitted = "Admitted"
    Grouped = "Grouped"
    OneByOne = "OneByOne"
    ScaledDown = "ScaledDown"
    ScaledUp = "ScaledUp"
    Suspended = "Suspended"
    Resumed = "Resumed"
    Succeeded = "Succeeded"
    Finished = "Finished"


class Rule(NamedTuple):
    """What a failure class means for the process and for the next attempt."""

    exit_code: int
    retried: bool
    counted: bool
    """Whether a retry uses up `retry.maxRestarts`. What is neither counted nor Preemption has a bound of its own:
    see budget."""


CLASSES: dict[FailureClass, Rule] = {
    FailureClass.Config: Rule(ExitCode.CONFIG, retried=False, counted=True),
    FailureClass.Data: Rule(ExitCode.DATA, retried=False, counted=True),
    FailureClass.Authentication: Rule(ExitCode.AUTHENTICATION, retried=False, counted=True),
    FailureClass.OutOfMemory: Rule(ExitCode.OUT_OF_MEMORY, retried=True, counted=False),
    FailureClass.NonFinite: Rule(ExitCode.NON_FINITE, retried=True, counted=False),
    FailureClass.Hang: Rule(ExitCode.HANG, retried=True, counted=True),
    FailureClass.PeerLost: Rule(ExitCode.PEER_LOST, retried=True, counted=True),
    FailureClass.Infrastructure: Rule(ExitCode.UNAVAILABLE, retried=True, counted=True),
    FailureClass.Preemption: Rule(ExitCode.INTERRUPTED, retried=True, counted=False),
    FailureClass.Internal: Rule(ExitCode.INTERNAL, retried=True, counted=True),
}

OF_THE_COMMAND = (Reason.NotFound, Reason.ClusterUnavailable)
"""Reasons that no job has: what the `finetune` command was asked about cannot be seen."""

_EXIT_CODES: dict[Reason, int] = {Reason.NotFound: ExitCode.NO_INPUT}
"""Where it is not that of the class."""

_REASONS: dict[Reason, tuple[FailureClass, str]] = {
    Reason.InvalidSpec: (
        FailureClass.Config,
        "Correct the manifest; `finetune validate FILE` checks it without a cluster.",
    ),
    Reason.OutputExists: (FailureClass.Config, "Choose another output.uri, or set output.overwrite: true."),
    Reason.ModelNotFound: (FailureClass.Config, "Check model.uri and model.revision."),
    Reason.ModelUnsupported: (FailureClass.Config, "Use a causal language model in safetensors format."),
    Reason.InsufficientMemory: (FailureClass.Config, "Use a smaller model, method lora, or more memory."),
    Reason.DataNotFound: (FailureClass.Data, "Check the URI: the file must exist and be readable from the pods."),
    Reason.DataEmpty: (FailureClass.Data, "Give a file with at least one row."),
    Reason.DataUnreadable: (
        FailureClass.Data,
        "Correct the row that the message names; the format is one JSON object a line.",
    ),
    Reason.DataChanged: (
        FailureClass.Data,
        "Put the file back as it was, or begin anew: another FineTuneJob, or finetune run --fresh.",
    ),
    Reason.DataLeak: (
        FailureClass.Data,
        "Take the rows out of one of the two sets, or set data.allowDuplicates: true and read the scores with care.",
    ),
    Reason.LabelsMissing: (FailureClass.Data, "Give every row a label, or choose another data.format."),
    Reason.NothingToTrain: (FailureClass.Data, "Every token is masked: rows need an assistant turn or a completion."),
    Reason.SequenceTooLong: (FailureClass.Data, "Raise data.sequenceLength, or set data.overlong to drop or truncate."),
    Reason.CredentialsMissing: (
        FailureClass.Authentication,
        "Name a Secret with the store's keys in credentials.secretName; on your own machine set them in the "
        "environment (AWS_ACCESS_KEY_ID, HF_TOKEN …).",
    ),
    Reason.CredentialsRejected: (
        FailureClass.Authentication,
        "Check the keys, in the Secret or in your environment, and their rights on the bucket.",
    ),
    Reason.OutOfMemory: (
        FailureClass.OutOfMemory,
        "Lower training.microBatchTokens or data.sequenceLength, or give more memory.",
    ),
    Reason.LossNonFinite: (
        FailureClass.NonFinite,
        "Lower training.learningRate; look for broken rows around the step named.",
    ),
    Reason.NoProgress: (FailureClass.Hang, "Look at the stacks and the network between the nodes."),
    Reason.PeerLost: (FailureClass.PeerLost, "Another node of the gang ended first: look at its log."),
    Reason.StorageUnavailable: (
        FailureClass.Infrastructure,
        "Check that the store's endpoint can be reached from the pods.",
    ),
    Reason.PodFailed: (FailureClass.Infrastructure, "Look at the pod's events and log."),
    Reason.PodLost: (FailureClass.Infrastructure, "The pod went away without a word: look at its node."),
    Reason.NodeLost: (FailureClass.Infrastructure, "The node fell silent: look at it, and take it out if it repeats."),
    Reason.DiskLimitExceeded: (
        FailureClass.Infrastructure,
        "Raise ephemeral-storage in resources.limits (pod.shmSize for /dev/shm), or mount a volume of your own at "
        "/var/cache/finetune.",
    ),
    Reason.CommandMissing: (FailureClass.Config, "The image lacks the trainer: use one made for this operator."),
    Reason.ImageUnavailable: (
        FailureClass.Infrastructure,
        "Check spec.image, and pod.imagePullSecrets if the registry is private.",
    ),
    Reason.ReferenceMissing: (
        FailureClass.Config,
        "Create the Secret, ConfigMap, key or claim that the message names: the pods start by themselves then.",
    ),
    Reason.VolumeUnavailable: (
        FailureClass.Infrastructure,
        "Look at the volume that the message names: a ReadWriteOnce claim, for one, serves one node at a time.",
    ),
    Reason.Unschedulable: (
        FailureClass.Infrastructure,
        "Lower resources, change pod.nodeSelector, pod.tolerations or pod.affinity, or add nodes.",
    ),
    Reason.PodsRefused: (
        FailureClass.Infrastructure,
        "Make room in the namespace's ResourceQuota, or change what its policy refuses.",
    ),
    Reason.StartupDeadline: (
        FailureClass.Infrastructure,
        "Not all pods ran in time: the message tells what was missing; deadlines.startup is the time they have.",
    ),
    Reason.DeadlineExceeded: (
        FailureClass.Config,
        "Raise deadlines.active, or train less; a new job with the same output does not resume this one.",
    ),
    Reason.SlowStart: (
        FailureClass.Infrastructure,
        "A large image, a volume that does not attach, or the network: see `kubectl describe pod`.",
    ),
    Reason.Interrupted: (FailureClass.Preemption, "Nothing to do: the run continues from its last checkpoint."),
    Reason.Evicted: (FailureClass.Preemption, "Nothing to do: the run continues from its last checkpoint."),
    Reason.ScriptFailed: (
        FailureClass.Internal,
        "Read the traceback in the log of the rank named: `finetune logs NAME`.",
    ),
    Reason.Preempted: (
        FailureClass.Preemption,
        "Nothing to do: the run continues from its last checkpoint when its queue admits it again.",
    ),
    Reason.NotFound: (FailureClass.Config, "Check the name; `finetune status NAME` tells what there is of a job."),
    Reason.ClusterUnavailable: (FailureClass.Infrastructure, "Check the kubeconfig, the context and your rights."),
    Reason.UnexpectedError: (FailureClass.Internal, "Read the traceback in the log; please report it."),
}


def class_of(reason: Reason) -> FailureClass:
    """The class of a failure's reason; KeyError for a reason that is no failure."""
    return _REASONS[reason][0]


def hint_of(reason: Reason) -> str:
    """What a person can do about it when nothing more specific is known."""
    return _REASONS[reason][1]


def exit_code_of(reason: Reason) -> int:
    """Of a process that ends with a failure; KeyError for a reason that is no failure."""
    return _EXIT_CODES.get(reason) or CLASSES[class_of(reason)].exit_code


class FinetuneError(Exception):
    """A failure that a user can read: what was wrong and where (message), what to do (hint)."""

    def __init__(self, reason: Reason, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.hint = hint or hint_of(reason)

    @property
    def failure_class(self) -> FailureClass:
        return class_of(self.reason)

    @property
    def exit_code(self) -> int:
        return exit_code_of(self.reason)

    def __str__(self) -> str:
        return f"{self.reason}: {self.message} ({self.hint})"


class LastWords(ApiModel):
    """The termination message of an agent: why it ended, and what it achieved. At most 4096 bytes of JSON."""

    failure_class: FailureClass | None = Field(None, alias="class")
    reason: Reason | None = None
    message: str = ""
    hint: str = ""
    exit_code: int = 0
    rank: int | None = None
    """Global rank of the first process that failed, if one is to blame."""
    node: int = 0
    """Node rank of the agent that speaks."""
    time: str = ""
    """RFC 3339, UTC: when the culprit failed, by which the first is told from its victims."""
    step: int | None = None
    plan: ResolvedPlan | None = None
    evaluation: Evaluation | None = None
    artifact: Artifact | None = None

    def encode(self) -> str:
        """JSON that fits into a termination message: slices go first, then evaluation, then the message's middle."""
        words = self
        for shorter in (_as_is, _without_slices, _without_evaluation, _with_short_text):
            words = shorter(words)
            text = words.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True)
            if len(text.encode()) <= TERMINATION_LIMIT:
                return text
        raise AssertionError("a message of a thousand characters fits")


def _as_is(words: LastWords) -> LastWords:
    return words


def _without_slices(words: LastWords) -> LastWords:
    if words.evaluation is None:
        return words
    return words.model_copy(update={"evaluation": words.evaluation.model_copy(update={"slices": ()})})


def _without_evaluation(words: LastWords) -> LastWords:
    return words.model_copy(update={"evaluation": None})


def _with_short_text(words: LastWords) -> LastWords:
    message = words.message if len(words.message) <= 600 else f"{words.message[:300]} … {words.message[-290:]}"
    return words.model_copy(update={"message": message.encode("ascii", "replace").decode(), "hint": words.hint[:200]})
