"""What `finetune plan` knows of the artifact that a job continues from: the memory of its frozen adapter."""

from __future__ import annotations

from pathlib import Path

from finetune_api import uris
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.methods.frozen_adapter import WEIGHTS
from finetune_trainer.planning.earlier_adapter import like_its_own, with_earlier
from finetune_trainer.planning.memory import human
from finetune_trainer.planning.model import ModelShape


def continued(spec: FineTuneJobSpec, shape: ModelShape) -> tuple[ModelShape, str]:
    """Returns the model with the frozen adapter of spec.continueFrom, and a line about it; "" if there is none."""
    if spec.continue_from is None or not spec.method.traits.scalable:
        return shape, ""
    uri = uris.parse(spec.continue_from)
    folder = Path("/" + uri.path.lstrip("/")) if uri.scheme == "file" else None
    if folder is None:
        found, how = like_its_own(shape, spec.method), "planned as large as the new one, since plan downloads nothing"
    elif (folder / WEIGHTS).is_file():
        found, how = with_earlier(shape, spec.method, folder), "read from its file"
    else:
        return shape, f"continueFrom: no adapter in {folder}, so none is planned"
    held = human(4 * found.frozen_adapter)
    return found, f"continueFrom: {held} for the frozen earlier adapter is included in states, {how}"
