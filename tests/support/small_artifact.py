"""A small artifact on disk: adapter or whole model, with its record and manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from finetune_trainer.report.record import RECORD_FILE, RunRecord
from finetune_trainer.store.folder import digest_of
from finetune_trainer.store.manifest import MANIFEST, Kind, Manifest, entries
from tests.support.small_report import record

KEY = "base_model.model.model.layers.0.self_attn.q_proj"
PLAIN: dict[str, Any] = {
    "peft_type": "LORA", "base_model_name_or_path": "org/tiny", "r": 16, "lora_alpha": 32, "target_modules": ["q_proj"],
    "bias": "none",
}  # fmt: skip


def adapter(folder: Path, **config: Any) -> None:
    """The files of a LoRA adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(PLAIN | config))
    weights = {f"{KEY}.lora_{side}.weight": np.zeros((2, 2), np.float32) for side in "AB"}
    save_file(weights, folder / "adapter_model.safetensors")


def whole(folder: Path, **config: Any) -> None:
    """The files of a causal language model, as far as they are looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]} | config))
    save_file({"lm_head.weight": np.zeros((2, 2), np.float32)}, folder / "model.safetensors")


def committed(folder: Path, of: RunRecord | None = None, *, kind: Kind = "adapter") -> str:
    """Writes record and manifest of what is in the folder; returns its URI."""
    run = of or record()
    (folder / RECORD_FILE).write_text(run.encode())
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    digests = entries({name: digest_of(file) for name, file in files.items() if name != MANIFEST})
    (folder / MANIFEST).write_bytes(Manifest(run=run.job, kind=kind, files=digests).encode())
    return folder.as_uri()
