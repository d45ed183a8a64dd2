"""Documents to tokens: which are trained, how many bytes they stand for, and what becomes of long ones."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.classification import Classification
from finetune_trainer.data.corpus import Corpus, Tokens
from finetune_trainer.data.encode import Limits, encode, tokens_of
from finetune_trainer.data.formats import Chat, Completion, Document, Format, Text, detect
from finetune_trainer.data.read import Row
from finetune_trainer.data.tokenizer import Tokenizer
from finetune_trainer.data.writer import CorpusWriter
from finetune_trainer.statistics import SplitStatistics
from tests.support.tokenizers import CHATML, row, sentencepiece_like, tiny

SPM_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}


@cache
def bytes_tokenizer(template: str | None = CHATML) -> Tokenizer:
    return tiny(Path(tempfile.mkdtemp()), template=template)


@cache
def bos_tokenizer() -> Tokenizer:
    return tiny(Path(tempfile.mkdtemp()), backend=sentencepiece_like(), template=None, **SPM_NAMES)


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def decoded(tokenizer: Tokenizer, tokens: np.ndarray) -> str:
    return tokenizer.backend.decode(tokens.tolist(), skip_special_tokens=False)


def encoded(form: Format, *rows: Row, length: int = 1000, overlong: str = "fail") -> tuple[Corpus, SplitStatistics]:
    tokenizer: Tokenizer = form.tokenizer  # type: ignore[attr-defined]
    answers = form.answers if isinstance(form, Classification) else ()
    return written([form.document(r) for r in rows], tokenizer, Limits(length, overlong), answers)


def written(
    documents: list[Document], tokenizer: Tokenizer, limits: Limits, answers: tuple[Tokens, ...] = ()
) -> tuple[Corpus, SplitStatistics]:
    with tempfile.TemporaryDirectory() as folder:
        with CorpusWriter(Path(folder), limits, answers=answers) as writer:
            for outcome in encode(documents, tokenizer, limits):
                writer.add(outcome)
            writer.check()
        corpus = Corpus.load(Path(folder))
        return corpus, writer.facts().statistics(corpus)


TRAINED: list[tuple[str, Format, Row, str, int]] = [
    ("completion", Completion(bytes_tokenizer()), row(prompt="say:", completion="hello"), "hello<|im_end|>", 5),
    ("a completion behind a space", Completion(bytes_tokenizer()), row(prompt="say: ", completion="hello"),
     "hello<|im_end|>", 6),
    ("an empty completion", Completion(bytes_tokenizer()), row(prompt="say: ", completion=""), "<|im_end|>", 0),
    ("text but for its first token", Text(bytes_tokenizer()), row(text="say ö"), "ay ö<|im_end|>", 5),
    ("text after a begin token", Text(bos_tokenizer()), row(text="say ö"), "say ö</s>", 6),
    ("text that goes on", Text(bos_tokenizer(), append_eos=False), row(text="say ö"), "say ö", 6),
    ("chat", Chat(bytes_tokenizer()), row(messages=[user("a"), assistant("😀")]), "😀<|im_end|>", 4),
]  # fmt: skip


@pytest.mark.parametrize(("form", "example", "text", "size"), [c[1:] for c in TRAINED], ids=[c[0] for c in TRAINED])
def test_what_is_trained_and_its_bytes(form: Format, example: Row, text: str, size: int) -> None:
    corpus, _ = encoded(form, example)
    tokens, trained = corpus.row(0)
    assert decoded(form.tokenizer, tokens[trained]).removeprefix(" ") == text  # type: ignore[attr-defined]
    assert corpus.bytes.tolist() == [size]


def test_the_end_is_trained_though_it_is_the_padding_token() -> None:
    tokenizer = bytes_tokenizer()
    assert tokenizer.pad == tokenizer.eos
    tokens, trained = encoded(Completion(tokenizer), row(prompt="a", completion="b"))[0].row(0)
    assert tokens[-1] == tokenizer.eos
    assert trained.tolist() == [False, True, True]


def test_tokens_never_reach_over_the_edge_of_the_answer() -> None:
    """`cd` is one token, yet with the prompt `abc` the model sees `c` and has to say `d`."""
    tokens, trained = encoded(Completion(bytes_tokenizer()), row(prompt="abc", completion="def"))[0].row(0)
    said = [bytes_tokenizer().backend.id_to_token(int(token)) for token in tokens]
    assert said == ["a", "b", "c", "d", "e", "f", "<|im_end|>"]
    assert trained.tolist() == [False] * 3 + [True] * 4


def test_what_follows_the_last_trained_token_is_left_out() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    tokens, trained = encoded(Chat(bytes_tokenizer()), row(messages=messages))[0].row(0)
    assert decoded(bytes_tokenizer(), tokens).endswith("b<|im_end|>")
    assert trained[-1]


def test_the_begin_token_is_never_doubled() -> None:
    corpus, _ = encoded(Text(bos_tokenizer()), row(text="abc"), row(text="<s>abc"))
    assert [int((corpus.row(i).tokens == bos_tokenizer().bos).sum()) for i in range(2)] == [1, 1]


@given(text=st.text(min_size=1, max_size=60), length=st.integers(8, 40), with_bos=st.booleans())
def test_windows_train_every_token_once_and_count_every_byte_once(text: str, length: int, with_bos: bool) -> None:
    tokenizer = bos_tokenizer() if with_bos else bytes_tokenizer()
    document = Text(tokenizer).document(row(text=text))
    corpus, statistics = written([document], tokenizer, Limits(length, "fail"))
    whole = tokens_of(document, tokenizer)
    windows = [corpus.row(index) for index in range(len(corpus))]
    assert [int(t) for w in windows for t in w.tokens[w.trained]] == whole.tokens[1:].tolist()
    assert all(len(window.tokens) <= length for window in windows)
    assert all(window.tokens[0] == (tokenizer.bos if with_bos else window.tokens[0]) for window in windows)
    assert int(corpus.bytes.sum()) == whole.trained_bytes
    assert statistics.trained_tokens == sum(int(window.trained.sum()) for window in windows)


@given(text=st.text(max_size=40))
def test_bytes_are_those_of_the_text(text: str) -> None:
    piece = tokens_of(Text(bos_tokenizer()).document(row(text=text)), bos_tokenizer())
    if not any(token in text for token in ("<s>", "</s>", "<unk>")):
        assert int(piece.bytes.sum()) == len(text.encode())


LONG = [row(prompt="a", completion="b"), row(prompt="x" * 20, completion="y"), row(prompt="x", completion="y" * 30)]


def test_too_long_fails_with_the_longest_row_and_the_count() -> None:
    with pytest.raises(FinetuneError) as caught:
        encoded(Completion(bytes_tokenizer()), *LONG, length=10)
    assert caught.value.reason is Reason.SequenceTooLong
    assert caught.value.message == (
        "train.jsonl line 7: 32 tokens are more than data.sequenceLength 10; "
        "so are 2 of the 3 rows, of which this is the longest"
    )


def test_too_long_is_dropped_and_counted() -> None:
    corpus, statistics = encoded(Completion(bytes_tokenizer()), *LONG, length=10, overlong="drop")
    assert (len(corpus), statistics.overlong, statistics.dropped) == (1, 2, 2)
    assert "2 too long: 2 dropped, 0 truncated" in statistics.line()


def test_too_long_is_truncated_and_counted_and_a_row_without_targets_never_trains() -> None:
    corpus, statistics = encoded(Completion(bytes_tokenizer()), *LONG, length=10, overlong="truncate")
    assert corpus.lengths.tolist() == [3, 10]
    assert all(corpus.row(index).trained.any() for index in range(len(corpus)))
    assert (statistics.overlong, statistics.dropped, statistics.untrained) == (2, 0, 1)


def test_empty_texts_are_left_out_and_counted() -> None:
    corpus, statistics = encoded(Text(bytes_tokenizer()), row(text=""), row(text="a"), row(text="ab"))
    assert (len(corpus), statistics.rows, statistics.untrained) == (2, 3, 1)


def classify(template: str | None = CHATML, *labels: str, instruction: str | None = "Which?") -> Classification:
    return Classification.of(bytes_tokenizer(template), labels or ("no", "yes", "yes!"), instruction)


def test_a_label_is_the_answer_to_a_question() -> None:
    form = classify()
    tokens, trained = encoded(form, row(text="hello", label="yes"))[0].row(0)
    assert decoded(form.tokenizer, tokens) == (
        "<|im_start|>user\nWhich?\n\nhello<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>"
    )
    assert decoded(form.tokenizer, tokens[trained]) == "yes<|im_end|>"


def test_without_a_chat_template_the_label_follows_the_text() -> None:
    form = classify(None)
    tokens, trained = encoded(form, row(text="hello", label="yes"))[0].row(0)
    assert decoded(form.tokenizer, tokens) == "hello\nLabel: yes<|im_end|>"
    assert decoded(form.tokenizer, tokens[trained]) == " yes<|im_end|>"


@pytest.mark.parametrize("template", [CHATML, None], ids=["chat", "plain"])
def test_choices_are_every_answer_to_the_end(template: str | None) -> None:
    """`yes` and `yes!` compare: each answer ends with the end-of-turn token, so none is the beginning of another."""
    form = classify(template)
    corpus, _ = encoded(form, row(text="hello", label="yes!"), row(text="c", label="no"))
    assert corpus.choices is not None
    assert corpus.choices.gold.tolist() == [2, 0]
    every = corpus.with_every_answer()
    assert len(every) == 6
    for index in range(len(corpus)):
        prompt, gold = int(corpus.choices.prompts[index]), int(corpus.choices.gold[index])
        rows = [every.row(3 * index + label) for label in range(3)]
        assert rows[gold].tokens.tolist() == corpus.row(index).tokens.tolist()
        assert rows[gold].trained.tolist() == corpus.row(index).trained.tolist()
        said = [decoded(form.tokenizer, r.tokens[r.trained]).strip() for r in rows]
        assert said == ["no<|im_end|>", "yes<|im_end|>", "yes!<|im_end|>"]
        assert len({tuple(r.tokens[:prompt].tolist()) for r in rows}) == 1


def test_truncation_shortens_the_text_and_keeps_the_label_and_room_for_the_longest() -> None:
    form = classify(CHATML, "a", "much longer")
    corpus, statistics = encoded(form, row(text="t" * 200, label="a"), length=70, overlong="truncate")
    tokens, trained = corpus.row(0)
    assert decoded(form.tokenizer, tokens[trained]) == "a<|im_end|>"
    assert max(corpus.with_every_answer().lengths) == 70
    assert (statistics.overlong, statistics.dropped) == (1, 0)


def test_a_question_that_is_too_long_alone_cannot_be_shortened() -> None:
    corpus, statistics = encoded(classify(), row(text="t", label="yes"), length=20, overlong="truncate")
    assert (len(corpus), statistics.dropped) == (0, 1)


def test_arrays_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    corpus, _ = encoded(classify(), row(text="hello", label="yes!"), row(text="c", label="no"))
    corpus.save(tmp_path)
    back = Corpus.load(tmp_path)
    assert isinstance(back.tokens, np.memmap)
    for name in ("tokens", "offsets", "trained", "bytes"):
        np.testing.assert_array_equal(getattr(back, name), getattr(corpus, name))
    np.testing.assert_array_equal(back.with_every_answer().tokens, corpus.with_every_answer().tokens)
    np.testing.assert_array_equal(back.head(1).tokens, corpus.row(0).tokens)


CHAT, PLAIN = Chat(bytes_tokenizer()), Chat(bytes_tokenizer(None))
ASKED = user("a")
BAD: list[tuple[str, Any, dict[str, Any], Reason, str]] = [
    ("no text", Text(bytes_tokenizer()), {"txt": "a"}, Reason.DataUnreadable, "text is missing"),
    ("a number as text", Text(bytes_tokenizer()), {"text": 3}, Reason.DataUnreadable, "text is a number, not a string"),
    ("null as text", Text(bytes_tokenizer()), {"text": None}, Reason.DataUnreadable, "text is null, not a string"),
    ("no completion", Completion(bytes_tokenizer()), {"prompt": "a"}, Reason.DataUnreadable, "completion is missing"),
    ("no messages", CHAT, {"text": "a"}, Reason.DataUnreadable, "messages is missing or is not a list of turns"),
    ("empty messages", CHAT, {"messages": []}, Reason.DataUnreadable, "messages is missing or is not a list of turns"),
    ("a turn without role", CHAT, {"messages": [{"content": "a"}]}, Reason.DataUnreadable, "turn 1 is not an object"),
    ("a turn without content", CHAT, {"messages": [ASKED, {"role": "assistant"}]}, Reason.DataUnreadable,
     "turn 2 has no content"),
    ("an odd weight", CHAT, {"messages": [ASKED, {"role": "assistant", "content": "a", "weight": 0.5}]},
     Reason.DataUnreadable, "turn 2 has weight 0.5, and an answer is trained (1) or not (0)"),
    ("odd tools", CHAT, {"messages": [ASKED], "tools": "x"}, Reason.DataUnreadable, "tools is not a list"),
    ("no answer", CHAT, {"messages": [ASKED]}, Reason.NothingToTrain, "no turn of the conversation is the assistant's"),
    ("no template", PLAIN, {"messages": [ASKED]}, Reason.ModelUnsupported, "needs a model with a chat template"),
    ("no label", classify(), {"text": "a"}, Reason.LabelsMissing, "the row has no label"),
    ("an empty label", classify(), {"text": "a", "label": " "}, Reason.LabelsMissing, "the label is empty"),
    ("a label of another kind", classify(), {"text": "a", "label": ["x"]}, Reason.LabelsMissing,
     "label is a list, not a word"),
    ("an unknown label", classify(), {"text": "a", "label": "maybe"}, Reason.LabelsMissing,
     "label 'maybe' is not one of 'no', 'yes', 'yes!'"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "fields", "reason", "message"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_bad_rows(form: Format, fields: dict[str, Any], reason: Reason, message: str) -> None:
    with pytest.raises(FinetuneError) as caught:
        form.document(row(**fields))
    assert caught.value.reason is reason
    assert message in caught.value.message
    assert caught.value.message.startswith("train.jsonl line 7: ") or reason is Reason.ModelUnsupported
    assert caught.value.hint


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"messages": []}, "chat"),
        ({"prompt": "", "completion": ""}, "completion"),
        ({"text": "", "label": 1}, "classification"),
        ({"text": "", "id": 1}, "text"),
    ],
)
def test_formats_are_told_by_their_keys(fields: dict[str, Any], found: str) -> None:
    assert detect(row(**fields)) == found


def test_numbers_and_booleans_are_labels_as_they_are_written() -> None:
    form = Classification.of(bytes_tokenizer(), ("1", "true"), None)
    documents: list[Document] = [form.document(row(text="a", label=label)) for label in (1, True)]
    assert [document.label for document in documents] == [0, 1]
