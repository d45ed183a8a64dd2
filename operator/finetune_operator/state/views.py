"""Small typed views of the API server's objects: only what decisions and metrics use. `parsing` makes them.

A pod's view is a fiftieth of the pod. Times are aware datetimes in UTC, to the second, as the API server gives them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson

from finetune_api import names
from finetune_api.failures import TerminationMessage
from finetune_api.listmaps import ordered
from finetune_api.rules import MUTABLE_WHILE_SUSPENDED
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import FineTuneJobStatus
from finetune_operator.kube.resources import Key

from .timestamps import parse_time as parse_time  # noqa: PLC0414

SPEC_BYTES = 256 * 1024
"""Of a spec as JSON: more would not fit into a pod's annotations either."""

TOO_DEEP = -1
"""The size of a spec that is nested so deeply that it cannot be written as JSON (see json_depth)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobView:
    """A FineTuneJob."""

    namespace: str
    name: str
    uid: str
    version: int
    generation: int
    created: datetime | None
    deleting: bool
    raw_spec: dict[str, Any]
    status: FineTuneJobStatus
    strange_status: str = ""
    """What decisive part of the status another version wrote, and we cannot read; empty if none."""
    left_out: dict[str, Any] = field(default_factory=dict)
    """All of the status that is not in `status`."""
    spec_bytes: int = 0
    """Of the spec as JSON. With more than SPEC_BYTES, or TOO_DEEP, `raw_spec` has only what is used of every job."""
    spec_json: bytes = b""
    """The whole of a long spec, of which `raw_spec` has only what is used often: as objects it takes twenty times as
    much. Empty: `raw_spec` is all there is."""
    ended: bool = False
    """Nothing happens to the job any more: of spec and status there is only what decisions and metrics use."""

    @property
    def owner(self) -> Key:
        return self.namespace, self.name

    @property
    def whole_spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = orjson.loads(self.spec_json) if self.spec_json else self.raw_spec
        return spec

    @property
    def wanted_nodes(self) -> int:
        """Of the spec as it is, which may make no sense."""
        nodes = self.raw_spec.get("nodes", 1)
        most = nodes.get("max") if isinstance(nodes, dict) else nodes
        return most if isinstance(most, int) else 1

    @property
    def ttl_after_finished(self) -> str | None:
        text = self.raw_spec.get("ttlAfterFinished")
        return text if isinstance(text, str) else None

    @property
    def suspended(self) -> bool:
        return self.raw_spec.get("suspend") is True

    @property
    def pods_digest(self) -> str:
        """Of what the manifest says of the pods: all that can be changed while they are not there. Lists that are maps
        to the API server may change their order at any time, so that does not count."""
        return _digest(ordered(self._of_pods, FineTuneJobSpec))

    @property
    def pods_digest_ordered(self) -> str:
        """As earlier versions made it."""
        return _digest(self._of_pods)

    @property
    def _of_pods(self) -> dict[str, Any]:
        spec = self.whole_spec
        return {field: spec[field] for field in MUTABLE_WHILE_SUSPENDED if field in spec}

    @property
    def foreign(self) -> bool:
        """Another controller manages it."""
        return self.raw_spec.get("managedBy") not in (None, names.MANAGER)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildJob:
    """The Indexed Job of one attempt."""

    namespace: str
    name: str
    uid: str
    version: int
    owner: Key
    job_uid: str
    """uid of the FineTuneJob for which it was made."""
    attempt: int
    nodes: int
    created: datetime | None
    deleting: bool
    complete: bool
    failing: bool
    """It failed or is about to: the Job controller starts no more pods."""
    finished: bool
    """Complete or Failed: the Job controller says so only when no pod runs any more."""
    message: str
    """Why it failed."""
    suspended: bool = False
    """By whomever, and until the Job controller says that it is resumed."""
    resumed: datetime | None = None
    """When the Job controller last did; None: it was never suspended, or still is."""
    queue: str = ""
    """The queue that may suspend and resume it."""
    gang: str = ""
    """The way to schedule its pods together that it was made for; empty: one by one."""
    pods_digest: str = ""
    """Of what the manifest said of its pods; empty: a version made it that kept none."""
    pods_digest_ordered: str = ""
    """As earlier versions made it."""
    holder: str = ""
    """Who suspended it, or took its pods away, by the name under which that was written."""
    scaled_to: int | None = None
    """Its parallelism, where a user made that less than the gang: as good as suspended."""
    probe: str = ""
    """Not an attempt, but what looks for more nodes for one: see names.probe_of."""
    token: str = ""
    """The bearer token that its agents require; empty: created by a version that had none."""
    nonce: str = ""
    """What their reports show."""
    failed_at: datetime | None = None
    """When the Job controller said that it fails."""
    unwatched: bool = False
    """Our label was taken off it, so no watch shows it: it has to be asked for."""

    @property
    def held(self) -> bool:
        """It may not have pods now."""
        return self.suspended and not (self.deleting or self.failing or self.finished)

    @property
    def wanted_since(self) -> datetime | None:
        """Since when its pods should be there; None while it is suspended."""
        return None if self.suspended else self.resumed or self.created


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the trainer's container ended."""

    exit_code: int
    signal: int
    reason: str
    """The kubelet's: Completed, Error, OOMKilled, StartError, ..."""
    at: datetime | None
    words: TerminationMessage | None
    text: str
    """Its message, if the trainer did not write it."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why the trainer's container does not run yet, in the kubelet's words: ImagePullBackOff, ..."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    namespace: str
    name: str
    uid: str
    version: int
    owner: Key
    job_uid: str
    attempt: int
    index: int
    phase: str
    reason: str
    """Of the pod's status: Evicted, OutOfcpu, NodeLost, ..."""
    message: str
    node: str
    ip: str
    created: datetime | None
    scheduled: datetime | None
    deleting: bool
    disruption: str
    """Reason of a true DisruptionTarget condition: PreemptionByScheduler, EvictionByEvictionAPI, ..."""
    disrupted: datetime | None
    ended: Ended | None
    ends: datetime | None = None
    """When it has to have ended, if it was deleted."""
    waiting: Waiting | None = None
    unschedulable: str = ""
    """The scheduler's words on why no node takes it."""
    probe: str = ""
    """As of its Job."""
    controller: str = ""
    """uid of the Job that it belongs to; empty: none."""
    stray: bool = False
    """It belongs to no Job and never did: a copy made by hand."""
    unwatched: bool = False
    """As of a Job."""
    ready: bool = False
    """The API server says that it is: its node reports, and its containers run."""
    unreachable: bool = False
    """Its container runs for all that is known, but its node does not report any more."""
    mute: bool = False
    """Its kubelet reports that the agent answered its probe before and does not any more, though the container runs."""

    @property
    def unfinished(self) -> bool:
        return self.phase not in ("Succeeded", "Failed")

    @property
    def done(self) -> bool:
        """The trainer's container decides, whatever others in the pod do."""
        return self.ended.exit_code == 0 if self.ended else self.phase == "Succeeded"

    @property
    def over(self) -> bool:
        """It does no more work. Containers next to the trainer's may run on."""
        return self.ended is not None or not self.unfinished


def _digest(told: dict[str, Any]) -> str:
    return hashlib.sha256(orjson.dumps(told, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
