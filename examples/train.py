"""An ordinary Hugging Face Trainer, without any code for finetune-operator. It reads lines of text from a file, resumes
from its last checkpoint, and saves the model in its folder."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=1)
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    lines = [line for line in options.text.read_text().splitlines() if line]
    rows = [tokenizer(line, truncation=True, max_length=256) for line in lines]
    arguments = TrainingArguments(
        output_dir=str(options.output),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        logging_steps=1,
        save_steps=20,
        enable_jit_checkpoint=True,  # SIGTERM: a checkpoint, then the end
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(options.model),
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    last = get_last_checkpoint(str(options.output)) if options.output.exists() else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model()


if __name__ == "__main__":
    main()
