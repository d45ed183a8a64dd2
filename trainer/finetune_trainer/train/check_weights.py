"""`python -m finetune_trainer.train.check_weights FOLDER`: whether a model's files contain what its class needs.

A process of its own for the preflight, which does not load torch. It reads headers alone, and prints one line of JSON:
{"lines": [...]}, or of a failure {"reason": …, "message": …, "hint": …}.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

from finetune_api.failures import FinetuneError

from .process_exit import exit_process


def answer(folder: Path) -> dict[str, Any]:
    """What the process prints."""
    from finetune_trainer.parallel.weight_names import account_of

    try:
        found = account_of(folder)
        found.require_even()
    except FinetuneError as error:
        return {"reason": error.reason, "message": error.message, "hint": error.hint}
    return {"lines": list(found.lines())}


def main() -> int:
    warnings.simplefilter("ignore")
    print(json.dumps(answer(Path(sys.argv[1]))), flush=True)
    return 0


if __name__ == "__main__":
    exit_process(main())
