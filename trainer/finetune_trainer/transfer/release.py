"""Whether an artifact may be published: the guards of a manifest, judged by what was measured.

`guards` judges; here are the manifest's bounds, the facts out of the measurements, and what follows from the verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from finetune_api.calibration import Calibration
from finetune_api.generated_text import Collapse, Generation
from finetune_api.generation import GenerationMetric
from finetune_api.guards import Guards
from finetune_api.measurements import HIGHER_IS_BETTER, Evaluation, GuardName, GuardResult, Measurement
from finetune_api.reasons import Reason
from finetune_api.verdicts import GuardVerdict
from finetune_trainer.statistics.diversity import Drop

from .guards import Compared, Facts, Guard, Judgement, Outcome, Share, judge_all
from .guards.calibration import KEY as CALIBRATION
from .guards.collapse import KEY as COLLAPSE
from .guards.forgetting import KEY as FORGETTING
from .guards.gain import KEY as GAIN
from .guards.generation import JSON_VALID, STOPS
from .guards.slices import KEY as SLICES

_NO_INTERVAL = "too few rows or groups for an interval"
_WORST_FIRST: tuple[GuardVerdict, ...] = ("violated", "inconclusive", "passed")


_SHARES: Mapping[GenerationMetric, Guard] = {"stops": STOPS, "jsonValid": JSON_VALID}


@dataclass(frozen=True)
class Release:
    """All guards of a job together."""

    judgements: tuple[Judgement, ...] = ()
    on_violation: str = "fail"
    on_inconclusive: str = "warn"

    @property
    def results(self) -> tuple[GuardResult, ...]:
        """As status shows them: of a guard with several bounds the one that is kept least."""
        worst: dict[str, GuardResult] = {}
        for judgement in sorted(self.judgements, key=_badness):
            worst.setdefault(_name(judgement.name), _result(judgement))
        return tuple(worst[name] for name in dict.fromkeys(_name(each.name) for each in self.judgements))

    @property
    def violated(self) -> bool:
        return any(each.verdict is Outcome.violated for each in self.judgements)

    @property
    def refused(self) -> Reason | None:
        """Why the artifact may not be published; None: it may."""
        verdicts = {each.verdict for each in self.judgements}
        if self.violated and self.on_violation != "warn":
            return Reason.GuardViolated
        if "inconclusive" in verdicts and self.on_inconclusive == "fail":
            return Reason.GuardInconclusive
        return None

    @property
    def refusal(self) -> str:
        """That in words; empty where it may be published."""
        decisive = {Reason.GuardViolated: "violated", Reason.GuardInconclusive: "inconclusive"}
        wanted = decisive.get(self.refused) if self.refused else None
        return "; ".join(sentence(each) for each in self.judgements if each.verdict == wanted)

    def sentences(self) -> Iterator[str]:
        """The worst first."""
        yield from map(sentence, sorted(self.judgements, key=_badness))


def judge(guards: Guards, evaluation: Evaluation) -> Release:
    """`evaluation`: as `Evidence.evaluation` has it."""
    return Release(judge_all(_bounds(guards), _facts(evaluation)), guards.on_violation, guards.on_inconclusive)


def sentence(judgement: Judgement) -> str:
    """guards.forgetting is violated: +0.21 [+0.18, +0.24], at most 0.05 is allowed (general)."""
    about = judgement.on or judgement.reason
    return f"guards.{_result(judgement).told()}" + (f" ({about})" if about else "")


def _bounds(guards: Guards) -> dict[str, float]:
    keys = {_name(key): key for key in (GAIN, FORGETTING, SLICES, CALIBRATION, COLLAPSE)}
    found = {keys[name]: bound for name, bound in guards.bounds.items() if name in keys}
    return found | {_SHARES[metric].key: bound for metric, bound in guards.shares.items()}


def _facts(evaluation: Evaluation) -> Facts:
    data = evaluation.data

    def first(*kinds: str) -> Measurement | None:
        return next((each for kind in kinds for each in data if each.kind == kind), None)

    general = first("general")
    sized = general if general is not None and general.metric == "bitsPerByte" else None
    main = first("test", "validation")
    return Facts(
        main=_compared(main) if main is not None else None,
        general=_compared(sized) if sized is not None else None,
        slices=tuple(_compared(each) for each in data if each.kind == "slice"),
        calibration=_calibration(evaluation.calibration) if evaluation.calibration is not None else None,
        drops=_drops(evaluation.collapse) if evaluation.collapse is not None else (),
        prompts=evaluation.collapse.rows if evaluation.collapse is not None else 0,
        stops=_share(evaluation.generation, "stops"),
        json_valid=_share(evaluation.generation, "jsonValid"),
    )


def _drops(told: Collapse) -> tuple[Drop, ...]:
    return tuple(
        Drop(
            name=f"{each.mode} {each.name}", base=each.base, tuned=each.tuned, value=each.drop, low=each.low,
            high=each.high,
        )
        for each in told.figures
    )  # fmt: skip


def _share(told: Generation | None, metric: GenerationMetric) -> Share | None:
    scores = told.scores if told is not None else ()
    found = next((each.tuned for each in scores if each.metric == metric), None)
    if told is None or found is None:
        return None
    # Prompts of one group may all fare alike: a group proves as much as one prompt.
    count = min(told.rows, told.groups or told.rows)
    return Share(hits=math.floor(found * count + 1e-6), rows=count)


def _compared(told: Measurement) -> Compared:
    """With the interval as it was adjusted when it was measured."""
    return Compared(
        name=told.name,
        kind=told.kind,
        value=told.difference,
        low=told.low,
        high=told.high,
        rows=told.rows,
        higher_is_better=HIGHER_IS_BETTER[told.metric],
        reason=_NO_INTERVAL,
    )


def _calibration(told: Calibration) -> Compared:
    return Compared(
        name=told.name,
        kind=told.name,
        value=told.difference,
        low=told.low,
        high=told.high,
        rows=told.rows,
        higher_is_better=False,
        reason=_NO_INTERVAL,
    )


def _result(judgement: Judgement) -> GuardResult:
    return GuardResult(
        name=_name(judgement.name),
        bound=judgement.bound,
        value=judgement.value,
        low=judgement.low,
        high=judgement.high,
        verdict=judgement.verdict.value,
        rows_needed=judgement.rows_needed,
    )


def _badness(judgement: Judgement) -> int:
    return _WORST_FIRST.index(judgement.verdict.value)


def _name(key: str) -> GuardName:
    return cast(GuardName, key.partition(".")[0])
