"""transformers.Trainer with PEFT, as its documentation writes it."""

from __future__ import annotations

from typing import Any

import torch
from common import RANK, TARGETS, Meter, Task, constants, examples, main, watching


def side(task: Task) -> dict[str, Any]:
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        DataCollatorWithFlattening,
        Trainer,
        TrainingArguments,
    )

    network = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    network.config.use_cache = False
    adapter = get_peft_model(
        network,
        LoraConfig(
            r=RANK,
            lora_alpha=2 * RANK,
            target_modules=TARGETS,
            layers_to_transform=task.adapted(network.config.num_hidden_layers),
            task_type="CAUSAL_LM",
        ),
    )
    if task.setting == "flattened":
        collator: Any = DataCollatorWithFlattening()
    else:
        collator = DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(task.model))
    rows = 8 if task.packing else task.rows  # 8 is the Trainer's own default
    arguments = TrainingArguments(
        **constants(task),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=-(-task.rows // rows),
        train_sampling_strategy="group_by_length" if task.setting == "grouped" else "sequential",
    )
    meter = Meter()
    Trainer(
        model=adapter,
        args=arguments,
        train_dataset=examples(task),
        data_collator=collator,
        callbacks=[watching(meter)],
    ).train()
    return meter.report("transformers", "peft", "accelerate", "torch")


if __name__ == "__main__":
    main(side, absent=["bitsandbytes"])
