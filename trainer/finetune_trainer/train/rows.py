"""The training rows as a run sees them: what augmentation makes of a step's, and what is told about all of them."""

from __future__ import annotations

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.data.corpus import Corpus, Numbers, Tokens
from finetune_trainer.data.layout import layout_statistics
from finetune_trainer.data.load import Datasets
from finetune_trainer.statistics import DataRecord
from finetune_trainer.transfer.evaluate import Layout

from .loop import Course, Varied


def varied(data: Datasets, before: Tokens | None) -> Varied | None:
    """What augmentation makes of a step's rows, behind the tokens that belong in front of every row."""
    variants = data.variants
    if variants is None:
        return None

    def of_step(rows: Numbers, epoch: int) -> tuple[Corpus, Numbers]:
        corpus, places = variants.of(rows, epoch=epoch)
        return (corpus if before is None else corpus.after(before)), places

    return of_step


def data_record(
    spec: FineTuneJobSpec, data: Datasets, lengths: Numbers, course: Course, layout: Layout, *, world_size: int
) -> DataRecord:
    steps, batch = course.total_steps, course.batch_size
    return DataRecord(
        statistics=data.statistics,
        weights={source.uri: source.weight for source in spec.data.train if source.weight != 1},
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
