"""What a ladder may cost on this machine, before its first rung."""

from __future__ import annotations

import sys
from pathlib import Path

from finetune_api.failures import FinetuneError
from finetune_api.job import FineTuneJob
from finetune_trainer.agent.home import Home
from finetune_trainer.cli.ladder_plan import is_labelled
from finetune_trainer.cli.plan import model_folder, shape_of
from finetune_trainer.cli.workload import workload_of
from finetune_trainer.planning.forecast import Forecast, forecast, here, with_method
from finetune_trainer.planning.positions import fitted


def foresee(job: FineTuneJob, home: Home) -> Forecast:
    """From local files, on this machine: without a model on disk its rungs are all tried, at unknown cost."""
    spec = with_method(job.spec)
    workload, labelled = workload_of(spec, longest=None), is_labelled(spec)
    try:
        folder: Path = model_folder(spec.model, cache=home.path.absolute() / "cache")
        shape = shape_of(folder)
    except FinetuneError as error:
        print(f"ladder: cost and memory are not known in advance: {error.message}", file=sys.stderr)
        return forecast(spec, None, workload, labelled=labelled)
    spec = spec.model_copy(update={"given_data": fitted(spec.data, folder, spec.method)})
    return here(spec, shape, workload, labelled=labelled)
