"""Data that make a verdict look surer than it is: one huge document, rows that hardly ever change, prompts that are all
alike, labels that cost the same, models of other tokens."""

from __future__ import annotations

import numpy as np
import pytest

from finetune_api.generated_text import Generation, GenerationScore
from finetune_api.guards import Guards
from finetune_api.measurements import Evaluation
from finetune_trainer.data.corpus import Choices, Marks, corpus_of
from finetune_trainer.statistics.calibration import calibration
from finetune_trainer.statistics.differences import Verdict
from finetune_trainer.statistics.divergence import per_token
from finetune_trainer.statistics.diversity import relative_drops
from finetune_trainer.statistics.paired import SCORE, Paired, difference
from finetune_trainer.transfer.evaluate import likeliest, scores_of
from finetune_trainer.transfer.records import measures, of_rows, paired
from finetune_trainer.transfer.release import judge
from tests.proof.coverage import LOWEST, few_change, one_giant


@pytest.mark.parametrize("times", [1, 20])
def test_one_huge_document_is_one_document(times: float) -> None:
    """The ratio is drawn to it, so that its own residual is small: taken as it is, the interval holds .74."""
    assert one_giant(times=times, repetitions=300) >= LOWEST


def test_nothing_is_said_of_a_data_set_that_is_one_document_and_some_crumbs() -> None:
    sizes = np.r_[np.full(40, 10.0), 100_000.0]
    nats = np.random.default_rng(1).normal(1, 0.1, 41) * sizes
    found = difference(Paired.bits_per_byte(base=nats, tuned=1.01 * nats, sizes=sizes))
    assert (found.low, found.verdict, found.reason) == (None, Verdict.inconclusive, "one group has most of the rows")
    assert per_token(nats, sizes, groups=range(41)).low is None


def test_a_patient_who_has_most_of_the_rows_is_one_patient() -> None:
    """30 patients with 2 rows each on which nothing changes, and one with 40 rows that are all gained."""
    groups = [*np.repeat(np.arange(30), 2).tolist(), *[30] * 40]
    tuned = [0] * 60 + [1] * 40
    found = difference(Paired.scores(base=[0] * 100, tuned=tuned, groups=groups))
    assert found.verdict is Verdict.inconclusive


@pytest.mark.parametrize(("rows", "share", "size"), [(20, 0.03, 1), (50, 0.03, 1), (50, 1.0, 1), (200, 0.1, 10)])
def test_a_score_that_few_rows_change_is_not_sure_to_stay(rows: int, share: float, size: int) -> None:
    assert few_change(rows=rows, share=share, size=size, repetitions=200) >= LOWEST


def test_the_plain_t_interval_that_was_not_chosen_fails() -> None:
    """At 20 rows of which 3 % change, most samples have no change, and its interval is [0, 0]."""
    random, held, truth = np.random.default_rng(8), 0, -0.0045
    for _ in range(500):
        change = np.where(random.random(20) < 0.03, random.uniform(0.2, 0.7, 20), 0) * random.choice([1, -1, -1], 20)
        half = 2.093 * change.std(ddof=1) / np.sqrt(20)  # t of .975 and 19 degrees of freedom
        held += abs(change.mean() - truth) <= half
    assert 0.35 < held / 500 < 0.5


def test_scores_without_any_change_are_as_unsure_as_right_and_wrong_answers_without_one() -> None:
    same = np.full(50, 0.5)
    found = difference(Paired.scores(base=same, tuned=same, measure=SCORE))
    binary = difference(Paired.scores(base=[1] * 50, tuned=[1] * 50))
    assert found.verdict is binary.verdict is Verdict.inconclusive
    assert found.high == pytest.approx(binary.high, rel=0.25)


def test_texts_that_did_not_change_may_do_so_next_time() -> None:
    texts = [tuple(range(at, at + 20)) for at in range(30)]
    few, many = (relative_drops([(text, text) for text in texts * times]) for times in (1, 20))
    assert 0.05 < few[0].high < 0.2
    assert few[0].high > 10 * many[0].high
    grouped = relative_drops([(text, text) for text in texts * 20], groups=[at % 30 for at in range(600)])
    assert grouped[0].high == pytest.approx(few[0].high)


def test_a_hundred_prompts_of_one_group_prove_what_one_prompt_proves() -> None:
    guards = Guards.model_validate({"generation": {"minStops": 0.95}})

    def verdict(groups: int) -> str:
        told = Generation(
            name="test", rows=100, groups=groups, scores=(GenerationScore(metric="stops", base=1.0, tuned=1.0),)
        )
        return judge(guards, Evaluation(generation=told)).results[0].verdict

    assert verdict(100) == "passed"
    assert verdict(10) == "inconclusive"


def test_of_labels_that_cost_the_same_none_is_favoured_for_its_place() -> None:
    """In bf16 the best two labels often cost the same. The first one would make a model that knows nothing as good as
    the share of the first label."""
    digests = np.random.default_rng(3).integers(0, 2**63, 400).astype(np.uint64)
    gold = np.zeros(400, np.int32)
    choices = Choices((np.array([5], np.int32), np.array([6], np.int32)), np.ones(400, np.int32), gold)
    rows = [np.array([1, 5], np.int32)] * 400
    corpus = corpus_of(rows, [np.array([False, True])] * 400, [3] * 400, choices=choices, marks=Marks(digests, digests))
    nats = np.full((400, 2), 0.7)
    accuracy = scores_of(corpus, nats[:, 0], nats).accuracy
    assert accuracy is not None
    assert 0.4 < accuracy < 0.6
    assert calibration(-nats, gold).accuracy == 0.5
    nats[:, 1] = np.nan
    assert not likeliest(corpus, nats).any()


def test_groups_that_one_of_two_measurements_knows_count_for_both() -> None:
    rows = [f"{at:03x}" for at in range(100)]
    base = of_rows(row=rows, nats=np.ones(100), sizes=np.ones(100), tokens=np.ones(100), score=np.zeros(100))
    tuned = of_rows(
        row=rows, nats=np.ones(100), sizes=np.ones(100), tokens=np.ones(100), score=np.ones(100),
        group=[f"{at % 5}" for at in range(100)],
    )  # fmt: skip
    for first, second in ((base, tuned), (tuned, base)):
        found = difference(paired(first, second, SCORE))
        assert (found.groups, found.reason) == (5, "fewer than 10 groups")


def test_models_of_other_tokens_have_no_loss_in_common() -> None:
    """Half as many tokens of twice the nats each: the same model of the text."""
    rows, sizes = [f"{at:03x}" for at in range(50)], np.full(50, 40)
    few, many = (of_rows(row=rows, nats=np.full(50, 30.0), sizes=sizes, tokens=np.full(50, n)) for n in (10, 20))
    assert [each.name for each in measures(few, many, kind="test")] == ["bitsPerByte"]
    assert [each.name for each in measures(few, few, kind="test")] == ["loss", "bitsPerByte"]
