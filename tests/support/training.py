"""Small models, corpora and trainers for the tests of training, without files or downloads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from finetune_api.data import Data, TrainSource
from finetune_api.failures import FinetuneError, Reason
from finetune_api.methods import Lora, Method
from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.regularization import Drift, Ewc
from finetune_api.regularization import Regularization as Terms
from finetune_api.spec import FineTuneJobSpec, ModelSource, Optimizer, Output
from finetune_api.status import ResolvedPlan
from finetune_trainer.data.corpus import Choices, Corpus, corpus_of
from finetune_trainer.data.pack import IGNORED
from finetune_trainer.methods.base import Attached, Base, HasPrompt, SwitchesOff, UpdatesByProducts
from finetune_trainer.methods.registry import method_of
from finetune_trainer.parallel.base import Place, Strategy
from finetune_trainer.parallel.single import Single
from finetune_trainer.regularization.base import Penalty, Regularization
from finetune_trainer.regularization.kl_to_base import KlToBase
from finetune_trainer.regularization.l2sp import DistanceOfProducts, DistanceOfWeights
from finetune_trainer.regularization.replay import Replay
from finetune_trainer.report.record import AttemptRecord
from finetune_trainer.rundir import RunDir
from finetune_trainer.store.checkpoints import CheckpointStore
from finetune_trainer.store.opening import open_folder
from finetune_trainer.train.activations import drift_of
from finetune_trainer.train.capabilities import probe
from finetune_trainer.train.checkpointer import Checkpointer
from finetune_trainer.train.importance import ewc_of
from finetune_trainer.train.loop import Course, Trainer
from finetune_trainer.train.loss import trained_cross_entropy
from finetune_trainer.train.model import LanguageModel
from finetune_trainer.train.reporter import Reporter
from finetune_trainer.train.state import State
from finetune_trainer.transfer.evaluate import Layout
from finetune_trainer.vocabulary.rows import VocabularyRows

VOCAB = 97
CPU = torch.device("cpu")
JOB = JobIdentity(namespace="test", name="tiny", uid="0123-4567")
BASE = Base("org/tiny", torch.float32)


def network(kind: str = "Llama", *, seed: int = 0, layers: int = 2, **changes: Any) -> nn.Module:
    """A tiny `<kind>ForCausalLM` with random weights."""
    import transformers

    shape: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    if kind in ("Llama", "Qwen2", "Gemma2", "Mistral"):
        shape["num_key_value_heads"] = 2
    if kind == "Gemma2":
        shape["head_dim"] = 8
    if kind == "GPT2":
        shape = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": layers, "n_head": 4, "n_positions": 128}
        shape |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**{**shape, **changes})
    config._attn_implementation = "eager" if kind == "Gemma2" else "sdpa"
    head = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    made: nn.Module = getattr(transformers, kind.removesuffix("Text") + head)(config)
    return made.eval()


def model(net: nn.Module, strategy: Strategy | None = None) -> LanguageModel:
    strategy = strategy or Single()
    return LanguageModel(net, CPU, None, probe(net, CPU, strategy=strategy), strategy)


def documents(lengths: list[int], *, seed: int = 0, masked: float = 0.3) -> Corpus:
    """Random rows of these lengths, about a third of their tokens untrained."""
    chosen = np.random.default_rng(seed)
    tokens = [chosen.integers(2, VOCAB, n).astype(np.int32) for n in lengths]
    trained = [(chosen.random(n) >= masked) & (np.arange(n) > 0) for n in lengths]
    for flags in trained:
        flags[-1] = True
    return corpus_of(tokens, trained, [4 * n for n in lengths])


def cross_entropy_of_trained(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, *, chunk_rows: int | None = None
) -> torch.Tensor:
    """The trainer's loss of the tokens that have a target, which a LanguageModel picks out."""
    trained = targets != IGNORED
    return trained_cross_entropy(hidden[trained], weight, targets[trained], chunk_rows=chunk_rows)


def disturb(attached: Attached, *, by: float = 0.1) -> None:
    """What it learns is no longer what it began with."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in attached.trainable.values():
            parameter.add_(by * torch.randn_like(parameter))


LENGTHS = [5, 17, 9, 30, 12, 7, 22, 3, 14, 11, 26, 8]


@dataclass(frozen=True)
class Knobs:
    """What the tests of training vary."""

    method: Method = Method(type="lora", lora=Lora(rank=4))  # noqa: RUF009
    steps: int = 8
    batch_size: int = 5
    max_tokens: int = 48
    packing: bool = True
    evaluate_every: int = 3
    patience: int | None = None
    checkpoint_steps: int = 100
    keep: int = 2
    rate: float = 5e-3
    max_norm: float = 1.0
    seed: int = 1
    kind: str = "Llama"
    hidden: int = 32
    optimizer: Optimizer = "adamw"
    replay: float = 0.0
    """Rows of general text in a step, on average."""
    beta: float = 0.0
    """Of regularization.klToBase."""
    l2sp: float = 0.0
    """Its strength."""
    earlier: Path | None = None
    """An adapter that stays below the one that trains."""
    rows: tuple[int, ...] = ()
    """Tokens whose rows of the embeddings train."""


GENERAL_LENGTHS = [12, 6, 19, 8, 15, 10, 7]


def replayed(knobs: Knobs, prompt: HasPrompt | None) -> Replay | None:
    if not knobs.replay:
        return None
    corpus = documents(GENERAL_LENGTHS, seed=4, masked=0.0)
    return Replay(corpus.after(prompt.ids) if prompt else corpus, per_step=knobs.replay, weight=0.3, seed=knobs.seed)


def compared(knobs: Knobs, attached: Attached) -> KlToBase | None:
    if not knobs.beta:
        return None
    assert isinstance(attached, SwitchesOff)
    return KlToBase(knobs.beta, replayed=knobs.replay > 0, as_base=attached.as_base)


def penalties(knobs: Knobs, attached: Attached, place: Place) -> tuple[Penalty, ...]:
    if not knobs.l2sp:
        return ()
    if isinstance(attached, UpdatesByProducts):
        return (DistanceOfProducts.of(attached.products(), strength=knobs.l2sp, place=place),)
    return (DistanceOfWeights.of(attached.trainable.values(), strength=knobs.l2sp, place=place),)


@dataclass(frozen=True)
class Run:
    trainer: Trainer
    attached: Attached
    net: nn.Module

    def start(self) -> State:
        state = self.trainer.checkpointer.resume(self.trainer.weights)
        return state.begun(AttemptRecord(attempt=1, first_step=state.step))

    def finish(self) -> State:
        """From the newest checkpoint, or the beginning, to the end."""
        state = self.trainer.run(self.start())
        self.trainer.checkpointer.wait()
        return state

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.trainer.weights.tensors().items()}


def plan_for(folder: Path, **spec: Any) -> RunPlan:
    """A plan that names files in `folder`; `spec` overrides parts of the manifest."""
    made: dict[str, Any] = {
        "model": ModelSource(uri=f"file://{folder}/model"),
        "data": Data(train=(TrainSource(uri=f"file://{folder}/train.jsonl"),)),
        "output": Output(uri=f"file://{folder}/output"),
    }
    return RunPlan(job=JOB, spec=FineTuneJobSpec(**{**made, **spec}))


def make_run(
    folder: Path,
    knobs: Knobs,
    *,
    strategy: Strategy | None = None,
    corpus: Corpus | None = None,
    net: nn.Module | None = None,
    base: Path | None = None,
) -> Run:
    """A trainer over random documents with real checkpoints in `folder`; `net`: instead of a tiny one of its own, and
    `base`: the folder that it was loaded from, which is needed for knobs.rows."""
    strategy = strategy or Single()
    folder.mkdir(parents=True, exist_ok=True)
    shape = {} if knobs.hidden == 32 else {"hidden_size": knobs.hidden, "intermediate_size": 128}
    net = net or network(knobs.kind, **shape)
    attached = method_of(knobs.method).attach(net, seed=knobs.seed, base=replace(BASE, earlier=knobs.earlier))
    prompt = attached if isinstance(attached, HasPrompt) else None
    train = corpus or documents(LENGTHS)
    rows = VocabularyRows.of(net, base, knobs.rows, device=CPU) if base is not None and knobs.rows else None
    trainable = {**attached.trainable, **(rows.trainable if rows else {})}
    weights = strategy.weights(net, trainable, weight_decay=0.01, optimizer=knobs.optimizer)
    language_model = replace(model(net, strategy), rows=rows)
    if rows is not None:
        rows.install(net)
    output = open_folder(f"file://{folder}/output", prefix="")
    run_dir = RunDir(folder / "run")
    trainer = Trainer(
        course=Course(
            total_steps=knobs.steps,
            batch_size=knobs.batch_size,
            seed=knobs.seed,
            peak_rate=knobs.rate,
            warmup_ratio=0.2,
            schedule="cosine",
            max_grad_norm=knobs.max_norm,
            evaluate_every=knobs.evaluate_every,
            patience=knobs.patience,
            min_delta=0.0,
        ),
        model=language_model,
        weights=weights,
        train=train.after(prompt.ids) if prompt else train,
        validation=documents([9, 13, 21, 6], seed=9),
        layout=Layout(max_tokens=knobs.max_tokens, sequence_length=64, packing=knobs.packing, pad_id=0),
        strategy=strategy,
        checkpointer=Checkpointer(
            strategy=strategy,
            store=CheckpointStore(output, JOB),
            keep=knobs.keep,
            every_steps=knobs.checkpoint_steps,
            every_seconds=None,
        ),
        reporter=Reporter(run_dir, plan_for(folder), strategy.place, ResolvedPlan(total_steps=knobs.steps)),
        stop_requested=lambda: run_dir.stop_requested,
        prompt=prompt,
        regularization=Regularization(
            replayed(knobs, prompt), compared(knobs, attached), penalties(knobs, attached, strategy.place)
        ),
    )
    return Run(trainer, attached, net)


def weighed(folder: Path, run: Run, *, strength: float = 50.0) -> Run:
    """The run with regularization.ewc besides, by general documents; their importance is kept in `folder`/fisher."""
    trainer = run.trainer
    terms = ewc_of(
        plan_for(folder, regularization=Terms(ewc=Ewc(strength=strength))).spec,
        run.attached,
        trainer.model,
        trainer.layout,
        documents(GENERAL_LENGTHS, seed=4, masked=0.0),
        folder=folder / "fisher",
        of_model="tiny",
        reporter=trainer.reporter,
    )
    return replace(run, trainer=replace(trainer, regularization=trainer.regularization.and_penalties(terms)))


def held(folder: Path, run: Run, *, strength: float = 50.0) -> Run:
    """The run with regularization.drift besides, on general documents; their activations are in `folder`/drift."""
    trainer = run.trainer
    terms = drift_of(
        plan_for(folder, regularization=Terms(drift=Drift(strength=strength))).spec,
        run.attached,
        trainer.model,
        documents(GENERAL_LENGTHS, seed=4, masked=0.0),
        pad_id=0,
        folder=folder / "drift",
        of_model="tiny",
        reporter=trainer.reporter,
    )
    return replace(run, trainer=replace(trainer, regularization=trainer.regularization.and_penalties(terms)))


def at_step(run: Run, step: int, act: Callable[[], None]) -> None:
    """`act` when step `step`, counted from 1, begins a micro-batch."""
    seed = run.trainer._seed

    def watch(current: int, index: int) -> None:
        if current == step - 1:
            act()
        seed(current, index)

    object.__setattr__(run.trainer, "_seed", watch)


def stop_at(run: Run, step: int) -> None:
    """The stop file appears while this step runs."""
    at_step(run, step, lambda: run.trainer.reporter.run_dir.request_stop("test"))


def interrupted(make: Callable[[], Run], step: int) -> Run:
    """A run that was stopped while `step` ran, made again: ready to go on from its checkpoint."""
    stopped = make()
    stop_at(stopped, step)
    with pytest.raises(FinetuneError) as error:
        stopped.finish()
    assert error.value.reason is Reason.Interrupted
    assert error.value.exit_code == 75
    stopped.trainer.reporter.run_dir.clear()
    return make()


def largest_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


__all__ = ["BASE", "CPU", "JOB", "LENGTHS", "Knobs", "Place", "Run", "documents", "largest_difference", "make_run"]
__all__ += ["at_step", "held", "interrupted", "model", "network", "plan_for", "replace", "stop_at", "weighed"]


def sorted_words(rows: int, *, seed: int) -> Corpus:
    """Rows whose label says from which half of the vocabulary most of their tokens are."""
    chosen = np.random.default_rng(seed)
    answers = (np.array([2, 1], np.int32), np.array([3, 4, 1], np.int32))
    gold = (np.arange(rows) % 3 == 0).astype(np.int32)
    prompts = chosen.integers(6, 14, rows).astype(np.int32)
    words = [
        chosen.integers(10, 50, n) + 45 * (chosen.random(n) < (0.9 if g else 0.05))
        for n, g in zip(prompts, gold, strict=True)
    ]
    tokens = [np.r_[np.minimum(w, 96), answers[g]].astype(np.int32) for w, g in zip(words, gold, strict=True)]
    trained = [np.arange(len(t)) >= n for t, n in zip(tokens, prompts, strict=True)]
    return corpus_of(tokens, trained, [4] * rows, choices=Choices(answers, prompts, gold))
