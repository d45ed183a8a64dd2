"""What was found inside a model, as a run's record and an analysis show it."""

from __future__ import annotations

from finetune_api.status import Evaluation
from finetune_trainer.report.layers import ChangedData, Inside, LayerChange, Recommendation

from .advice import after_training, better
from .similarity import LayerSimilarity, Layerwise, Similarity


def inside(found: Layerwise, evaluation: Evaluation, *, rows: int) -> Inside:
    """With what follows for the next run. evaluation: of the same models; rows: training rows."""
    advice = after_training(found.similarity, blocks=found.blocks, gained=better(evaluation), rows=rows)
    return Inside(
        similarity=tuple(map(changed, found.similarity)),
        notes=found.notes,
        recommendations=tuple(Recommendation(set=each.setting, because=each.why) for each in advice),
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
