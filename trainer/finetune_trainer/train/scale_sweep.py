"""The scale of a trained adapter: measured at smaller ones, and left at the one that the choice in `transfer.scale`
comes to.

It runs with evaluation.scaleSweep, or under guards.onViolation: remedy once the adapter as trained violates a guard.
What it costs is the passes over half of validation and general rows for each smaller scale, and one evaluation at the
chosen scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from finetune_api.calibration import ScaleSweep
from finetune_api.measurements import Divergence, PriorGain
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.methods.base import Scales
from finetune_trainer.transfer.evaluate import Measured
from finetune_trainer.transfer.evidence import Subject, evidence_of
from finetune_trainer.transfer.release import judge
from finetune_trainer.transfer.scale import SMALLER, Split, choose, chooses, curve, split, tried, with_tried

from .setup import Setup

Measure = Callable[[Mapping[str, Corpus]], Mapping[str, Measured]]
"""Measures the network as it is, by name of data set. Collective."""


@dataclass(frozen=True)
class Swept:
    subjects: tuple[Subject, ...]
    """As they are reported: data sets that chose are those of their other half."""
    sweep: ScaleSweep | None = None
    divergence: Divergence | None = None
    """From the base model, at the scale that is published."""
    prior: PriorGain | None = None


def swept(setup: Setup, measured: tuple[Subject, ...], measure: Measure) -> Swept:
    """Collective. `measured`: with the adapter as trained. Rank 0 alone knows the base model's rows, and decides."""
    attached, strategy, guards = setup.attached, setup.trainer.strategy, setup.spec.guards
    if not isinstance(attached, Scales) or not (setup.spec.evaluation.scale_sweep or guards.on_violation == "remedy"):
        return Swept(measured)
    halves = {str(at): split(each.corpus) for at, each in enumerate(measured) if chooses(each, guards)}
    splits = {name: part for name, part in halves.items() if len(part.choosing.rows) and len(part.judging.rows)}
    asked = _asked(setup, measured, splits) if strategy.place.first else _Asked()
    if not strategy.broadcast_json(asked.wanted):
        return Swept(measured)
    points = {1.0: {name: part.choosing.of(_tuned(measured[int(name)])) for name, part in splits.items()}}
    for scale in SMALLER:
        attached.apply_at(scale)
        setup.trainer.reporter.phase("evaluating", f"measuring the adapter at {scale:g} of its trained scale")
        points[scale] = dict(measure({name: part.choosing.corpus for name, part in splits.items()}))
    sweep = _chosen(setup, measured, splits, points, violated=asked.violated) if strategy.place.first else None
    told = strategy.broadcast_json(sweep and sweep.to_json())
    sweep = ScaleSweep.model_validate(told, strict=False)
    attached.apply_at(1.0 if sweep.chosen is None else sweep.chosen)
    setup.trainer.reporter.say(sweep.told())
    kept = tuple(
        with_tried(each, splits[str(at)], {scale: found[str(at)] for scale, found in points.items()})
        if str(at) in splits
        else each
        for at, each in enumerate(measured)
    )
    return Swept(kept if sweep.chosen is None else _judged(setup, kept, splits, sweep.chosen, measure), sweep)


@dataclass(frozen=True)
class _Asked:
    wanted: bool = False
    violated: bool = False
    """The adapter as trained violates a guard on all rows, so its own scale is none to choose."""


def _asked(setup: Setup, measured: tuple[Subject, ...], splits: Mapping[str, Split]) -> _Asked:
    """Nothing can be chosen without rows, or where a run of an older version left none of the base model."""
    if not splits or not all(isinstance(measured[int(name)].base, Measured) for name in splits):
        return _Asked()
    release = judge(setup.spec.guards.of_rows, evidence_of(measured, setup.data.labels).evaluation())
    return _Asked(wanted=setup.spec.evaluation.scale_sweep or release.violated, violated=release.violated)


def _chosen(
    setup: Setup,
    measured: tuple[Subject, ...],
    splits: Mapping[str, Split],
    points: Mapping[float, Mapping[str, Measured]],
    *,
    violated: bool,
) -> ScaleSweep:
    found = [
        tried(
            scale,
            [part.choosing.subject(measured[int(name)], at_scale[name]) for name, part in splits.items()],
            labels=setup.data.labels,
            guards=setup.spec.guards.of_rows,
        )
        for scale, at_scale in points.items()
    ]
    candidates = [each for each in found if each.scale < 1 or not violated]
    return ScaleSweep(chosen=choose(candidates), curve=curve(found))


def _judged(
    setup: Setup, measured: tuple[Subject, ...], splits: Mapping[str, Split], chosen: float, measure: Measure
) -> tuple[Subject, ...]:
    """Data sets that chose by their other half, all others whole."""
    names = {str(at): each for at, each in enumerate(measured)}
    if chosen == 1:
        after = {name: part.judging.of(_tuned(names[name])) for name, part in splits.items()}
        after |= {name: _tuned(each) for name, each in names.items() if name not in splits}
    else:
        setup.trainer.reporter.phase("evaluating", f"measuring the adapter at {chosen:g}, which is published")
        corpora = {name: splits[name].judging.corpus if name in splits else each.corpus for name, each in names.items()}
        after = dict(measure(corpora))
    return tuple(
        splits[name].judging.subject(each, after[name]) if name in splits else each.measured_as(after[name])
        for name, each in names.items()
    )


def _tuned(subject: Subject) -> Measured:
    assert subject.tuned is not None
    return subject.tuned
