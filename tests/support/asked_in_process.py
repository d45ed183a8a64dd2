"""Whether a method can train a model, asked in this process.

The preflight and `finetune plan` ask a process of its own, which imports torch and transformers for five seconds.
tests/unit/test_methods_families.py starts a real one; other tests are about what follows from the answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_api.methods import Method
from finetune_trainer.planning import suits
from finetune_trainer.train.method_support import answer


def ask_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(folder: Path, method: Method, device: str | None, *, vocabulary: bool = False) -> dict[str, Any]:
        return answer(folder, method, torch.device(device) if device else None, vocabulary=vocabulary)

    monkeypatch.setattr(suits, "_asked", asked)
