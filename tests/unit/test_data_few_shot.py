"""Few-shot prompts: which training rows are shown, what the model reads, and its scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from finetune_trainer.data.corpus import Choices, Corpus, Marks, corpus_of
from finetune_trainer.data.few_shot import Joint, prompted
from finetune_trainer.data.load import load_datasets
from finetune_trainer.data.tokenizer import Tokenizer
from finetune_trainer.parallel.single import Single
from finetune_trainer.transfer.evaluate import Layout, evaluate
from tests.support.datasets import spec_of
from tests.support.tokenizers import tokenizer_folder, write_jsonl
from tests.support.training import model, network

BEGIN, END, BETWEEN = 0, 1, 2
JOINT = Joint(begin=BEGIN, end=END, between=(BETWEEN,))
ANSWERS = tuple(np.array([label, END], np.int32) for label in (90, 91, 92))


def labelled(count: int, *, first: int = 0, long: tuple[int, ...] = ()) -> Corpus:
    """Row i is `begin, i + 3, …, label, end`; its label is i modulo 3."""
    texts = [np.array([BEGIN, *[3 + first + row] * (20 if row in long else 2)], np.int32) for row in range(count)]
    gold = np.arange(count, dtype=np.int32) % 3
    digests = np.arange(count, dtype=np.uint64) + np.uint64(1000 + first)
    rows = [np.concatenate([text, ANSWERS[label]]) for text, label in zip(texts, gold, strict=True)]
    trained = [np.arange(len(row)) >= len(text) for row, text in zip(rows, texts, strict=True)]
    prompts = np.array([len(text) for text in texts], np.int32)
    return corpus_of(
        rows, trained, [2] * count, choices=Choices(ANSWERS, prompts, gold), marks=Marks(digests, digests)
    )  # fmt: skip


def shown(found: Corpus | None) -> list[list[int]]:
    """The examples of a prompt, after its first token."""
    assert found is not None
    assert found.before[0] == BEGIN
    text, examples = found.before[1:].tolist(), []
    while text:
        end = text.index(BETWEEN)
        examples.append(text[:end])
        text = text[end + 1 :]
    return examples


def test_each_row_follows_the_examples_whose_labels_are_balanced() -> None:
    train, measured = labelled(40), labelled(9, first=40)
    found = prompted(train, measured, count=6, most=100, seed=1, joint=JOINT)
    examples = shown(found)
    assert sorted(example[-1] for example in examples) == [90, 90, 91, 91, 92, 92]
    own = [train.row(at).tokens.tolist() for at in range(40)]
    assert all([BEGIN, *example, END] in own for example in examples), "whole rows, but for begin and end of a text"
    assert found is not None
    assert found.choices is not None
    for at in range(9):
        row, alone = found.row(at), measured.row(at)
        assert row.tokens.tolist() == [*found.before.tolist(), *alone.tokens[1:].tolist()]
        assert row.trained.sum() == alone.trained.sum(), "only the answer of the measured row counts"
        assert row.tokens[: found.choices.prompts[at]].tolist() == row.tokens[:-2].tolist()


def test_no_measured_row_is_shown_and_no_copy_or_relative_of_one() -> None:
    train = labelled(12)
    relatives = np.array([7] * 4 + list(range(100, 108)), np.uint64)
    assert train.marks is not None
    train = replace(train, marks=replace(train.marks, groups=relatives))
    measured = labelled(6, first=8)  # rows 8 to 11 are among the training rows, too
    assert measured.marks is not None
    measured = replace(measured, marks=replace(measured.marks, groups=np.array([7, 7, 7, 7, 7, 7], np.uint64)))
    found = {example[0] - 3 for example in shown(prompted(train, measured, count=4, most=100, seed=1, joint=JOINT))}
    assert found == {4, 5, 6, 7}
    assert prompted(train, measured, count=5, most=100, seed=1, joint=JOINT) is None


def test_the_seed_and_the_content_decide_and_not_the_order_of_the_rows() -> None:
    train, measured = labelled(40), labelled(3, first=40)
    first, same, other = (
        shown(prompted(rows, measured, count=4, most=100, seed=seed, joint=JOINT))
        for rows, seed in ((train, 1), (train.take(np.arange(40)[::-1]), 1), (train, 2))
    )
    assert first == same
    assert first != other


def test_examples_fit_before_the_longest_row_and_its_longest_answer() -> None:
    train, measured = labelled(30, long=tuple(range(0, 30, 2))), labelled(6, first=30, long=(5,))
    assert measured.lengths.max() == 23
    most = 22 + 4 * 6  # a short row has 5 tokens, and one is between two
    found = prompted(train, measured, count=4, most=most, seed=1, joint=JOINT)
    assert all(len(example) == 3 for example in shown(found))
    assert found is not None
    assert found.lengths.max() <= most
    assert prompted(train, measured, count=4, most=most - 1, seed=1, joint=JOINT) is None


@pytest.mark.parametrize("chat", [True, False], ids=["chat template", "plain"])
def test_what_the_model_reads(chat: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("rows")
    files = tokenizer_folder(folder / "model", **({} if chat else {"template": None}))
    rows = [{"text": f"word {row} ok", "label": ("no", "yes")[row % 2]} for row in range(8)]
    spec = spec_of(write_jsonl(folder / "train.jsonl", *rows), format="classification")
    data = load_datasets(spec, tokenizer_path=files, cache=folder / "cache", seed=1, fold=(0, 2))
    tokenizer = Tokenizer.load(files)
    assert data.fold is not None
    found = prompted(
        data.train, data.fold, count=2, most=500, seed=1, joint=Joint.of(tokenizer, "classification")
    )  # fmt: skip
    assert found is not None
    text = tokenizer.backend.decode(found.row(0).tokens.tolist(), skip_special_tokens=False)
    asked = [row["text"] for row in rows if row["text"] in text]
    assert len(asked) == 3
    if chat:  # of a model whose begin-of-text token begins each turn
        assert text.count("<|im_start|>user\nClassify the text.") == text.count("<|im_start|>assistant\n") == 3
    else:
        assert text.count("\n\n") == 2
        assert text.count("\nLabel:") == 3


def test_scores_are_those_of_each_row_alone_after_the_examples() -> None:
    found = prompted(labelled(40), labelled(9, first=40), count=4, most=100, seed=1, joint=JOINT)
    assert found is not None
    assert found.choices is not None
    scorer = model(network())
    alone = np.zeros((9, 3))
    for at in range(9):
        asked = found.row(at).tokens[: found.choices.prompts[at]]
        for label, answer in enumerate(ANSWERS):
            ids = torch.from_numpy(np.concatenate([asked, answer]).astype(np.int64))
            logits = scorer.network(ids[None]).logits[0, len(asked) - 1 : -1]
            alone[at, label] = torch.nn.functional.cross_entropy(logits, ids[len(asked) :], reduction="sum").item()
    layout = Layout(max_tokens=16, sequence_length=16, packing=True, pad_id=0)  # every row is longer
    whole = evaluate(scorer, found, layout=layout, strategy=Single(), going_on=lambda: True)
    np.testing.assert_allclose(whole.labels, alone, atol=2e-5)
