"""Whether a model can be trained by a job's method, asked of the model's class in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Method

_SECONDS = 300.0

KNOWN = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text", "gpt_neox", "phi3")
"""Families that every method trains (docs/models.md): asking takes seconds, so they are not asked."""


def check_suits(folder: Path, method: Method, *, device: str | None, vocabulary: bool = False) -> None:
    """The FinetuneError that a run of `method` on the model in `folder` would end with, or with `vocabulary` where rows
    of its embeddings cannot train. `device`: `cpu` or `cuda`; None where it is another machine's."""
    config = json.loads((folder / "config.json").read_bytes())
    if config.get("model_type") in KNOWN and (not method.traits.four_bits or device is None):
        return
    found = _asked(folder, method, device, vocabulary=vocabulary)
    if "reason" in found:
        raise FinetuneError(Reason(found["reason"]), found["message"], found["hint"])


def _asked(folder: Path, method: Method, device: str | None, *, vocabulary: bool) -> dict[str, Any]:
    command = [sys.executable, "-m", "finetune_trainer.train.method_support", "--model", str(folder)]
    command += ["--method", method.model_dump_json(by_alias=True, exclude_none=True)]
    command += ["--device", device] if device else []
    command += ["--vocabulary"] if vocabulary else []
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""} if device != "cuda" else None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True, env=hidden)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.SubprocessError, OSError, ValueError, IndexError):
        return {}  # not the model's fault as far as is known here: a run asks again
    return found
