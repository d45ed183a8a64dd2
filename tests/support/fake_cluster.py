"""A cluster in memory behind `finetune_api.client`: what kubectl answers to the calls that the verbs make."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from finetune_api.client import FineTuneJobs
from finetune_api.client.kubectl import Answer, Call, Cluster, Pause

Raw = dict[str, Any]


def raw_job(name: str = "tickets", phase: str | None = None, *, spec: Raw | None = None, **status: Any) -> Raw:
    head = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob"}
    meta = {"name": name, "namespace": "team", "uid": f"uid-of-{name}"}
    given = {
        "model": {"uri": "hf://org/model"}, "data": {"train": [{"uri": "s3://corp/train.jsonl"}]},
        "output": {"uri": f"s3://corp/models/{name}"}, **(spec or {}),
    }  # fmt: skip
    return {**head, "metadata": meta, "spec": given, **({"status": {"phase": phase, **status}} if phase else {})}


@dataclass
class FakeCluster:
    """Jobs by name. `calls` has every call's words; `refusals` has what to answer to the next calls of a verb."""

    jobs: dict[str, Raw] = field(default_factory=dict)
    events: list[Raw] = field(default_factory=list)
    calls: list[tuple[str, ...]] = field(default_factory=list)
    pauses: int = 0
    refusals: dict[str, list[str]] = field(default_factory=dict)
    refusals_after_delete: dict[str, list[str]] = field(default_factory=dict)
    """The same, of the first deletion, which takes place all the same, and after it."""
    refusals_by_look: list[list[str]] = field(default_factory=list)
    """Of each look at a job: what it answers before it answers with the job."""
    later: list[Raw] = field(default_factory=list)
    """Statuses that the operator writes, one after each look at a job."""

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
        async def answer_async(_: Cluster, asked: Call | Pause) -> Answer:
            return self.answer(asked)

        monkeypatch.setattr(Cluster, "_answer", lambda _, asked: self.answer(asked))
        monkeypatch.setattr(Cluster, "_answer_async", answer_async)
        return self

    def answer(self, asked: Call | Pause) -> Answer:
        if isinstance(asked, Pause):
            self.pauses += 1
            return Answer()
        verb, *words = asked.arguments
        self.calls.append(asked.arguments)
        if self.refusals.get(verb):
            return Answer(1, "", self.refusals[verb].pop(0))
        return getattr(self, f"_{verb}")(words, asked.stdin)

    def _get(self, words: list[str], _: str | None) -> Answer:
        if words[0] == "events":
            return Answer(0, json.dumps({"items": self.events}))
        if len(words) == 1 or words[1].startswith("-"):
            return Answer(0, json.dumps({"items": list(self.jobs.values())}))
        if self.refusals_by_look:
            if self.refusals_by_look[0]:
                return Answer(1, "", self.refusals_by_look[0].pop(0))
            self.refusals_by_look.pop(0)
        answer = self._found(words[1])
        if answer.status == 0 and self.later:
            self.jobs[words[1]]["status"] = self.later.pop(0)
        return answer

    def _create(self, words: list[str], stdin: str | None) -> Answer:
        raw = json.loads(stdin or "")
        name = raw["metadata"].setdefault("name", raw["metadata"].get("generateName", "") + "x7k2p")
        if name in self.jobs:
            return Answer(
                1, "", f'Error from server (AlreadyExists): finetunejobs.finetune.dev "{name}" already exists'
            )
        made = copy.deepcopy(raw)
        made["metadata"] |= {"namespace": "team", "uid": f"new-uid-of-{name}"}
        if "--dry-run=server" not in words:
            self.jobs[name] = made
        return Answer(0, json.dumps(made))

    def _patch(self, words: list[str], _: str | None) -> Answer:
        if words[1] in self.jobs:
            self.jobs[words[1]]["spec"] |= json.loads(words[words.index("--patch") + 1])["spec"]
        return self._found(words[1])

    def _delete(self, words: list[str], _: str | None) -> Answer:
        found = self._found(words[1])
        self.jobs.pop(words[1], None)
        self.refusals |= self.refusals_after_delete
        if self.refusals.get("delete"):
            return Answer(1, "", self.refusals["delete"].pop(0))
        return found

    def _found(self, name: str) -> Answer:
        if name not in self.jobs:
            return Answer(1, "", f'Error from server (NotFound): finetunejobs.finetune.dev "{name}" not found')
        return Answer(0, json.dumps(self.jobs[name]))


def with_job(cluster: FakeCluster, phase: str, *, suspend: bool | None = None, **status: Any) -> FineTuneJobs:
    spec = {} if suspend is None else {"suspend": suspend}
    cluster.jobs["tickets"] = raw_job("tickets", phase, spec=spec, **status)
    return FineTuneJobs(namespace="team")
