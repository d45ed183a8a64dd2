"""evaluation.klToBase: zero at the base, the textbook divergence away from it, with the interval of a ratio of sums."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune_api.failures import FinetuneError, Reason
from finetune_api.measurements import Divergence, Evaluation, Scores
from finetune_api.methods import TRAITS, Method
from finetune_api.results import packed, unpacked
from finetune_trainer.regularization.kl_to_base import logit_divergences, token_divergences
from finetune_trainer.report.card import model_card
from finetune_trainer.report.html import render
from finetune_trainer.statistics.divergence import per_token
from finetune_trainer.statistics.quantiles import t_quantile
from finetune_trainer.train.divergence import divergence, rows_of_the_task
from finetune_trainer.transfer.evidence import Subject
from tests.support.small_report import EVALUATION, record
from tests.support.training import Knobs, Run, disturb, documents, make_run

CORPUS = documents([5, 17, 9, 30, 12, 7, 22, 3, 14, 11, 26, 8] * 2, seed=3)
SWITCHED = [name for name, traits in TRAITS.items() if traits.switches_off and not traits.four_bits]


def subject(kind: str = "test") -> Subject:
    return Subject(kind, kind, CORPUS, base=Scores(loss=1.0), tuned=None)  # type: ignore[arg-type]


def run_of(folder: Path, method: str, kind: str = "Llama") -> Run:
    return make_run(folder, Knobs(method=Method(type=method), kind=kind))  # type: ignore[arg-type]


def test_two_coins_diverge_as_the_textbook_says() -> None:
    """Cover and Thomas, Elements of Information Theory, section 2.3: ½·ln 2 + ½·ln(2/3)."""
    fair, biased = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert logit_divergences(biased, fair).tolist() == pytest.approx([expected])
    assert token_divergences(biased, fair, torch.eye(2)).tolist() == pytest.approx([expected])
    assert token_divergences(biased[:0], fair[:0], torch.eye(2)).tolist() == []


@pytest.mark.parametrize("method", SWITCHED)
def test_a_model_that_learned_nothing_is_at_exactly_zero(method: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, method)
    found, _ = divergence(run.trainer, run.attached, subject())
    assert (found.name, found.value, found.low, found.high) == ("test", 0.0, 0.0, 0.0)


@pytest.mark.parametrize("kind", ["Llama", "Gemma2"])
def test_it_is_the_mean_over_the_trained_tokens_of_all_rows(kind: str, tmp_path: Path) -> None:
    """Gemma2 caps its logits: there they are compared, and not hidden states times the head."""
    run = run_of(tmp_path, "lora", kind)
    disturb(run.attached)
    found, _ = divergence(run.trainer, run.attached, subject())
    sums, tokens = 0.0, 0
    for index in range(len(CORPUS)):
        row = CORPUS.row(index)
        ids = torch.tensor(row.tokens.astype(np.int64))[None]
        with torch.no_grad():
            tuned = run.net(input_ids=ids, use_cache=False).logits[0, :-1].double().log_softmax(1)
            with run.attached.as_base():  # type: ignore[attr-defined]
                base = run.net(input_ids=ids, use_cache=False).logits[0, :-1].double().log_softmax(1)
        wanted = torch.tensor(row.trained.astype(bool))[1:]
        sums += float((base.exp() * (base - tuned)).sum(dim=1)[wanted].sum())
        tokens += int(wanted.sum())
    assert found.value == pytest.approx(sums / tokens, rel=1e-4)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < found.value < found.high
    assert (found.rows, found.groups) == (24, 24)


def test_a_method_that_cannot_switch_back_is_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path, "full")
    with pytest.raises(FinetuneError) as caught:
        divergence(run.trainer, run.attached, subject())
    assert caught.value.reason is Reason.InvalidSpec


def test_the_test_rows_are_measured_and_without_them_the_validation_rows() -> None:
    test, validation, other = subject("test"), subject("validation"), subject("general")
    assert rows_of_the_task([validation, other, test]) is test
    assert rows_of_the_task([other, validation]) is validation
    assert rows_of_the_task([other]) is None


def test_the_interval_is_of_groups_and_depends_on_no_order() -> None:
    dice = np.random.default_rng(1)
    tokens = dice.integers(1, 9, 200)
    nats, groups = tokens * dice.gamma(2, 0.1, 200), (np.arange(200) // 4).tolist()
    found, order = per_token(nats, tokens, groups=groups), dice.permutation(200)
    assert per_token(nats[order], tokens[order], groups=np.array(groups)[order].tolist()) == found
    residuals = np.bincount(groups, weights=nats - found.value * tokens) / tokens.sum()
    shares = np.bincount(groups, weights=tokens) / tokens.sum()
    error = math.sqrt(49 / 50 * float(((residuals / (1 - shares)) ** 2).sum()))
    assert found.value == pytest.approx(nats.sum() / tokens.sum())
    assert found.high == pytest.approx(found.value + t_quantile(0.975, 1 / (shares**2).sum() - 1) * error)
    few = per_token(nats[:12], tokens[:12], groups=groups[:12])
    assert (few.low, few.high) == (None, None)


def test_95_of_100_intervals_hold_the_truth() -> None:
    dice, held = np.random.default_rng(2), 0
    for _ in range(400):
        tokens = dice.integers(1, 9, 60)
        found = per_token(tokens * dice.gamma(2, 0.1, 60), tokens, groups=range(60))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.2 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_status_report_and_card_have_it() -> None:
    found = Divergence(name="test", value=0.1234, low=0.1, high=0.15, rows=400, groups=400)
    evaluation = EVALUATION.model_copy(update={"kl_to_base": found})
    assert unpacked(packed(Evaluation(kl_to_base=found))).kl_to_base == found
    told = "KL to the base on test rows: 0.123 nats per token [0.1, 0.15]"
    for page in (render(record(evaluation=evaluation)), model_card(record(evaluation=evaluation))):
        assert told in page
    assert "KL to the base" not in render(record())
