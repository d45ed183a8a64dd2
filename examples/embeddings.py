"""An embedding model with sentence-transformers, without any code for finetune-operator: torchrun starts this file in
every process. Rows have `anchor` and `positive`. It resumes from its last checkpoint, and saves the model."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers.trainer_utils import get_last_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=1)
    options = parser.parse_args()

    on_gpu = torch.cuda.is_available()
    model = SentenceTransformer(options.model, device=None if on_gpu else "cpu")
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(options.output),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=16,
        learning_rate=2e-5,
        logging_steps=1,
        save_steps=20,
        enable_jit_checkpoint=True,  # SIGTERM: a checkpoint, then the end
        bf16=on_gpu,
        use_cpu=not on_gpu,
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=load_dataset("json", data_files=str(options.pairs), split="train"),
        loss=MultipleNegativesRankingLoss(model),  # the other rows of a batch are the negatives
    )
    last = get_last_checkpoint(str(options.output)) if options.output.exists() else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model()


if __name__ == "__main__":
    main()
