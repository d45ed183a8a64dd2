"""LLaMA-Factory's supervised fine-tuning. It reads text only, through templates of its own; so that it gets our tokens,
its encoder is told to answer them, and everything behind that is its own. Checkpointing is on by default, and a model
trains in the type that its configuration names: here float32 is named."""

from __future__ import annotations

import json
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from common import RANK, TARGETS, Meter, Task, constants, examples, main, watching


def side(task: Task) -> dict[str, Any]:
    # Imported at its start and used for sound alone; there is no wheel of it for this torch.
    stub = types.ModuleType("torchaudio")
    stub.__spec__ = ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = stub
    from llamafactory.data.processor.supervised import SupervisedDatasetProcessor
    from llamafactory.train.tuner import run_exp
    from transformers import AutoConfig

    rows = examples(task)
    model = Path(task.scratch) / "model"
    _in_float32(Path(task.model), model)
    folder = Path(task.scratch) / "data"
    folder.mkdir()
    numbered = [{"instruction": str(i), "input": "", "output": "-"} for i in range(len(rows))]
    (folder / "rows.json").write_text(json.dumps(numbered))
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))

    def ours(_: Any, prompt: list[dict[str, str]], *__: Any, **___: Any) -> tuple[list[int], list[int]]:
        row = rows[int(prompt[0]["content"])]
        return list(row["input_ids"]), list(row["labels"])

    SupervisedDatasetProcessor._encode_data_example = ours
    targets = TARGETS
    if (layers := task.adapted(AutoConfig.from_pretrained(task.model).num_hidden_layers)) is not None:
        halves = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn"}
        targets = [f"layers.{layer}.{halves.get(name, 'mlp')}.{name}" for layer in layers for name in TARGETS]
    batch: dict[str, Any] = {"per_device_train_batch_size": task.rows, "cutoff_len": task.length}
    if task.packing:
        # Rows of packed data are one token shorter than it says, and any but a multiple of 8 ends in a crash.
        batch = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1000, "neat_packing": True}
        batch["cutoff_len"] = (task.length // 8 + 1) * 8
    meter = Meter()
    run_exp(
        {
            **constants(task),
            **batch,
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": str(model),
            "dataset": "rows",
            "dataset_dir": str(folder),
            "template": "empty",
            "finetuning_type": "lora",
            "lora_rank": RANK,
            "lora_alpha": 2 * RANK,
            "lora_dropout": 0.0,
            "lora_target": ",".join(targets),
            "disable_shuffling": True,
            "disable_gradient_checkpointing": task.setting != "default",
        },
        callbacks=[watching(meter)],
    )
    return meter.report("llamafactory", "transformers", "peft", "accelerate", "torch")


def _in_float32(model: Path, folder: Path) -> None:
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))


if __name__ == "__main__":
    main(side, absent=["bitsandbytes"])
