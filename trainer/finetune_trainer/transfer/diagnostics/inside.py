"""What was found inside a model, as a run's record and an analysis show it."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.measurements import Evaluation
from finetune_trainer.report.layers import (
    ChangedData,
    ConceptCurve,
    ConceptLayer,
    Inside,
    LayerChange,
    Recommendation,
)

from .advice import after_training, better
from .concepts import Concept
from .similarity import LayerSimilarity, Similarity


@dataclass(frozen=True, kw_only=True)
class Layerwise:
    """Of one run."""

    blocks: int
    similarity: tuple[Similarity, ...] = ()
    concepts: tuple[tuple[Concept, Concept], ...] = ()
    """Of base and tuned model."""
    notes: tuple[str, ...] = ()
    """What was not compared, and why."""


def inside(found: Layerwise, evaluation: Evaluation, *, rows: int) -> Inside:
    """With what follows for the next run. evaluation: of the same models; rows: training rows."""
    advice = after_training(found.similarity, blocks=found.blocks, gained=better(evaluation), rows=rows)
    return Inside(
        similarity=tuple(map(changed, found.similarity)),
        concepts=tuple(concept_curve(base, tuned) for base, tuned in found.concepts),
        notes=found.notes,
        recommendations=tuple(Recommendation(set=each.setting, because=each.why) for each in advice),
    )


def concept_curve(base: Concept, tuned: Concept | None = None) -> ConceptCurve:
    """Both on the same tokens, in the same layers."""
    after = tuned.layers if tuned is not None else (None,) * len(base.layers)
    layers = tuple(
        ConceptLayer(
            layer=each.layer,
            accuracy=each.accuracy,
            standard_error=each.error,
            control=each.control,
            tuned_accuracy=other.accuracy if other else None,
            tuned_standard_error=other.error if other else None,
            tuned_control=other.control if other else None,
        )
        for each, other in zip(base.layers, after, strict=True)
    )
    return ConceptCurve(
        name=base.name, labels=base.labels, tokens=base.tokens, rows=base.rows, majority=base.majority, layers=layers
    )


def changed(found: Similarity) -> ChangedData:
    return ChangedData(
        name=found.name,
        documents=found.documents,
        tokens=found.tokens,
        tokens_for_canonical_correlations=found.needed,
        changed_from=found.changed_from,
        layers=tuple(map(_layer, found.layers)),
    )


def _layer(found: LayerSimilarity) -> LayerChange:
    canonical, chance = found.canonical, found.canonical_null
    return LayerChange(
        layer=found.layer,
        cka=found.cka,
        standard_error=found.error,
        raw_cka=found.raw,
        null_cka=found.null,
        svcca=canonical.svcca if canonical else None,
        pwcca=canonical.pwcca if canonical else None,
        null_svcca=chance.svcca if chance else None,
        null_pwcca=chance.pwcca if chance else None,
    )
