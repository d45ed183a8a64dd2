"""Variants of training rows: what changes, what never does, how often; and all of it a function of the place."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.data import Data
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.augment import Variants, backoff, casing, character_noise
from finetune_trainer.data.load import Datasets, load_datasets
from finetune_trainer.data.order import Mixture, step_rows
from finetune_trainer.data.read import Row
from finetune_trainer.data.split import fingerprint
from finetune_trainer.data.tokenizer import Tokenizer
from tests.support.tokenizers import tokenizer_folder, write_jsonl

ALL = (
    {"type": "casing", "probability": 0.3},
    {"type": "characterNoise", "probability": 0.5, "rate": 0.2},
    {"type": "templates", "probability": 0.25, "templates": ("Note: {text}", "{text} (end)")},
    {"type": "backoff", "probability": 0.4, "rate": 0.3},
)
WORDS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india"]


def classified(count: int) -> list[dict[str, Any]]:
    return [
        {"text": f"{' '.join(WORDS[: n % 8 + 2])} {n} {('mango', 'stone')[n % 2]}", "label": ("fruit", "rock")[n % 2]}
        for n in range(count)
    ]


def completions(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{WORDS[n % 9]} number {n}", "completion": f" answer {n}"} for n in range(count)]


def chats(count: int) -> list[dict[str, Any]]:
    turns = [("system", "be kind"), ("user", "first words"), ("assistant", "fine"), ("user", "more words")]
    return [
        {"messages": [{"role": r, "content": f"{c} {n}"} for r, c in (*turns, ("assistant", "good"))]}
        for n in range(count)
    ]


def load(tmp_path: Path, rows: list[dict[str, Any]], *, how: Any = ALL, **fields: Any) -> Datasets:
    train = write_jsonl(tmp_path / "train.jsonl", *rows)
    spec = Data.model_validate({"train": ({"uri": train},), "augmentation": how, **fields})
    tokenizer_folder(tmp_path / "model")
    return load_datasets(spec, tokenizer_path=tmp_path / "model", cache=tmp_path / "cache", seed=3)


def variants(data: Datasets) -> Variants:
    assert data.variants is not None
    return data.variants


def text_of(tmp_path: Path, tokens: np.ndarray) -> str:
    return Tokenizer.load(tmp_path / "model").backend.decode(tokens.tolist(), skip_special_tokens=False)


@pytest.mark.parametrize("rows", [classified(60), completions(60), chats(60)], ids=["classified", "completion", "chat"])
def test_answers_never_change_and_questions_do(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    data = load(tmp_path, rows)
    every = np.arange(len(data.train))
    changed = 0
    for epoch in range(3):
        corpus, places = variants(data).of(every, epoch=epoch)
        assert places.tolist() == every.tolist()
        for row in every.tolist():
            tokens, trained = data.train.row(row)
            seen, seen_trained = corpus.row(row)
            assert seen[seen_trained].tolist() == tokens[trained].tolist()
            assert corpus.bytes[row] == data.train.bytes[row]
            changed += seen.tolist() != tokens.tolist()
    assert changed > len(every), "at these probabilities more than a third change in each epoch"


def test_variants_are_a_function_of_seed_epoch_and_row(tmp_path: Path) -> None:
    """A step that is computed again, alone, by another process, sees the same: that is what a resume needs."""
    data, again = load(tmp_path, classified(80)), load(tmp_path, classified(80))
    every = np.arange(len(data.train))
    whole, _ = variants(data).of(every, epoch=4)
    for rows in (every[5:9], every[[30, 7, 30]]):
        corpus, places = variants(again).of(rows, epoch=4)
        for place, row in zip(places.tolist(), rows.tolist(), strict=True):
            assert corpus.row(place).tokens.tolist() == whole.row(row).tokens.tolist()
    other, _ = variants(data).of(every, epoch=5)
    assert not np.array_equal(other.tokens, whole.tokens)


def test_what_one_row_becomes_is_kept_for_later_releases(tmp_path: Path) -> None:
    """A run must find its variants again in the next release: these may never change."""
    found = variants(load(tmp_path, completions(40)))
    assert [_prompt(found.row(0, [kind], epoch=0)) for kind in range(4)] == [
        "Alpha Number 0", "allpha number 0", "alpha number 0 (end)", "alpha alpha number",
    ]  # fmt: skip
    assert [_prompt(found.row(2, [kind], epoch=0)) for kind in range(4)] == [
        None, "chalriie nberm 2", "charlie number 2 (end)", None,
    ]  # fmt: skip


def _prompt(row: Row | None) -> str | None:
    return row and row.fields["prompt"]


@pytest.mark.parametrize("probability", [0.02, 0.3, 1.0])
def test_rows_are_chosen_as_often_as_asked(tmp_path: Path, probability: float) -> None:
    data = load(tmp_path, completions(600), how=({"type": "casing", "probability": probability},) * 2)
    counts = [int(variants(data).chosen(kind, epoch).sum()) for kind in (0, 1) for epoch in range(5)]
    rows = len(data.train)
    spread = 4.5 * np.sqrt(rows * probability * (1 - probability))
    assert all(abs(count - rows * probability) <= spread for count in counts)
    if probability < 1:
        flags = [variants(data).chosen(kind, epoch) for kind in (0, 1) for epoch in range(2)]
        assert all(not np.array_equal(a, b) for a, b in itertools.combinations(flags, 2))


def test_no_variant_is_a_row_that_is_measured(tmp_path: Path) -> None:
    """Every variant of the template is in the test file: none of them may be trained on."""
    rows = completions(30)
    twins = [{**row, "prompt": f"Q: {row['prompt']}"} for row in rows]
    how = ({"type": "templates", "probability": 1, "templates": ("Q: {text}", "Question: {text}")},)
    test = {"uri": write_jsonl(tmp_path / "test.jsonl", *twins)}
    data = load(tmp_path, rows, how=how, test=test)
    measured = {fingerprint(f"{row['prompt']} {row['completion']}") for row in twins}
    kept = questions = 0
    for epoch in range(4):
        for row in range(len(data.train)):
            found = variants(data).row(row, [0], epoch=epoch)
            kept += found is None
            questions += found is not None
            if found is not None:
                assert fingerprint(f"{found.fields['prompt']} {found.fields['completion']}") not in measured
        corpus, _ = variants(data).of(np.arange(len(data.train)), epoch=epoch)
        assert "Q:" not in text_of(tmp_path, corpus.tokens)
    assert kept > 20
    assert questions > 20


def test_a_variant_that_is_too_long_is_not_used(tmp_path: Path) -> None:
    how = ({"type": "templates", "probability": 1, "templates": ("x" * 99 + "{text}",)},)
    data = load(tmp_path, completions(20), how=how, sequenceLength=60)
    corpus, _ = variants(data).of(np.arange(len(data.train)), epoch=0)
    assert np.array_equal(corpus.tokens, data.train.tokens)


def test_without_augmentation_nothing_is_kept_for_it(tmp_path: Path) -> None:
    plain = load(tmp_path, classified(40), how=())
    assert plain.variants is None
    augmented = load(tmp_path, classified(40))
    for name in ("tokens", "offsets", "trained", "bytes"):
        assert np.array_equal(getattr(plain.train, name), getattr(augmented.train, name))
    folders = [path for path in (tmp_path / "cache" / "tokenized").iterdir() if path.is_dir()]
    assert sorted((path / "rows.jsonl").exists() for path in folders) == [False, True]


def test_other_probabilities_need_no_new_tokens(tmp_path: Path) -> None:
    load(tmp_path, classified(40))
    load(tmp_path, classified(40), how=ALL[:1])
    assert len([path for path in (tmp_path / "cache" / "tokenized").iterdir() if path.is_dir()]) == 1


def test_rows_cut_or_left_out_keep_variants_at_their_rows(tmp_path: Path) -> None:
    rows = completions(30)
    rows[4]["completion"] = " long" * 99
    data = load(tmp_path, rows, sequenceLength=60, overlong="drop")
    for row in range(len(data.train)):
        original = variants(data).original(row)
        assert original.fields["completion"] in text_of(tmp_path, data.train.row(row).tokens)


def test_a_runs_counts_are_those_of_its_steps(tmp_path: Path) -> None:
    data = load(tmp_path, completions(50))
    mixture, batch, steps = Mixture((len(data.train),), (1.5,)), 8, 21
    per_epoch = -(-mixture.per_epoch // batch)
    found = list(variants(data).statistics(mixture, steps=steps, batch_size=batch))
    assert [each.type for each in found] == [each["type"] for each in ALL]
    for kind, each in enumerate(found):
        expected = rows = 0
        for step in range(steps):
            seen = step_rows(mixture, batch_size=batch, seed=3, step=step)
            expected += int(variants(data).chosen(kind, step // per_epoch)[seen].sum())
            rows += len(seen)
        assert (each.chosen, each.rows) == (expected, rows)
        assert each.line().startswith(f"augmentation {each.type}: {expected} of {rows} rows")


def test_plain_text_is_all_answer(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match="format text are all answer") as caught:
        load(tmp_path, [{"text": f"{n}"} for n in range(9)])
    assert caught.value.reason is Reason.InvalidSpec


def drawing(*numbers: float) -> Any:
    return iter(numbers).__next__


@pytest.mark.parametrize(
    ("draws", "text"),
    [
        ((0.0, 0.0, 0.9, 0.9), "b, 1"),
        ((0.0, 0.3, 0.9, 0.9), "aab, 1"),
        ((0.0, 0.6, 0.9, 0.9), "ba, 1"),
        ((0.0, 0.9, 0.99, 0.9), "zb, 1"),
        ((0.9, 0.0, 0.6), "ab, 1"),
    ],
    ids=["dropped", "doubled", "swapped", "mistyped", "the last letter has none to swap with"],
)
def test_noise_touches_letters_alone(draws: tuple[float, ...], text: str) -> None:
    assert character_noise("ab, 1", drawing(*draws), rate=0.5) == text


def test_casing_and_backoff_in_small() -> None:
    assert [casing("Two Words", drawing(draw)) for draw in (0.0, 0.4, 0.9)] == ["two words", "TWO WORDS", "Two Words"]
    donor = ["other"].copy
    assert backoff(" one  two\nthree", drawing(0.9, 0.1, 0.0, 0.9), rate=0.5, donor=donor) == " one  other\nthree"
    assert backoff("one", drawing(0.1), rate=0.5, donor=list) == "one"


def test_backoff_takes_words_of_the_same_label(tmp_path: Path) -> None:
    data = load(tmp_path, classified(80), how=({"type": "backoff", "probability": 1, "rate": 0.5},))
    for row in range(len(data.train)):
        original = variants(data).original(row).fields
        for epoch in range(3):
            found = variants(data).row(row, [0], epoch=epoch)
            if found is not None:
                assert {"fruit": "stone", "rock": "mango"}[original["label"]] not in found.fields["text"]
                assert found.fields["label"] == original["label"]
