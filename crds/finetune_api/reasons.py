"""Stable names: failure classes, exit codes, and reasons of failures, conditions and events.

Their properties are in the records of `classes`.
"""

from __future__ import annotations

from enum import StrEnum


class FailureClass(StrEnum):
    """Decides whether a failed attempt is retried. See `classes.CLASSES`."""

    Config = "Config"
    Data = "Data"
    Authentication = "Authentication"
    OutOfMemory = "OutOfMemory"
    NonFinite = "NonFinite"
    Hang = "Hang"
    PeerLost = "PeerLost"
    Infrastructure = "Infrastructure"
    Preemption = "Preemption"
    Guard = "Guard"
    Internal = "Internal"


class ExitCode:
    """Exit codes of the processes that we start, and of the `finetune` command. They follow sysexits.h where possible;
    codes from 80 up are specific to this project."""

    OK = 0
    USAGE = 64
    DATA = 65
    NO_INPUT = 66
    """Only of the `finetune` command: the requested object does not exist."""
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
    GUARD = 84


class Reason(StrEnum):
    """Reasons of failures and conditions. Stable: alert rules match on them."""

    # failures, by class
    InvalidSpec = "InvalidSpec"
    PolicyViolated = "PolicyViolated"
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
    NodeRefused = "NodeRefused"
    Preempted = "Preempted"
    GuardViolated = "GuardViolated"
    GuardInconclusive = "GuardInconclusive"
    NoGain = "NoGain"
    UnexpectedError = "UnexpectedError"
    ScriptFailed = "ScriptFailed"
    # of the finetune command alone
    NotFound = "NotFound"
    AlreadyExists = "AlreadyExists"
    WrongPhase = "WrongPhase"
    ClusterUnavailable = "ClusterUnavailable"
    # conditions and events of the life cycle
    GangCreated = "GangCreated"
    GangRunning = "GangRunning"
    Restarting = "Restarting"
    NextRung = "NextRung"
    RungDecided = "RungDecided"
    LadderStopped = "LadderStopped"
    RestartsExhausted = "RestartsExhausted"
    Queued = "Queued"
    Admitted = "Admitted"
    Grouped = "Grouped"
    OneByOne = "OneByOne"
    NameTaken = "NameTaken"
    NotUnderstood = "NotUnderstood"
    LauncherInCommand = "LauncherInCommand"
    ScaledDown = "ScaledDown"
    ScaledUp = "ScaledUp"
    Suspended = "Suspended"
    Resumed = "Resumed"
    Succeeded = "Succeeded"
    Finished = "Finished"
    ProgressUnreadable = "ProgressUnreadable"
    GuardsPassed = "GuardsPassed"
