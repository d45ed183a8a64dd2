"""The scale at which an adapter is published: chosen on one half of held-out rows, judged on the other.

Rows that choose cannot judge: of four scales the one that looks best there owes a part of its looks to chance. So data
sets that choose are split by the digest of a row's group, and what is reported of them comes from the other half.

    split      a corpus in two halves; rows of one group stay together
    tried      each scale on the half that chooses: gain, forgetting and the guards' verdicts
    choose     the scale that gains most among those that keep the guards
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from finetune_api.calibration import ScalePoint
from finetune_api.guards import Guards
from finetune_api.measurements import HIGHER_IS_BETTER, Measurement
from finetune_trainer.data.corpus import Corpus, Numbers

from .evaluate import Measured, scores_of
from .evidence import Subject, evidence_of
from .guards import Judgement, Outcome
from .release import Release, judge

SMALLER = (0.75, 0.5, 0.25)
"""Scales that are measured next to the trained one. 0 is the base model, which is measured anyway."""


@dataclass(frozen=True)
class Half:
    corpus: Corpus
    rows: Numbers
    """Their numbers in the whole."""

    def of(self, measured: Measured) -> Measured:
        """What was measured on the whole, of these rows."""
        nats, labels = measured.nats[self.rows], measured.labels
        taken = None if labels is None else labels[self.rows]
        return Measured(scores_of(self.corpus, nats, taken), nats, measured.tokens[self.rows], taken)

    def subject(self, whole: Subject, tuned: Measured | None) -> Subject:
        """The same data set, of these rows."""
        base = self.of(whole.base) if isinstance(whole.base, Measured) else whole.base
        return replace(whole, corpus=self.corpus, base=base, tuned=tuned)


@dataclass(frozen=True)
class Split:
    choosing: Half
    judging: Half


def split(corpus: Corpus) -> Split:
    """By the last bit of each group's digest; of rows from nowhere by that of their number."""
    marks = np.arange(len(corpus)) if corpus.marks is None else corpus.marks.groups
    first = (marks & marks.dtype.type(1)) == 0
    choosing, judging = (Half(corpus.take(rows), rows) for rows in (np.flatnonzero(first), np.flatnonzero(~first)))
    return Split(choosing, judging)


def chooses(subject: Subject, guards: Guards) -> bool:
    """Whether a data set has a part in the choice. The test rows never have."""
    kinds = {"validation", "general"} | ({"slice"} if guards.slices is not None else set())
    return subject.kind in kinds and len(subject.corpus) > 1


@dataclass(frozen=True)
class Tried:
    """One scale on the rows that choose."""

    scale: float
    gain: float | None
    """Of the validation rows by their main metric."""
    forgetting: float | None
    release: Release

    @property
    def passed(self) -> bool:
        return all(each.verdict is Outcome.passed for each in self._judged)

    @property
    def kept(self) -> bool:
        """Whether each guard is passed, or has a value within its bound although the rows are too few to be sure."""
        return all(each.verdict is Outcome.passed or _unsure(each) for each in self._judged)

    @property
    def point(self) -> ScalePoint:
        verdicts = [each.verdict.value for each in self._judged]
        worst = next((each for each in ("violated", "inconclusive", "passed") if each in verdicts), None)
        return ScalePoint(scale=self.scale, gain=self.gain, forgetting=self.forgetting, verdict=worst)

    @property
    def _judged(self) -> tuple[Judgement, ...]:
        """Without guards on data sets that choose nothing, such as minGain of the test rows."""
        return tuple(each for each in self.release.judgements if each.rows)


def tried(scale: float, subjects: Sequence[Subject], *, labels: tuple[str, ...], guards: Guards) -> Tried:
    """From the data sets that choose, as measured at `scale`."""
    evidence = evidence_of(tuple(subjects), labels)
    data = evidence.evaluation().data
    main = next((each for each in data if each.kind == "validation"), None)
    general = next((each for each in data if each.kind == "general" and each.metric == "bitsPerByte"), None)
    return Tried(
        scale=scale,
        gain=_gain(main) if main is not None else None,
        forgetting=general.difference if general is not None else None,
        release=judge(guards, evidence.evaluation()),
    )


def choose(candidates: Sequence[Tried]) -> float | None:
    """The scale that gains most, the larger of two that gain the same; without validation rows the largest. Scales that
    pass all guards come before those that only seem to. None: none does even that."""
    allowed = [each for each in candidates if each.passed] or [each for each in candidates if each.kept]
    if not allowed:
        return None
    return max(allowed, key=lambda each: (0.0 if each.gain is None else each.gain, each.scale)).scale


def curve(candidates: Sequence[Tried]) -> tuple[ScalePoint, ...]:
    """By scale, from the base model on."""
    points = sorted((each.point for each in candidates), key=lambda point: point.scale)
    if not points:
        return ()
    base = ScalePoint(
        scale=0.0,
        gain=None if points[0].gain is None else 0.0,
        forgetting=None if points[0].forgetting is None else 0.0,
    )
    return (base, *points)


def with_tried(subject: Subject, part: Split, models: Mapping[float, Measured]) -> Subject:
    """With the rows that chose, for the records."""
    base = {0.0: part.choosing.of(subject.base)} if isinstance(subject.base, Measured) else {}
    return replace(subject, tried_on=part.choosing.corpus, tried={**base, **models})


def _gain(found: Measurement) -> float | None:
    if found.difference is None:
        return None
    return found.difference if HIGHER_IS_BETTER[found.metric] else -found.difference


def _unsure(judgement: Judgement) -> bool:
    return judgement.verdict is Outcome.inconclusive and judgement.within
