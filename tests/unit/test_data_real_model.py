"""The data room on a model that people use: SmolLM2's tokenizer and chat template, real sentences, golden tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_api.data import Data
from finetune_trainer.data.encode import tokens_of
from finetune_trainer.data.formats import Chat, Completion, Text
from finetune_trainer.data.load import load_datasets
from finetune_trainer.data.tokenizer import Tokenizer
from tests.support.tokenizers import real_model, row, write_jsonl

pytestmark = pytest.mark.real_model

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


@pytest.fixture(scope="module")
def smol() -> Tokenizer:
    return Tokenizer.load(real_model())


def marked(tokenizer: Tokenizer, tokens: list[int], trained: list[bool]) -> str:
    """The text with its trained tokens in brackets."""
    pieces = [tokenizer.backend.decode([token], skip_special_tokens=False) for token in tokens]
    return "".join(f"[{piece}]" if flag else piece for piece, flag in zip(pieces, trained, strict=True))


def test_special_tokens(smol: Tokenizer) -> None:
    assert (smol.bos, smol.eos, smol.pad) == (None, 2, 2)


def test_numbers_are_single_digits(smol: Tokenizer) -> None:
    tokens = smol.encode(["In 2024, 3.14"])[0].ids.tolist()
    assert [smol.backend.id_to_token(token) for token in tokens] == [
        "In", "Ġ", "2", "0", "2", "4", ",", "Ġ", "3", ".", "1", "4",
    ]  # fmt: skip


def test_a_conversation(smol: Tokenizer) -> None:
    messages = [
        {"role": "user", "content": "Capital of France?"},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": " Yes,\n\nsure. "},
    ]
    piece = tokens_of(Chat(smol).document(row(messages=messages)), smol)
    assert marked(smol, piece.tokens.tolist(), piece.trained.tolist()) == (
        SYSTEM + "<|im_start|>user\nCapital of France?<|im_end|>\n"
        "<|im_start|>assistant\n[Paris][.][<|im_end|>]\n"
        "<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\n[ Yes][,][\n][\n][s][ure][.][ ][<|im_end|>]"
    )
    assert piece.trained_bytes == len("Paris. Yes,\n\nsure. ")


def test_a_conversation_is_the_tokens_that_transformers_makes_of_it(smol: Tokenizer) -> None:
    from transformers import AutoTokenizer

    messages = [{"role": "user", "content": "naïve 日本 12\n\n"}, {"role": "assistant", "content": "34\n\n ok "}]
    theirs = AutoTokenizer.from_pretrained(real_model()).apply_chat_template(messages, return_dict=False)
    ours = tokens_of(Chat(smol).document(row(messages=messages)), smol)
    line_break = theirs[len(ours.tokens) :]
    assert ours.tokens.tolist() + line_break == theirs
    assert smol.backend.decode(line_break) == "\n"


def test_an_answer_that_starts_with_a_line_break_is_told_from_the_header(smol: Tokenizer) -> None:
    """`assistant\\n` and `\\nHi` would share the token of two line breaks; the prompt alone ends with one."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\nHi"}]
    piece = tokens_of(Chat(smol).document(row(messages=messages)), smol)
    assert marked(smol, piece.tokens.tolist(), piece.trained.tolist()).endswith("assistant\n[\n][Hi][<|im_end|>]")


def test_a_completion_stops(smol: Tokenizer) -> None:
    piece = tokens_of(Completion(smol).document(row(prompt="2 + 2 =", completion=" 4")), smol)
    assert marked(smol, piece.tokens.tolist(), piece.trained.tolist()) == "2 + 2 =[ ][4][<|im_end|>]"


def test_text_trains_all_but_its_first_token(smol: Tokenizer) -> None:
    piece = tokens_of(Text(smol).document(row(text="Grüße aus 日本 😀")), smol)
    assert piece.trained.tolist() == [False] + [True] * (len(piece) - 1)
    first = smol.backend.decode(piece.tokens[:1].tolist())
    assert piece.trained_bytes == len("Grüße aus 日本 😀".encode()) - len(first.encode())


def test_classification(smol: Tokenizer, tmp_path: Path) -> None:
    rows = [{"text": f"Film {n}", "label": ("positive", "negative")[n % 2]} for n in range(4)]
    spec = Data.model_validate({"train": ({"uri": write_jsonl(tmp_path / "train.jsonl", *rows)},)})
    data = load_datasets(spec, tokenizer_path=real_model(), cache=tmp_path, seed=1)
    choices = data.train.choices
    assert choices is not None
    assert [answer.tolist() for answer in choices.answers] == [[17728, 2], [16185, 2]]
    tokens, trained = data.train.row(0)
    assert marked(smol, tokens.tolist(), trained.tolist()) == (
        SYSTEM + "<|im_start|>user\nClassify the text. Answer with one of: negative, positive.\n\n"
        f"{_film(smol, tokens.tolist())}<|im_end|>\n<|im_start|>assistant\n[{data.labels[choices.gold[0]]}][<|im_end|>]"
    )


def _film(smol: Tokenizer, tokens: list[int]) -> str:
    text = smol.backend.decode(tokens, skip_special_tokens=False)
    return text[text.index("Film ") :][: len("Film 0")]
