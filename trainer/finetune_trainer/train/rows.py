"""The training rows as a run sees them: what augmentation makes of a step's, and what the record says of all."""

from __future__ import annotations

from collections.abc import Iterator

from finetune_api.failures import FinetuneError, Reason
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.corpus import Corpus, Numbers, Tokens
from finetune_trainer.data.load import Datasets
from finetune_trainer.data.padding import layout_statistics
from finetune_trainer.methods.base import Attached, SwitchesOff, UpdatesByProducts
from finetune_trainer.parallel.base import Place
from finetune_trainer.regularization.base import Penalty, Regularization
from finetune_trainer.regularization.kl_to_base import KlToBase
from finetune_trainer.regularization.l2sp import DistanceOfProducts, DistanceOfWeights
from finetune_trainer.regularization.replay import Replay
from finetune_trainer.statistics import DataRecord
from finetune_trainer.transfer.evaluate import Layout

from .loop import Course, Varied


def varied(data: Datasets, before: Tokens | None) -> Varied | None:
    """What augmentation makes of a step's rows, after the tokens that precede every row."""
    variants = data.variants
    if variants is None:
        return None

    def of_step(rows: Numbers, epoch: int) -> tuple[Corpus, Numbers]:
        corpus, places = variants.of(rows, epoch=epoch)
        return (corpus if before is None else corpus.after(before)), places

    return of_step


def replay_of(spec: FineTuneJobSpec, data: Datasets, before: Tokens | None) -> Replay | None:
    """What is replayed, if anything is, after the tokens that precede every row."""
    settings = spec.regularization.replay
    if settings is None or data.replay is None:
        return None
    per_step = settings.rows_per_step(spec.training.batch_size)
    tokens_per_row = data.trained_tokens_per_epoch / max(1, data.mixture.per_epoch)
    corpus = data.replay if before is None else data.replay.after(before)
    return Replay.of(
        corpus,
        per_step=per_step,
        tokens_per_row=tokens_per_row,
        seed=spec.training.seed,
        parts=data.replay_parts,
    )


def divergence_of(spec: FineTuneJobSpec, attached: Attached, replay: Replay | None) -> KlToBase | None:
    """The term of regularization.klToBase. InvalidSpec if the method cannot switch back to the base model."""
    settings, replayed = spec.regularization.kl_to_base, spec.regularization.replay
    if settings is None:
        return None
    if not isinstance(attached, SwitchesOff):
        raise FinetuneError(
            Reason.InvalidSpec,
            f"regularization.klToBase would need a second copy of the model with method.type {spec.method.type}",
            "Use method.type: lora, or regularization.replay alone.",
        )
    if replay is None or replayed is None:
        return KlToBase.on_training_rows(settings.beta, attached.as_base)
    return KlToBase.on_replay(settings.beta, attached.as_base, fraction=replayed.planned, weight=replay.weight)


def regularization_of(spec: FineTuneJobSpec, attached: Attached, replay: Replay | None, place: Place) -> Regularization:
    """All terms of spec.regularization, of weights that are those of the start."""
    return Regularization(replay, divergence_of(spec, attached, replay), tuple(_penalties(spec, attached, place)))


def _penalties(spec: FineTuneJobSpec, attached: Attached, place: Place) -> Iterator[Penalty]:
    if (l2sp := spec.regularization.l2sp) is not None:
        if isinstance(attached, UpdatesByProducts):
            yield DistanceOfProducts.of(attached.products(), strength=l2sp.strength, place=place)
        else:
            yield DistanceOfWeights.of(attached.trainable.values(), strength=l2sp.strength, place=place)


def _weights(spec: FineTuneJobSpec, data: Datasets) -> dict[str, float]:
    """By URI, of sources whose rows are not seen once in an epoch."""
    if len(data.mixture.weights) != len(spec.data.train):
        return {}
    pairs = zip(spec.data.train, data.mixture.weights, strict=True)
    return {source.uri: weight for source, weight in pairs if weight != 1}


def longest_row(data: Datasets) -> int:
    """Tokens of the longest row of a step."""
    return max(int(corpus.lengths.max(initial=1)) for corpus in (data.train, data.replay) if corpus is not None)


def data_record(
    spec: FineTuneJobSpec, data: Datasets, lengths: Numbers, course: Course, layout: Layout, *, world_size: int
) -> DataRecord:
    steps, batch = course.total_steps, course.batch_size
    return DataRecord(
        statistics=data.statistics,
        weights=_weights(spec, data),
        layout=layout_statistics(
            lengths,
            data.mixture,
            total_steps=steps,
            batch_size=batch,
            seed=course.seed,
            world_size=world_size,
            max_tokens=layout.max_tokens,
            sequence_length=layout.sequence_length,
            packing=layout.packing,
        ),
        augmentation=tuple(data.variants.statistics(data.mixture, steps=steps, batch_size=batch))
        if data.variants
        else (),
    )
