"""What a job with guards.maxAttempts tries, one run after the other, when a guard is violated at every scale.

    run             settings                                            skipped
    replay          regularization.replay, automatic fraction           it is in the manifest, or only minGain guards
    klToBase        that, and regularization.klToBase                   as replay, or the strategy does not support it
    learningRate    that, and 0.3 times the learning rate               never

Replay comes first, as it is the most effective per step; the lower rate comes last, as it costs most of the gain.
Sources: arXiv 2403.08763 (replay), 2510.18874 (forgetting grows with the distance from the base model).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_api import manifest
from finetune_api.job import FineTuneJob
from finetune_api.measurements import RemedyName
from finetune_api.names import API_VERSION, KIND
from finetune_api.regularization import Regularization
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.ladder.derived import job_with

RATE_FACTOR = 0.3
"""Of the learning rate, in the run with the lower one."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A run with all that the steps before it have added."""

    name: RemedyName
    terms: tuple[tuple[str, str], ...] = ()
    """(key of spec.regularization, source or "")"""
    factor: float = 1.0
    """Of the learning rate."""

    @property
    def key(self) -> str:
        """Of its folder; steps that train differently have different ones: replay-klToBase."""
        rate = ("learningRate",) if self.factor != 1 else ()
        return "-".join((*(name for name, _ in self.terms), *rate))

    @property
    def settings(self) -> str:
        """regularization.replay, regularization.klToBase, 0.3 times the learning rate."""
        rate = [f"{self.factor:g} times the learning rate"] if self.factor != 1 else []
        told = [f"regularization.{name}" + (f".source {source}" if source else "") for name, source in self.terms]
        return ", ".join([*told, *rate])


@dataclass(frozen=True, kw_only=True)
class Skipped:
    name: RemedyName
    reason: str


@dataclass(frozen=True, kw_only=True)
class Walk:
    steps: tuple[Step, ...] = ()
    skipped: tuple[Skipped, ...] = ()


def walk(spec: FineTuneJobSpec) -> Walk:
    """The runs that may follow the first one, at most guards.maxAttempts, and what is skipped before the last of
    them."""
    steps: list[Step] = []
    skipped: list[Skipped] = []
    terms: tuple[tuple[str, str], ...] = ()
    candidates: tuple[tuple[RemedyName, str], ...] = (("replay", _source(spec)), ("klToBase", ""))
    for name, source in candidates:
        if len(steps) == spec.guards.max_attempts:
            break
        reason = _unfit(spec, (*terms, (name, source)))
        if reason:
            skipped.append(Skipped(name=name, reason=reason))
            continue
        terms = (*terms, (name, source))
        steps.append(Step(name=name, terms=terms))
    if len(steps) < spec.guards.max_attempts:
        steps.append(Step(name="learningRate", terms=terms, factor=RATE_FACTOR))
    return Walk(steps=tuple(steps), skipped=tuple(skipped))


def run_uid(uid: str, step: Step) -> str:
    return f"{uid}-{step.key}"


def run_uri(output: str, uid: str, step: Step) -> str:
    """The output folder of a step."""
    return f"{output.rstrip('/')}/.finetune/{uid}/remedies/{step.key}"


def of_step(job: FineTuneJob, step: Step) -> FineTuneJob:
    """The manifest of a step: with its terms, and a folder of its own. Its learning rate is the plan's."""
    spec = _changed(job.spec, step.terms)
    uid = job.metadata.uid
    spec["output"] = {**spec["output"], "uri": run_uri(job.spec.output.uri, uid, step), "overwrite": False}
    return job_with(job, spec, uid=run_uid(uid, step))


def regularization_with(spec: FineTuneJobSpec, step: Step) -> FineTuneJobSpec:
    """The job's spec with the terms of a step, for a plan."""
    terms = Regularization.model_validate({**spec.regularization.to_json(), **_added(step.terms)}, strict=False)
    return spec.model_copy(update={"regularization": terms})


def _source(spec: FineTuneJobSpec) -> str:
    """Where there is no general text, the base model writes some."""
    return "" if spec.data.general is not None else "self"


def _unfit(spec: FineTuneJobSpec, terms: tuple[tuple[str, str], ...]) -> str:
    """Why the last one of these cannot be added; empty if it can."""
    name, _ = terms[-1]
    if name in spec.regularization.to_json():
        return f"the manifest has regularization.{name}"
    if set(spec.guards.bounds) == {"minGain"}:
        return "it keeps what the model knew, and guards.minGain alone asks for more"
    raw = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "job"}, "spec": _changed(spec, terms)}
    return "; ".join(str(each).removeprefix("spec: ") for each in manifest.validate(raw))


def _changed(spec: FineTuneJobSpec, terms: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    changed = spec.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_defaults=True, exclude_none=True)
    changed["guards"] = {name: value for name, value in changed["guards"].items() if name != "maxAttempts"}
    if terms:
        changed["regularization"] = {**changed.get("regularization", {}), **_added(terms)}
    return changed


def _added(terms: tuple[tuple[str, str], ...]) -> dict[str, dict[str, str]]:
    return {name: {"source": source} if source else {} for name, source in terms}
