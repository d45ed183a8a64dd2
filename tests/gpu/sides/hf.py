"""Hugging Face's Trainer with PEFT, as run_clm.py feeds it: full rows, no mask, causal attention by sdpa."""

from __future__ import annotations

from typing import Any

from tests.gpu.sides.task import Task, Timed, common, lora, network, versions, watching


def side(task: Task) -> Timed:
    import torch
    from peft import get_peft_model
    from transformers import Trainer, TrainingArguments

    timed = Timed(task)
    made = network(task)
    if task.load.method != "full":
        made = get_peft_model(made, lora())
    rows = [torch.tensor(row) for row in task.filled()]

    def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
        ids = torch.stack([item["input_ids"] for item in items])
        return {"input_ids": ids, "labels": ids}

    arguments = TrainingArguments(**common(task, task.folder / "hf"), train_sampling_strategy="sequential")
    Trainer(
        model=made,
        args=arguments,
        train_dataset=[{"input_ids": row} for row in rows],
        data_collator=collate,
        callbacks=[watching(timed)],
    ).train()
    timed.setting = f"rows cut where they are full, {task.setting}"
    timed.versions = versions("transformers", "peft", "accelerate", "torch")
    return timed
