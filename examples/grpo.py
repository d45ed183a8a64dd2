"""Group relative policy optimization with TRL, without any code for finetune-operator: torchrun starts this file in
every process. Rows have `prompt` and `answer`; the reward is 1 for a completion that contains the answer, and a little
for a short one. It resumes from its last checkpoint, and saves a LoRA adapter."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOConfig, GRPOTrainer


def has_the_answer(completions: list[str], answer: list[str], **_: Any) -> list[float]:
    """One reward for each completion; columns of the rows come as arguments of the same length."""
    return [1.0 if right in completion else 0.0 for completion, right in zip(completions, answer, strict=True)]


def is_short(completions: list[str], **_: Any) -> list[float]:
    return [0.1 / (1 + len(completion)) for completion in completions]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--tokens", type=int, default=256, help="of a completion, at most")
    options = parser.parse_args()

    arguments = GRPOConfig(
        output_dir=str(options.output),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=4,
        num_generations=4,  # completions of a prompt that are compared with each other
        max_completion_length=options.tokens,
        learning_rate=1e-5,
        logging_steps=1,
        save_steps=20,
        enable_jit_checkpoint=True,  # SIGTERM: a checkpoint, then the end
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = GRPOTrainer(
        model=options.model,
        args=arguments,
        reward_funcs=[has_the_answer, is_short],
        train_dataset=load_dataset("json", data_files=str(options.prompts), split="train"),
        processing_class=AutoTokenizer.from_pretrained(options.model, padding_side="left"),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    last = get_last_checkpoint(str(options.output)) if options.output.exists() else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model()


if __name__ == "__main__":
    main()
