"""What an artifact's manifest says about the data that its job and the jobs before it trained on."""

from __future__ import annotations

import numpy as np

from finetune_api.measurements import MOST_TASKS
from finetune_trainer.data.earlier_rows import MOST_MEASURED, Fingerprints
from finetune_trainer.store.sequence import unused
from finetune_trainer.store.trained_on import TrainedOn, trained_task

from .setup import Setup


def trained_on(setup: Setup) -> TrainedOn | None:
    """None where it cannot be said of each of the jobs: a later one could not replay the rows of all."""
    earlier, data, spec = setup.earlier, setup.data, setup.spec
    before = earlier.rows.tasks if earlier is not None and earlier.rows is not None else ()
    unknown = earlier is not None and earlier.rows is None
    if unknown or len(before) >= MOST_TASKS or len(measured_rows(setup)) > MOST_MEASURED:
        return None
    validation = spec.data.validation
    groups = {spec.evaluation.group_by, validation.group_by if validation else None}
    task = trained_task(
        spec.data,
        name=unused(setup.plan.job.name, tuple(each.name for each in before)),
        artifact=spec.output.uri,
        seed=spec.training.seed,
        labels=data.labels,
        keys=tuple(sorted(filter(None, groups))),
        rows=[source.rows for source in data.statistics.sources],
        files=data.files,
        digests=data.digests,
    )
    return None if task is None else TrainedOn(tasks=(*before, task))


def measured_rows(setup: Setup) -> Fingerprints:
    """Of all these jobs, sorted, each once."""
    earlier = setup.earlier.rows if setup.earlier is not None else None
    return np.union1d(setup.data.measured, earlier.measured) if earlier is not None else setup.data.measured
