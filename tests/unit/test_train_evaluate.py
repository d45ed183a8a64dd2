"""Scores of held-out rows: sums over ranks, bits per byte, classification by likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from finetune_trainer.data.corpus import Choices, Corpus, corpus_of
from finetune_trainer.parallel.base import Place
from finetune_trainer.parallel.replicated import Replicated
from finetune_trainer.parallel.single import Single
from finetune_trainer.train.capabilities import Capabilities
from finetune_trainer.train.model import LanguageModel
from finetune_trainer.transfer.evaluate import Layout, Stopped, answer_nats, evaluate
from tests.support.training import CPU, documents, model, network

LAYOUT = Layout(max_tokens=64, sequence_length=64, packing=True, pad_id=0)
ANSWERS = (np.array([5, 6, 1], np.int32), np.array([5, 1], np.int32), np.array([7, 8, 9, 1], np.int32))


def _classification(rows: int = 9) -> Corpus:
    chosen = np.random.default_rng(4)
    prompts = [chosen.integers(2, 90, chosen.integers(3, 15)).astype(np.int32) for _ in range(rows)]
    gold = chosen.integers(0, len(ANSWERS), rows).astype(np.int32)
    tokens = [np.concatenate([p, ANSWERS[g]]) for p, g in zip(prompts, gold, strict=True)]
    trained = [np.arange(len(t)) >= len(p) for t, p in zip(tokens, prompts, strict=True)]
    lengths = np.array([len(p) for p in prompts], np.int32)
    return corpus_of(tokens, trained, [3] * rows, choices=Choices(ANSWERS, lengths, gold))


def _one_by_one(scorer: LanguageModel, corpus: Corpus) -> np.ndarray:
    """(rows, answers): every answer behind its own prompt, nothing batched."""
    assert corpus.choices
    out = np.zeros((len(corpus), len(ANSWERS)))
    for i in range(len(corpus)):
        prompt = torch.from_numpy(corpus.row(i).tokens[: corpus.choices.prompts[i]].astype(np.int64))
        for j, answer in enumerate(ANSWERS):
            whole = torch.cat([prompt, torch.from_numpy(answer.astype(np.int64))])
            logits = scorer.network(whole[None]).logits[0, len(prompt) - 1 : -1]
            out[i, j] = torch.nn.functional.cross_entropy(logits, whole[len(prompt) :], reduction="sum").item()
    return out


@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "GPTNeoX", "GPT2"])
def test_answers_that_share_a_prompt_score_as_if_alone(kind: str) -> None:
    scorer, corpus = model(network(kind)), _classification()
    assert scorer.shares_prompts
    assert corpus.choices
    prompts = [corpus.row(i).tokens[: corpus.choices.prompts[i]] for i in range(len(corpus))]
    np.testing.assert_allclose(answer_nats(scorer, prompts, ANSWERS), _one_by_one(scorer, corpus), atol=2e-5)


@pytest.mark.parametrize("shared", [True, False], ids=["shared prompts", "separate prompts"])
def test_accuracy_and_loss_of_classifications(shared: bool) -> None:
    net, corpus = network(), _classification()
    scorer = LanguageModel(net, CPU, None, Capabilities(fused_head=True, isolates=True, shares_prompts=shared))
    assert corpus.choices
    separate = _one_by_one(scorer, corpus)
    with torch.no_grad():
        found = evaluate(scorer, corpus, layout=LAYOUT, strategy=Single(), going_on=lambda: True)
    scores = found.scores
    np.testing.assert_allclose(found.labels, separate, atol=2e-5)
    np.testing.assert_allclose(found.nats, separate[np.arange(9), corpus.choices.gold], atol=2e-5)
    gold = corpus.choices.gold
    assert scores.accuracy == pytest.approx((separate.argmin(1) == gold).mean())
    assert scores.tokens == corpus.trained_tokens
    assert scores.loss == pytest.approx(separate[np.arange(len(gold)), gold].sum() / corpus.trained_tokens, rel=1e-5)
    assert scores.rows == 9


def test_bits_per_byte_count_the_trained_text() -> None:
    corpus = documents([9, 8, 7])
    scores = evaluate(model(network()), corpus, layout=LAYOUT, strategy=Single(), going_on=lambda: True).scores
    nats = scores.loss * scores.tokens
    assert scores.bits_per_byte == pytest.approx(nats / math.log(2) / (4 * 24))
    assert scores.accuracy is None


@dataclass
class Gang(Replicated):
    """The counters of ranks that run one after another."""

    place: Place
    sums: list[float] = field(default_factory=list)
    name: str = "fake"

    def sum_counters(self, counters: list[float]) -> list[float]:
        self.sums = [a + b for a, b in zip(self.sums or [0.0] * len(counters), counters, strict=True)]
        return self.sums


@pytest.mark.parametrize("world_size", [2, 3, 7], ids=lambda n: f"{n} ranks")
@pytest.mark.parametrize("kind", ["documents", "classification", "after examples"])
def test_ranks_share_the_rows(world_size: int, kind: str) -> None:
    corpus = documents([9, 8, 7, 20, 4]) if kind == "documents" else _classification(5)
    if kind == "after examples":
        corpus = corpus.after(np.arange(2, 72, dtype=np.int32))
    scorer = model(network())
    alone = evaluate(scorer, corpus, layout=LAYOUT, strategy=Single(), going_on=lambda: True)
    sums: list[float] = []
    for rank in range(world_size):
        gang = Gang(Place(rank, rank, world_size), sums)
        together = evaluate(scorer, corpus, layout=LAYOUT, strategy=gang, going_on=lambda: True)
        sums = gang.sums
    np.testing.assert_allclose(together.nats, alone.nats, rtol=1e-5)
    assert together.scores.loss == pytest.approx(alone.scores.loss, rel=1e-6)
    different = {"loss": 0, "bits_per_byte": 0}
    assert together.scores.model_copy(update=different) == alone.scores.model_copy(update=different)


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "one a row"])
def test_each_row_has_its_own_nats(packing: bool) -> None:
    scorer, corpus = model(network()), documents([9, 8, 7, 20, 4])
    layout = Layout(max_tokens=32, sequence_length=64, packing=packing, pad_id=0)
    found = evaluate(scorer, corpus, layout=layout, strategy=Single(), going_on=lambda: True)
    for row in range(5):
        alone = evaluate(scorer, corpus.take(np.array([row])), layout=layout, strategy=Single(), going_on=lambda: True)
        assert found.nats[row] == pytest.approx(alone.nats[0], rel=1e-5)
    assert found.scores.loss == pytest.approx(found.nats.sum() / corpus.targets.sum())


def test_a_stop_request_ends_a_measurement_without_a_result() -> None:
    with pytest.raises(Stopped):
        evaluate(model(network()), documents([9, 8]), layout=LAYOUT, strategy=Single(), going_on=lambda: False)
