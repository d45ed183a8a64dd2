"""Direct preference optimization with TRL, without any code for finetune-operator: torchrun starts this file in every
process. Rows have `prompt`, `chosen` and `rejected`. It resumes from its last checkpoint, and saves a LoRA adapter."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint
from trl import DPOConfig, DPOTrainer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=1)
    options = parser.parse_args()

    arguments = DPOConfig(
        output_dir=str(options.output),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=2,
        learning_rate=5e-5,
        beta=0.1,
        max_length=1024,
        logging_steps=1,
        save_steps=20,
        enable_jit_checkpoint=True,  # SIGTERM: a checkpoint, then the end
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = DPOTrainer(
        model=options.model,
        args=arguments,
        train_dataset=load_dataset("json", data_files=str(options.pairs), split="train"),
        processing_class=AutoTokenizer.from_pretrained(options.model),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    last = get_last_checkpoint(str(options.output)) if options.output.exists() else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model()


if __name__ == "__main__":
    main()
