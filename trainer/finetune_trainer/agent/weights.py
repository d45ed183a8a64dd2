"""Before the gang waits: whether a model's files hold every weight of its class, and nothing else.

Dense families are known from their config.json alone. For any other the class is asked, in a process of its own that
loads torch and ends.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.planning.layout import is_exactly
from finetune_trainer.store.tensors import stored_tensors

_SECONDS = 300.0


def check_weights(folder: Path) -> list[str]:
    """What a reader should know of the weights. ModelUnsupported names those that are missing, that fit nothing, or
    have another shape."""
    if _is_plain(folder):
        return []
    found = _asked(folder)
    if "reason" in found:
        raise FinetuneError(Reason(found["reason"]), found["message"], found["hint"])
    return [f"weights: {line}" for line in found["lines"]]


def _is_plain(folder: Path) -> bool:
    config = json.loads((folder / "config.json").read_bytes())
    return is_exactly(config, {name: tensor.shape for name, tensor in stored_tensors(folder).items()})


def _asked(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "finetune_trainer.train.check_weights", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        # Not the model's fault as far as is known here; every rank asks again before it loads.
        words = (getattr(error, "stderr", None) or str(error)).strip().splitlines() or [""]
        return {"lines": [f"not looked at before the ranks start ({words[-1][:300]})"]}
    return found
