"""Every answer that is trained ends with a token that stops it, under every shape of chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.data import Data
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.chat import Conversation
from finetune_trainer.data.load import Datasets, load_datasets
from finetune_trainer.data.tokenizer import Tokenizer
from finetune_trainer.data.turn_ends import Stops
from tests.support.chat_templates import FAMILIES, Family, Messages
from tests.support.tokenizers import row, tokenizer_folder, write_jsonl

ANSWERS = ("Hello 0", "end s")
TURNS: Messages = [
    {"role": "user", "content": "Hi 0"},
    {"role": "assistant", "content": ANSWERS[0]},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": ANSWERS[1]},
]
REASONED = [
    {**m, "content": f"<think>\nwhy\n</think>\n\n{m['content']}"} if m["role"] == "assistant" else m for m in TURNS
]
THINKERS = ("DeepSeek R1", "QwQ")
"""Ask for reasoning first, so the answers need some."""


def trained(family: Family, messages: Messages) -> list[str]:
    return [text[start:end] for text, spans, _ in family.renderings(messages) for start, end in spans]


@pytest.mark.parametrize("turns", [2, 4], ids=["one turn", "two turns"])
@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_is_trained_through_the_token_that_ends_it(name: str, turns: int) -> None:
    family = FAMILIES[name]
    said = trained(family, (REASONED if name in THINKERS else TURNS)[:turns])
    assert len(said) == turns // 2
    for words, answer in zip(said, ANSWERS, strict=False):
        before, _, behind = words.partition(answer)
        assert behind.lstrip() in (family.end or family.eos, f"{family.end}\n{family.eos}")
        assert "user" not in before.lower()


ENDLESS = ("ChatGLM", "ChatGLM that always asks", "Baichuan", "MiniCPM", "Solar", "Nemotron", "marks and no end")


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_without_an_end_needs_an_eos(name: str) -> None:
    """Each answer has a text of its own, so that the history stays as the model will see it; this is reported."""
    texts = FAMILIES[name].renderings(TURNS)
    assert [text.closed for text in texts] == [True, True]
    compiled = FAMILIES[name].compiled()
    for turn, (text, [(start, _)], _) in zip((1, 3), texts, strict=True):
        assert text[:start] == compiled.render(TURNS[:turn], prompt=True).text
    without = Stops(FAMILIES[name].special, eos=None)
    with pytest.raises(FinetuneError, match="never learn to stop") as caught:
        Conversation(row(messages=TURNS), TURNS, None, compiled, without).renderings()
    assert caught.value.reason is Reason.ModelUnsupported


def test_templates_that_end_their_turns_get_no_other_end() -> None:
    closed = {name for name, family in FAMILIES.items() if name not in THINKERS and family.renderings(TURNS)[0].closed}
    assert closed == set(ENDLESS)
    assert len(FAMILIES) >= 25


SPECIAL = ("<|start|>", "<|end|>", "<think>", "</think>")
ENDS = [
    ("behind the token", "Hello<|end|>\n", ["Hello"], 12, True),
    ("words that a token holds too", "end<|end|>", ["end"], 10, True),
    ("words that are a token", "a<|end|>b<|end|>", ["a<|end|>b"], 16, True),
    ("no token", "Hello\n", ["Hello"], 5, False),
    ("a token within the words alone", "<think>a</think>Hello", ["Hello"], 21, False),
    ("a tag that closes reasoning ends nothing", "<think>a</think>\n", [], 16, False),
    ("nothing at all", "", [""], 0, False),
]  # fmt: skip


@pytest.mark.parametrize(("said", "words", "at", "stops"), [c[1:] for c in ENDS], ids=[c[0] for c in ENDS])
def test_where_a_turn_ends(said: str, words: list[str], at: int, stops: bool) -> None:
    assert Stops(SPECIAL, eos="</s>").end(said, words) == (at, stops)


def load(folder: Path, uri: str, **fields: Any) -> Datasets:
    dev = write_jsonl(folder / "dev.jsonl", *fields.pop("dev"))
    spec = Data.model_validate({"train": ({"uri": uri},), "validation": {"uri": dev}, **fields}, strict=False)
    return load_datasets(spec, tokenizer_path=folder / "model", cache=folder / "cache", seed=1)


def test_answers_without_an_end_are_reported(tmp_path: Path) -> None:
    family = FAMILIES["ChatGLM"]
    tokenizer_folder(tmp_path / "model", template=family.template)
    uri = write_jsonl(tmp_path / "train.jsonl", *[{"messages": TURNS}] * 3, {"messages": TURNS[:2]})
    data = load(tmp_path, uri, dev=[{"messages": [{"role": "user", "content": "x"}, TURNS[1]]}])
    split = data.statistics.splits["train"]
    assert (split.rows, split.documents, split.closed) == (4, 7, 4)
    assert "4 conversations with eos_token after each answer, since the chat template ends none" in split.line()


@pytest.mark.parametrize("append", [True, False])
def test_a_text_has_one_end_however_it_is_cut(tmp_path: Path, append: bool) -> None:
    """A .txt file is one text in several rows; a long row is one text in several windows."""
    tokenizer_folder(tmp_path / "model")
    passages = "\n\n".join(["a" * 4000, "b" * 4000, "c" * 300]) + "\n"
    (tmp_path / "book.txt").write_text(passages)
    uri = f"file://{tmp_path}/book.txt"
    data = load(tmp_path, uri, sequenceLength=512, appendEos=append, dev=[{"text": "xy"}], general={"uri": uri})
    eos = Tokenizer.load(tmp_path / "model").eos
    ends = np.flatnonzero(data.train.tokens == eos)
    assert ends.tolist() == ([len(data.train.tokens) - 1] if append else [])
    assert data.train.trained[ends].all()
    assert data.general is not None
    assert eos not in data.general.tokens  # bits per byte are those of the text
