"""TRL's SFTTrainer with what its documentation recommends for speed: packing, Liger's kernels, no checkpointing,
the fused optimizer. Its best-fit packing wants flash-attn, which is not there. Rows that are cut where they are full
("wrapped") let documents see each other and need no mask: that is the faster packing on sdpa."""

from __future__ import annotations

from tests.gpu.sides.task import Task, Timed, common, lora, network, versions, watching


def side(task: Task) -> Timed:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    timed = Timed(task)
    arguments = SFTConfig(
        **common(task, task.folder / "trl"),
        max_length=task.load.row,
        packing=True,
        packing_strategy="wrapped",
        dataset_num_proc=None,
    )
    SFTTrainer(
        model=network(task),
        args=arguments,
        train_dataset=Dataset.from_list([{"input_ids": row} for row in task.rows()]),
        processing_class=AutoTokenizer.from_pretrained(task.folder / "model"),
        peft_config=None if task.load.method == "full" else lora(),
        callbacks=[watching(timed)],
    ).train()
    timed.setting = f"packing wrapped, {task.setting}"
    timed.versions = versions("trl", "transformers", "peft", "accelerate", "torch")
    return timed
