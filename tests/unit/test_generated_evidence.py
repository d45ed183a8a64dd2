"""From planted answers to verdicts: prompts, paired scores, the collapse check, samples, records, guards."""

from __future__ import annotations

import io
import json
from collections.abc import Callable

import numpy as np
import pytest
from pyarrow import parquet

from finetune_api.generation import Generate
from finetune_api.guards import Guards
from finetune_api.measurements import Evaluation
from finetune_api.results import packed, unpacked
from finetune_trainer.data.corpus import corpus_of
from finetune_trainer.transfer.generated import answers
from finetune_trainer.transfer.generated.answers import Answers, cut
from finetune_trainer.transfer.generated.evidence import Generated, Written, generated
from finetune_trainer.transfer.generated.files import answer_files
from finetune_trainer.transfer.generated.prompts import Prompts, prompts_of
from finetune_trainer.transfer.release import Release, judge

ROWS = 80
Text = tuple[int, ...]
END = 258


def prompts(references: list[Text]) -> Prompts:
    digests = tuple(f"{row:016x}" for row in range(len(references)))
    return Prompts(
        name="test",
        tokens=tuple(np.array([65, row % 26 + 65], np.int32) for row in range(len(references))),
        references=tuple(np.array(each, np.int32) for each in references),
        rows=digests,
        groups=digests,
    )


def said(texts: list[Text], *, stopped: bool = True) -> Answers:
    return Answers(tuple(texts), (stopped,) * len(texts))


def prose(length: int, *, seed: int, words: int = 60) -> list[Text]:
    dice = np.random.default_rng(seed)
    return [tuple((97 + dice.integers(0, words, length)).tolist()) for _ in range(ROWS)]


def judged(base: list[Text], tuned: list[Text], references: list[Text], **settings: object) -> Generated:
    asked = Generate.model_validate_json(json.dumps({"metrics": ["exactMatch", "stops", "length"], **settings}))
    given = Written(
        prompts=prompts(references),
        settings=asked,
        base={"greedy": said(base), "sampled": said(base)} if base else {},
        tuned={"greedy": said(tuned), "sampled": said(tuned)},
        decode=lambda tokens: "".join(map(chr, tokens)),
    )
    return generated(given, bound=None)


LOOP = [tuple([97, 98, 99] * 20) for _ in range(ROWS)]
REFERENCES = prose(50, seed=1)


@pytest.mark.parametrize(
    ("base", "tuned", "references", "verdict"),
    [
        pytest.param(prose(60, seed=2), LOOP, REFERENCES, "violated", id="it loops"),
        pytest.param(prose(60, seed=2), prose(45, seed=3), REFERENCES, "passed", id="it answers otherwise"),
        pytest.param(prose(60, seed=2), prose(45, seed=3, words=14), prose(50, seed=4, words=14), "passed",
                     id="it has learned to answer like the references, which have few words"),
        pytest.param(prose(60, seed=2), LOOP, [(97, 98, 99)] * ROWS, "violated",
                     id="it loops over what short references say once"),
        pytest.param(LOOP, LOOP, REFERENCES, "passed", id="the base model loops as well: nothing is lost"),
        pytest.param(prose(60, seed=2), [()] * ROWS, REFERENCES, "passed", id="it says nothing: length shows it"),
        pytest.param([], LOOP, REFERENCES, "inconclusive", id="nobody knows what the base model says"),
    ],
)  # fmt: skip
def test_a_model_that_loops_is_flagged_and_a_good_one_is_not(
    base: list[Text], tuned: list[Text], references: list[Text], verdict: str
) -> None:
    found = judged(base, tuned, references).collapse
    assert found.verdict == verdict
    assert verdict in found.told()
    assert len(found.figures) == (8 if base else 0)


def test_scores_are_paired_and_rows_that_flipped_are_shown_each_way() -> None:
    base = [each if row % 4 == 0 else (97,) for row, each in enumerate(REFERENCES)]
    tuned = [each if row % 4 != 1 else (98,) for row, each in enumerate(REFERENCES)]
    tuned[:3] = [(99,), (99,), (99,)]
    found = judged(base, tuned, REFERENCES)
    exact, stops, length = found.told.scores
    assert (exact.base, exact.tuned) == (0.25, pytest.approx((60 - 2) / 80))
    assert exact.low is not None
    assert exact.low > 0
    assert (exact.verdict, stops.verdict, length.verdict) == ("better", "inconclusive", None)
    why = [each.why for each in found.samples]
    assert (why.count("sample"), why.count("gained"), why.count("lost")) == (8, 10, 1)
    (lost,) = (each for each in found.samples if each.why == "lost")
    assert (lost.row, lost.base, lost.tuned) == (f"{0:016x}", lost.reference, "c")
    assert not judged([], tuned, REFERENCES).samples


def test_few_prompts_show_figures_without_a_verdict() -> None:
    found = judged(REFERENCES[:10], REFERENCES[:10], REFERENCES[:10])
    assert found.collapse.verdict == "inconclusive"
    assert {score.verdict for score in found.told.scores} == {"inconclusive", None}
    assert all(score.low is None for score in found.told.scores)


def release(guards: dict[str, object], found: Generated) -> Release:
    evaluation = Evaluation(generation=found.told, collapse=found.collapse)
    return judge(Guards.model_validate_json(json.dumps(guards)), evaluation)


def test_guards_judge_the_answers() -> None:
    good = judged(REFERENCES, prose(45, seed=3), REFERENCES, metrics=["stops", "jsonValid"])
    kept = release({"collapse": {"maxDrop": 0.2}, "generation": {"minStops": 0.9}}, good)
    assert [(each.name, each.verdict) for each in kept.results] == [("collapse", "passed"), ("generation", "passed")]
    looping = judged(REFERENCES, LOOP, REFERENCES, metrics=["stops", "jsonValid"])
    broken = release({"collapse": {"maxDrop": 0.2}, "generation": {"minStops": 0.9, "minJsonValid": 0.99}}, looping)
    assert [(each.name, each.bound, each.verdict) for each in broken.results] == [
        ("collapse", 0.2, "violated"), ("generation", 0.99, "violated"),
    ]  # fmt: skip
    assert not kept.refusal
    assert "generation is violated: +0 [+0, +0.04506], at least 0.99 is required (minJsonValid)" in broken.refusal


def test_results_reach_the_status_whole() -> None:
    found = judged(prose(60, seed=2), LOOP, REFERENCES)
    evaluation = Evaluation(generation=found.told, collapse=found.collapse)
    again = unpacked(packed(evaluation))
    assert again.generation is not None
    assert again.collapse is not None
    for before, after in (
        *zip(found.told.scores, again.generation.scores, strict=True),
        *zip(found.collapse.figures, again.collapse.figures, strict=True),
        *zip(found.collapse.endings, again.collapse.endings, strict=True),
    ):
        short = {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in before}
        assert dict(after) == short
    assert again.collapse.verdict == "violated"


def test_every_answer_is_in_the_records() -> None:
    found = judged(prose(60, seed=2), LOOP, REFERENCES)
    ((path, content),) = answer_files(found.written).items()
    table = parquet.read_table(io.BytesIO(content)).to_pylist()
    assert path == "evaluation/generated/test.parquet"
    assert len(table) == 2 * 2 * ROWS
    exact = [row["exactMatch"] for row in table if row["model"] == "tuned" and row["mode"] == "greedy"]
    assert np.mean(exact) == found.told.scores[0].tuned
    assert {row["exactMatch"] for row in table if row["mode"] == "sampled"} == {None}


def corpus(*rows: tuple[list[int], list[int]]):  # type: ignore[no-untyped-def]
    return corpus_of(
        [np.array(tokens, np.int32) for tokens, _ in rows],
        [np.isin(np.arange(len(tokens)), trained) for tokens, trained in rows],
        [1] * len(rows),
    )


@pytest.mark.parametrize(
    ("tokens", "trained", "prompt", "reference"),
    [
        pytest.param([1, 2, 3, 4, END], [3, 4], [1, 2, 3], [4], id="an answer with its end"),
        pytest.param([1, 9, END, 2, 3, 4, END], [1, 2, 5, 6], [1, 9, END, 2, 3], [4], id="the last of two answers"),
        pytest.param([1, 2, 3, END, 5], [2, 3], [1, 2], [3], id="what follows the end is no part of it"),
        pytest.param(list(range(1, 101)), list(range(1, 100)), list(range(1, 33)), list(range(33, 101)), id="a text"),
        pytest.param([1, 2, 3, 4], [1, 2, 3], [1, 2], [3, 4], id="a short text"),
    ],
)
def test_a_prompt_ends_where_the_last_answer_begins(
    tokens: list[int], trained: list[int], prompt: list[int], reference: list[int]
) -> None:
    found = prompts_of({"test": corpus((tokens, trained))}, most=128, seed=1, stops={END}, context=None, new=4)
    assert found is not None
    assert ([each.tolist() for each in found.tokens], [each.tolist() for each in found.references]) == (
        [prompt], [reference],
    )  # fmt: skip


def test_rows_without_room_for_an_answer_are_left_out_and_counted() -> None:
    rows = corpus(([1, 2, 3, 4], [3]), ([1] * 30 + [4], [30]), ([1, 2, 3], []))
    found = prompts_of({"validation": rows}, most=128, seed=1, stops=set(), context=16, new=10)
    assert found is not None
    assert (found.name, len(found), found.left_out) == ("validation", 1, 2)


def test_test_rows_come_before_validation_rows_and_no_rows_are_no_prompts() -> None:
    rows = corpus(([1, 2, 3, 4], [3]))
    assert (
        prompts_of({"test": rows, "validation": rows}, most=9, seed=1, stops=set(), context=None, new=1).name == "test"
    )  # type: ignore[union-attr]
    assert prompts_of({"general": rows}, most=9, seed=1, stops=set(), context=None, new=1) is None


def test_an_answer_ends_before_the_first_end_token() -> None:
    assert cut(np.array([5, 6, 7, 9, 7]), frozenset({7, 8})) == ((5, 6), True)
    assert cut(np.array([5, 6]), frozenset({7})) == ((5, 6), False)


@pytest.mark.parametrize(
    ("change", "kept"),
    [(lambda told: told, True), (lambda told: {**told, "prompts": "others"}, False), (lambda _: None, False)],
)
def test_a_resumed_run_knows_what_the_base_model_said(change: Callable[[object], object], kept: bool) -> None:
    given = prompts(REFERENCES)
    answered = {"greedy": said(LOOP, stopped=False), "sampled": said(REFERENCES)}
    told = change(json.loads(json.dumps(answers.to_json(answered, given))))  # type: ignore[arg-type]
    assert answers.of_json(told, given) == (answered if kept else None)
