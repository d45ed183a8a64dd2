"""Axolotl's `axolotl train`, in one process; its LoRA kernels are for GPUs and are turned off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common import RANK, TARGETS, Meter, Task, constants, examples, main, watching


def side(task: Task) -> dict[str, Any]:
    import yaml
    from axolotl.cli.train import do_cli
    from transformers import AutoConfig, Trainer

    scratch = Path(task.scratch)
    (scratch / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples(task)))
    layers = task.adapted(AutoConfig.from_pretrained(task.model).num_hidden_layers)
    batch: dict[str, Any] = {"micro_batch_size": task.rows, "gradient_accumulation_steps": 1}
    if task.packing:
        batch = {"micro_batch_size": 4, "gradient_accumulation_steps": 1000, "sample_packing": True}
    fixed = constants(task)
    settings = {
        **batch,
        "base_model": task.model,
        "datasets": [{"path": str(scratch / "rows.jsonl"), "ds_type": "json", "type": None}],
        "dataset_prepared_path": str(scratch / "prepared"),
        "output_dir": str(scratch / "out"),
        "sequence_len": task.length,
        "adapter": "lora",
        "lora_r": RANK,
        "lora_alpha": 2 * RANK,
        "lora_dropout": 0.0,
        "lora_target_modules": TARGETS,
        "lora_mlp_kernel": False,
        "lora_qkv_kernel": False,
        "lora_o_kernel": False,
        "lora_embedding_kernel": False,
        "attn_implementation": "sdpa",
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "device_map": "cpu",
        "optimizer": "adamw_torch_fused",
        "learning_rate": fixed["learning_rate"],
        "lr_scheduler": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "num_epochs": fixed.get("num_train_epochs", 1),
        "curriculum_sampling": True,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 1,
        **({"max_steps": fixed["max_steps"]} if "max_steps" in fixed else {}),
        **({"lora_layers_to_transform": layers} if layers else {}),
    }
    (scratch / "axolotl.yaml").write_text(yaml.safe_dump(settings))
    meter = Meter()
    plain = Trainer.train

    def train(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        self.add_callback(watching(meter))
        return plain(self, *args, **kwargs)

    Trainer.train = train
    do_cli(str(scratch / "axolotl.yaml"))
    return meter.report("axolotl", "transformers", "peft", "accelerate", "torch")


if __name__ == "__main__":
    main(side)
