"""Our own loop over given rows: nothing is left out that a run would do, but checkpoints and evaluation."""

from __future__ import annotations

import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

LENGTH, RATE = 256, 1e-4
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


def random_model(folder: Path, **changes: Any) -> Path:
    """Random weights in the shape of SmolLM2-135M."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**SMOLLM2, **changes})).save_pretrained(folder)
    return folder


def trainer_over(
    model: Path, method: Any, rows: Any, *, steps: int, batch: int, folder: Path, optimizer: Any = "adamw"
) -> Any:
    """(a Trainer over `rows` (rows, length), what is attached)"""
    import torch

    from finetune_api.plan import JobIdentity, RunPlan
    from finetune_api.spec import FineTuneJobSpec
    from finetune_trainer.data.corpus import corpus_of
    from finetune_trainer.methods.base import Base
    from finetune_trainer.methods.registry import method_of
    from finetune_trainer.parallel.single import Single
    from finetune_trainer.rundir import RunDir
    from finetune_trainer.store.checkpoints import CheckpointStore
    from finetune_trainer.store.opening import open_folder
    from finetune_trainer.train.capabilities import probe
    from finetune_trainer.train.checkpointer import Checkpointer
    from finetune_trainer.train.loop import Course, Trainer
    from finetune_trainer.train.model import LanguageModel, load_network
    from finetune_trainer.train.reporter import Reporter
    from finetune_trainer.transfer.evaluate import Layout

    device, strategy = torch.device("cpu"), Single()
    network, stored = load_network(model, dtype=torch.float32, strategy=strategy, device=device)
    abilities = probe(network, device)
    attached = method_of(method).attach(network, seed=1, base=Base("model", stored))
    length = rows.shape[1]
    corpus = corpus_of(list(rows.astype(np.int32)), [np.arange(length) > 0] * len(rows), [length] * len(rows))
    named = {
        "model": {"uri": "file:///m"},
        "data": {"train": [{"uri": "file:///d.jsonl"}]},
        "output": {"uri": "file:///o"},
    }
    spec = FineTuneJobSpec.model_validate(named, strict=False)
    plan = RunPlan(job=JobIdentity(namespace="bench", name="step", uid="0"), spec=spec)
    course = Course(
        total_steps=steps,
        batch_size=batch,
        seed=1,
        peak_rate=RATE,
        warmup_ratio=0.0,
        schedule="constant",
        max_grad_norm=1.0,
        evaluate_every=steps,
        patience=None,
        min_delta=0.0,
    )
    network.train()
    store = CheckpointStore(open_folder(f"file://{folder}/output", prefix=""), plan.job)
    return Trainer(
        course=course,
        model=LanguageModel(network, device, None, abilities),
        weights=strategy.weights(network, attached.trainable, weight_decay=0.0, optimizer=optimizer),
        train=corpus,
        validation=None,
        layout=Layout(max_tokens=batch * length, sequence_length=length, packing=True, pad_id=0),
        strategy=strategy,
        checkpointer=Checkpointer(strategy=strategy, store=store, keep=1, every_steps=steps + 1, every_seconds=None),
        reporter=Reporter(RunDir(folder / "run"), plan, strategy.place),
        stop_requested=lambda: False,
    ), attached


def with_kept_states(trainer: Any, attached: Any, folder: Path) -> Any:
    """The same, its frozen layers run once: now."""
    from finetune_trainer.train.frozen_cache import StateCache, keep
    from finetune_trainer.train.frozen_layers import find_frozen_layers

    model = trainer.model
    below = find_frozen_layers(model.network, attached.lowest_layer, model.device)
    trainer = replace(trainer, model=replace(model, below=below))
    shelf = StateCache(trainer.model, trainer.layout, folder / "frozen", "weights")
    train = keep(trainer.train, shelf, strategy=trainer.strategy, going_on=lambda: True, say=lambda text: print(text))
    return replace(trainer, train=train)


def peak_megabytes() -> float:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1 << 20)
