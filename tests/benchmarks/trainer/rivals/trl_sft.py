"""TRL's SFTTrainer, its defaults or what its documentation recommends for speed."""

from __future__ import annotations

from typing import Any

from common import RANK, TARGETS, Meter, Task, constants, examples, main, watching


def side(task: Task) -> dict[str, Any]:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoConfig
    from trl import SFTConfig, SFTTrainer

    packed = task.packing and task.setting != "padded"
    if packed:
        # Rows of the packed data set are as long as the longest document; 4 of them are 1024 tokens.
        batch = {"packing": True, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1000}
    elif task.packing:
        batch = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": -(-task.rows // 8)}
    else:
        batch = {"per_device_train_batch_size": task.rows}
    checkpointing = {} if task.setting == "default" else {"gradient_checkpointing": False}
    arguments = SFTConfig(
        **constants(task),
        **batch,
        **checkpointing,
        max_length=task.length,
        train_sampling_strategy="sequential",
        model_init_kwargs={"dtype": "float32"},
    )
    layers = AutoConfig.from_pretrained(task.model).num_hidden_layers
    lora = LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=TARGETS,
        layers_to_transform=task.adapted(layers),
        task_type="CAUSAL_LM",
    )
    meter = Meter()
    SFTTrainer(
        model=task.model,
        args=arguments,
        train_dataset=Dataset.from_list(examples(task)),
        peft_config=lora,
        callbacks=[watching(meter)],
    ).train()
    return meter.report("trl", "transformers", "peft", "accelerate", "torch")


if __name__ == "__main__":
    main(side, absent=["bitsandbytes"])
