"""Which run of a ladder the nodes of a gang do next: what node 0 decides, as records in the store.

    <output>/.finetune/<uid>/rungs/turns/present.json                      node 0 → others: the present turn
    <output>/.finetune/<uid>/rungs/turns/<attempt>/<number>/<node>.json    others → node 0: why their part of it failed

The store outlives every pod, so a node reads the last decision also after node 0 has ended. Each record is signed with
the secrets of its attempt's plan: what an earlier attempt decided counts for none that follows. A turn names a run and
has no spec: each node derives the run from its own plan.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import TypeVar

from pydantic import Field, ValidationError

from finetune_api import names
from finetune_api.base import ApiModel
from finetune_api.failures import TerminationMessage
from finetune_api.job import FineTuneJob, Metadata
from finetune_api.plan import Publishes, RunPlan, Trial
from finetune_api.rung_pods import RungName
from finetune_trainer.ladder.derived import folder_uri, of_best, of_candidate, of_fold, of_rung
from finetune_trainer.store.folder import Folder, NotFound
from finetune_trainer.store.opening import open_folder

PRESENT = "present.json"
LARGEST = 1 << 20
"""Bytes of a record; larger files are ignored."""

M = TypeVar("M", bound=ApiModel)


class Turn(ApiModel):
    """A run that all nodes do together, or the end of the ladder in these pods."""

    number: int = Field(ge=1, description="Counts up in an attempt.")
    method: RungName | None = Field(None, description="None: no run follows in these pods.")
    trial: Trial | None = None
    publishes: Publishes | None = Field(None, description="Of the run that publishes the best rung.")
    failed: bool = Field(False, description="Of the end: the run before it failed, and ended the attempt.")


def job_of(plan: RunPlan) -> FineTuneJob:
    """The job of an attempt, as far as its plan has it."""
    identity = plan.job
    return FineTuneJob(
        metadata=Metadata(name=identity.name, namespace=identity.namespace, uid=identity.uid), spec=plan.spec
    )


def run_of(job: FineTuneJob, turn: Turn) -> FineTuneJob:
    """The manifest of a turn's run, where `job` is the ladder's. ManifestError as in `ladder.derived`."""
    assert turn.method is not None
    if turn.publishes is not None:
        return of_best(job, turn.method)
    rung, trial = of_rung(job, turn.method), turn.trial or Trial()
    if trial.fold is not None:
        return of_fold(rung, trial.fold.index, trial.fold.of)
    return of_candidate(rung, trial.factor)


def plan_of(plan: RunPlan, run: FineTuneJob, turn: Turn) -> RunPlan:
    """The plan of a turn's run, from that of the attempt."""
    changes = {
        "job": plan.job.model_copy(update={"uid": run.metadata.uid}),
        "spec": run.spec,
        "rung": None if turn.publishes else turn.method,
        "publishes": turn.publishes,
        "trial": turn.trial,
        "turn": turn.number,
    }
    return plan.model_copy(update=changes)


@dataclass(frozen=True, kw_only=True)
class Turns:
    """The records of one attempt."""

    plan: RunPlan
    folder: Folder

    @classmethod
    def of(cls, plan: RunPlan, *, patience: float = 0.0) -> Turns:
        """patience: seconds that each operation waits for a store that is unavailable."""
        uri = f"{folder_uri(plan.spec.output.uri, plan.job.uid)}/turns"
        return cls(plan=plan, folder=open_folder(uri, prefix=names.PREFIX_OUTPUT, patience=patience))

    def announce(self, turn: Turn) -> None:
        self._write(PRESENT, turn)

    def present(self) -> Turn | None:
        """The last one that was announced in this attempt."""
        return self._read(PRESENT, Turn)

    def report(self, number: int, words: TerminationMessage) -> None:
        """Of a node whose part of a turn failed by a cause of its own."""
        self._write(f"{self._reports(number)}/{words.node}.json", words)

    def reports(self, number: int) -> list[TerminationMessage]:
        """Of all nodes."""
        listed = self.folder.list(self._reports(number))[: self.plan.nodes]
        found = (self._read(entry.path, TerminationMessage) for entry in listed)
        return [each for each in found if each is not None]

    def _reports(self, number: int) -> str:
        return f"{self.plan.attempt}/{number}"

    def _write(self, path: str, record: ApiModel) -> None:
        body = record.model_dump_json(by_alias=True, exclude_none=True).encode()
        self.folder.put(path, self._signature(path, body) + b"\n" + body)

    def _read(self, path: str, model: type[M]) -> M | None:
        """None also for what another attempt, or a program without its secrets, has written there."""
        if (entry := self.folder.stat(path)) is None or entry.size > LARGEST:
            return None
        try:
            signature, _, body = self.folder.read(path).partition(b"\n")
        except NotFound:
            return None
        if not hmac.compare_digest(signature, self._signature(path, body)):
            return None
        try:
            return model.model_validate_json(body)
        except ValidationError:
            return None

    def _signature(self, path: str, body: bytes) -> bytes:
        plan = self.plan
        key = f"{plan.job.uid} {plan.attempt} {plan.nonce} {plan.token}".encode()
        return hmac.new(key, path.encode() + b"\n" + body, hashlib.sha256).hexdigest().encode()
