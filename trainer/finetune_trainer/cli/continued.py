"""What `finetune plan` knows of the artifact that a job continues from: the memory of its frozen adapter, and the tasks
whose training rows are replayed."""

from __future__ import annotations

from pathlib import Path

from finetune_api import uris
from finetune_api.names import PREFIX_OUTPUT
from finetune_api.regularization import EARLIER_ROWS
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.methods.frozen_adapter import WEIGHTS
from finetune_trainer.planning.earlier_adapter import like_its_own, with_earlier
from finetune_trainer.planning.memory import human
from finetune_trainer.planning.model import ModelShape
from finetune_trainer.store.artifact import read_manifest
from finetune_trainer.store.manifest import MANIFEST
from finetune_trainer.store.opening import open_folder
from finetune_trainer.store.trained_on import TrainedTask, unnamed


def continued(spec: FineTuneJobSpec, shape: ModelShape) -> tuple[ModelShape, str]:
    """Returns the model with the frozen adapter of spec.continueFrom, and a line about it; "" if there is none."""
    if spec.continue_from is None or not spec.method.traits.scalable:
        return shape, ""
    folder = _local(spec.continue_from)
    if folder is None:
        found, how = like_its_own(shape, spec.method), "planned as large as the new one, since plan downloads nothing"
    elif (folder / WEIGHTS).is_file():
        found, how = with_earlier(shape, spec.method, folder), "read from its file"
    else:
        return shape, f"continueFrom: no adapter in {folder}, so none is planned"
    held = human(4 * found.frozen_adapter)
    return found, f"continueFrom: {held} for the frozen earlier adapter is included in states, {how}"


def replayed_tasks(spec: FineTuneJobSpec) -> tuple[TrainedTask, ...] | None:
    """Returns the tasks of regularization.replay.source earlier. None without it, and where the artifact is not here.
    Raises InvalidSpec if the artifact does not name its training data."""
    if not spec.regularization.replays_earlier or spec.continue_from is None:
        return None
    folder = _local(spec.continue_from)
    if folder is None or not (folder / MANIFEST).is_file():
        return None
    known = read_manifest(open_folder(spec.continue_from, prefix=PREFIX_OUTPUT)).trained_on
    if known is None:
        raise unnamed(spec.continue_from)
    return known.tasks


def replayed_text(spec: FineTuneJobSpec) -> str:
    """Returns lines about what is replayed, and how much; "" where the manifest has it all."""
    replay = spec.regularization.replay
    if replay is None:
        return ""
    earlier = _earlier_tasks(spec) if replay.source == "earlier" else ""
    if replay.fraction is not None:
        return earlier
    measured = "" if earlier else "; finetune analyze measures it now"
    return earlier + (
        "\nregularization.replay.fraction: decided by the shift before the first step, planned with the largest, "
        f"{replay.planned:g}{measured}"
    )


def _earlier_tasks(spec: FineTuneJobSpec) -> str:
    """Whose training rows are replayed."""
    tasks = replayed_tasks(spec)
    if tasks is None:
        named = "all that the artifact names; it is not here, so their rows are taken to be long"
    else:
        rows = sum(source.rows for task in tasks for source in task.sources)
        named = f"{', '.join(task.name for task in tasks)} ({rows:,} rows with those held out)"
    return f"\nregularization.replay.source earlier: at most {EARLIER_ROWS:,} training rows of earlier tasks: {named}"


def _local(uri: str) -> Path | None:
    found = uris.parse(uri)
    return Path("/" + found.path.lstrip("/")) if found.scheme == "file" else None
