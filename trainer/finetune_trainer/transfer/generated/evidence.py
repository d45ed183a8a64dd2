"""From answers of base and tuned model to differences with verdicts, the collapse check, and what the report shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from finetune_api.generated_text import (
    Collapse,
    CollapseFigure,
    Ending,
    Figure,
    Generation,
    GenerationScore,
    Mode,
)
from finetune_api.generation import Generate, GenerationMetric
from finetune_trainer.report.record import AnswerSample
from finetune_trainer.statistics.differences import ALPHA, too_few
from finetune_trainer.statistics.diversity import Drop, relative_drops
from finetune_trainer.statistics.multiplicity import bonferroni
from finetune_trainer.statistics.paired import Paired, difference
from finetune_trainer.transfer.guards.collapse import DEFAULT_BOUND, worst

from .answers import Answered, Answers
from .prompts import Prompts
from .scores import METRICS, Answer, Asked

Floats = NDArray[np.float64]
Decode = Callable[[tuple[int, ...]], str]
Scored = Mapping[GenerationMetric, Floats]
"""By metric, (prompts,)."""
Texts = Sequence[Sequence[int]]

MODES: tuple[Mode, ...] = ("greedy", "sampled")
FLIPS = 10
"""Rows that are shown of those that got better, and of those that got worse."""
_SHOWN = 600
"""Characters of a text in the report."""
_FIGURES: Mapping[str, Figure] = {
    "distinct-1": "distinct1", "distinct-2": "distinct2", "distinct-4": "distinct4", "entropy": "entropy",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Written:
    """All that was generated for one set of prompts."""

    prompts: Prompts
    settings: Generate
    base: Answered
    """Empty where a run of an older version, or a lost note, left none."""
    tuned: Answered
    decode: Decode

    def texts(self, answers: Answers) -> list[str]:
        return [self.decode(tokens) for tokens in answers.tokens]

    def scored(self, answers: Answers) -> Scored:
        """By each metric that is asked for."""
        asked = Asked(self.settings)
        references = [self.decode(tuple(each.tolist())) for each in self.prompts.references]
        given = [
            Answer(text=text, reference=reference, tokens=len(tokens), stopped=stopped)
            for text, reference, tokens, stopped in zip(
                self.texts(answers), references, answers.tokens, answers.stopped, strict=True
            )
        ]
        return {
            name: np.array([METRICS[name].score(answer, asked) for answer in given], np.float64)
            for name in self.settings.metrics
        }


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What status and report have of it."""

    told: Generation
    collapse: Collapse
    samples: tuple[AnswerSample, ...]
    written: Written


def generated(written: Written, *, bound: float | None) -> Generated:
    """bound: of guards.collapse, if it is written."""
    base = written.scored(written.base["greedy"]) if written.base else {}
    tuned = written.scored(written.tuned["greedy"])
    prompts = written.prompts
    return Generated(
        told=compared(prompts, base, tuned),
        collapse=collapse(prompts, written.base, written.tuned, DEFAULT_BOUND if bound is None else bound),
        samples=tuple(_samples(written, base, tuned)),
        written=written,
    )


def compared(prompts: Prompts, base: Scored, tuned: Scored) -> Generation:
    """Scores of greedy answers; without a difference for metrics that base lacks."""
    return Generation(
        name=prompts.name,
        rows=len(prompts),
        groups=len(set(prompts.groups)),
        scores=tuple(_score(name, base.get(name), values, prompts) for name, values in tuned.items()),
    )


def _score(name: GenerationMetric, base: Floats | None, tuned: Floats, prompts: Prompts) -> GenerationScore:
    if base is None:
        return GenerationScore(metric=name, tuned=float(tuned.mean()))
    metric = METRICS[name]
    groups = prompts.groups if len(set(prompts.groups)) < len(prompts) else None
    found = difference(Paired.of(metric.measure, base=base, tuned=tuned, groups=groups))
    return GenerationScore(
        metric=name,
        base=found.base,
        tuned=found.tuned,
        difference=found.difference,
        low=found.low,
        high=found.high,
        minimum_detectable=found.minimum_detectable,
        verdict=found.verdict.value if metric.measure.judged else None,
    )


def collapse(prompts: Prompts, base: Answered, tuned: Answered, bound: float = DEFAULT_BOUND) -> Collapse:
    """Violated if a figure dropped by more than the bound, from the base model and from the references. Inconclusive
    where the two models write other tokens, which are what the figures count."""
    rows = len(prompts)
    endings = tuple(_ending(mode, base[mode], tuned[mode]) for mode in MODES if mode in base)
    if not base or prompts.spelled is not None or too_few(rows=rows, groups=len(set(prompts.groups))):
        return Collapse(verdict="inconclusive", bound=bound, rows=rows, endings=endings)
    drops = {mode: tuple(_drops(prompts, base[mode].tokens, tuned[mode].tokens)) for mode in MODES}
    figures = tuple(
        CollapseFigure(
            name=_FIGURES[drop.name],
            mode=mode,
            base=drop.base,
            tuned=drop.tuned,
            drop=drop.value,
            low=drop.low,
            high=drop.high,
        )
        for mode, found in drops.items()
        for drop in found
    )
    every = [drop for found in drops.values() for drop in found]
    return Collapse(
        verdict=worst(every, bound=bound, rows=rows).verdict.value, bound=bound, rows=rows, figures=figures,
        endings=endings,
    )  # fmt: skip


def _drops(prompts: Prompts, base: Texts, tuned: Texts) -> Iterator[Drop]:
    """Of each figure the smaller of two drops: from the base model's texts, cut to the same length, and from the whole
    reference answers. What answers like the references is varied enough, however much more the base model said."""
    alpha, groups = bonferroni(ALPHA, len(MODES)), prompts.groups
    from_base = relative_drops(list(zip(base, tuned, strict=True)), alpha=alpha, groups=groups)
    references = [tuple(each.tolist()) for each in prompts.references]
    answered = list(zip(references, tuned, strict=True))
    from_references = relative_drops(answered, alpha=alpha, cut=False, groups=groups)
    for first, second in zip(from_base, from_references, strict=True):
        yield min(first, second, key=lambda drop: drop.value)


def _ending(mode: Mode, base: Answers, tuned: Answers) -> Ending:
    return Ending(
        mode=mode,
        base_length=_mean([len(each) for each in base.tokens]),
        tuned_length=_mean([len(each) for each in tuned.tokens]),
        base_stops=_mean(base.stopped),
        tuned_stops=_mean(tuned.stopped),
    )


def _mean(values: object) -> float:
    return float(np.mean(cast("list[float]", values)))


def _samples(written: Written, base: Scored, tuned: Scored) -> Iterator[AnswerSample]:
    """The first prompts, then those that changed most by the first metric that has a verdict, each way."""
    if not written.base:
        return
    for row in range(min(written.settings.samples, len(written.prompts))):
        yield _sample("sample", row, written)
    name = next((name for name in written.settings.metrics if METRICS[name].measure.judged), None)
    if name is None:
        return
    change = tuned[name] - base[name]
    for why, order in (("gained", np.argsort(-change, kind="stable")), ("lost", np.argsort(change, kind="stable"))):
        moved = [int(row) for row in order[:FLIPS] if (change[row] > 0) == (why == "gained") and change[row] != 0]
        for row in moved:
            yield _sample(why, row, written, metric=name)


def _sample(why: str, row: int, written: Written, metric: GenerationMetric | None = None) -> AnswerSample:
    prompts, decode = written.prompts, written.decode
    return AnswerSample.model_validate(
        {
            "why": why,
            "metric": metric,
            "row": prompts.rows[row],
            "prompt": _end(decode(tuple(prompts.tokens[row].tolist()))),
            "reference": _start(decode(tuple(prompts.references[row].tolist()))),
            "base": _start(decode(written.base["greedy"].tokens[row])),
            "tuned": _start(decode(written.tuned["greedy"].tokens[row])),
        }
    )


def _start(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _end(text: str) -> str:
    return text if len(text) <= _SHOWN else f"…{text[-_SHOWN:]}"
