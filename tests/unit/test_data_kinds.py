"""Rows under tokenizers of every kind that models have: what is taught is the text of the row, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from finetune_trainer.data.encode import Piece, tokens_of
from finetune_trainer.data.formats import Chat, Completion, Text
from finetune_trainer.data.tokenizer import Tokenizer
from tests.support.tokenizers import CHATML, row, tiny

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
LETTERS = [*"abcdefghijklmnopqrstuvwxyzAQ:0123456789<|>_/"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def bpe(space: str, letters: list[str]) -> Backend:
    merges = [(space, "y"), (space + "y", "e"), (space + "ye", "s"), ("c", "d"), (space, space)]
    vocab = ["<unk>", *BYTES, space, *letters]
    every = dict.fromkeys([*vocab, *(one + other for one, other in merges)])
    return Backend(models.BPE({t: i for i, t in enumerate(every)}, merges, unk_token="<unk>", byte_fallback=True))


def byte_level(*, prefix: bool = False, regex: bool = True, trim: bool | None = None) -> Backend:
    backend = bpe("Ġ", sorted({*pre_tokenizers.ByteLevel.alphabet()} - {"Ġ"}))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)
    backend.decoder = decoders.ByteLevel()
    if trim is not None:
        backend.post_processor = processors.ByteLevel(trim_offsets=trim)
    return backend


def metaspace(scheme: str, *, split: bool = True) -> Backend:
    backend = bpe("▁", LETTERS)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    return backend


def prepend() -> Backend:
    backend = bpe("▁", LETTERS)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return backend


def unigram() -> Backend:
    pieces = [("<unk>", 0.0), ("▁", -3.0), ("▁yes", -1.0), ("cd", -1.0), *((letter, -4.0) for letter in LETTERS)]
    backend = Backend(models.Unigram([*pieces, *((byte, -9.0) for byte in BYTES)], unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return backend


def word_piece() -> Backend:
    words = ["[UNK]", "yes", "Answer", "Question", "cd", "ab", "##c", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    backend = Backend(models.WordPiece({w: i for i, w in enumerate(dict.fromkeys(words))}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def word_level() -> Backend:
    words = ["<unk>", "yes", "no", "Answer", "Question", ":", *"0123456789"]
    backend = Backend(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def characters() -> Backend:
    backend = bpe("▁", LETTERS)
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return backend


KINDS: dict[str, Callable[[], Backend]] = {
    "bytes": byte_level,
    "bytes without words": lambda: byte_level(regex=False),
    "bytes, a space before every text": lambda: byte_level(prefix=True),
    "bytes, spans without spaces": lambda: byte_level(trim=True),
    "Prepend": prepend,
    "Metaspace always": lambda: metaspace("always"),
    "Metaspace always, unsplit": lambda: metaspace("always", split=False),
    "Metaspace first": lambda: metaspace("first"),
    "Metaspace never": lambda: metaspace("never"),
    "Unigram": unigram,
    "WordPiece": word_piece,
    "WordLevel": word_level,
    "characters": characters,
}
WORDS_ONLY = ("WordPiece", "WordLevel")
"""Know no spaces."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tokenizer(kind: str, tmp_path: Path) -> Tokenizer:
    backend = KINDS[kind]()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return tiny(tmp_path, backend=backend, template=CHATML, eos_token="</s>", bos_token="<s>")


def text_of(tokenizer: Tokenizer, tokens: np.ndarray) -> str:
    """What the tokens say, spaces of every kind as spaces."""
    parts = [tokenizer.backend.id_to_token(int(token)) or "" for token in tokens]
    return "".join({"<0x0A>": "\n"}.get(part, part) for part in parts).translate({0x120: " ", 0x2581: " ", 0x10A: "\n"})


def completion(tokenizer: Tokenizer, prompt: str, answer: str) -> Piece:
    return tokens_of(Completion(tokenizer).document(row(prompt=prompt, completion=answer)), tokenizer)


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [("Question 0\nAnswer: ", "yes 0"), ("Answer:  ", "yes"), ("Answer:", " yes"), ("Answer:", "yes"),
     ("Answer:\n", "no")],
)  # fmt: skip
def test_a_completion_has_the_tokens_of_the_whole_text(tokenizer: Tokenizer, prompt: str, answer: str) -> None:
    """Also behind a space, where the prompt alone would end in a token that the model has seldom seen there."""
    piece = completion(tokenizer, prompt, answer)
    whole = tokenizer.backend.encode(prompt + answer, add_special_tokens=False)
    assert piece.tokens.tolist() == [*whole.ids, tokenizer.eos]
    said = text_of(tokenizer, piece.tokens[piece.trained]).removesuffix("</s>")
    assert said.replace("##", "").replace(" ", "") == answer.replace(" ", "")
    assert not said.startswith("  ")


def test_tokens_that_would_cross_into_the_answer_are_split_without_a_space(tokenizer: Tokenizer, kind: str) -> None:
    """`cd` is one token: the model is asked with `c`, and `d` is not ` d`."""
    piece = completion(tokenizer, "abc", "def")
    if kind in WORDS_ONLY:
        return
    assert text_of(tokenizer, piece.tokens).strip() == "abcdef</s>"
    assert text_of(tokenizer, piece.tokens[piece.trained]) == "def</s>"


def test_answers_end_with_a_trained_token(tokenizer: Tokenizer) -> None:
    turns: list[dict[str, Any]] = [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "yes"}]
    piece = tokens_of(Chat(tokenizer).document(row(messages=[*turns, *turns])), tokenizer)
    [end] = tokenizer.encode(["<|im_end|>"])[0].ids
    ends = np.flatnonzero(piece.tokens == end)
    assert piece.trained[ends].tolist() == [False, True, False, True]
    assert piece.trained[-1]


def test_a_text_ends_once(tokenizer: Tokenizer) -> None:
    for text in ("yes", "yes</s>", "yes </s>\n"):
        piece = tokens_of(Text(tokenizer).document(row(text=text)), tokenizer)
        assert (piece.tokens == tokenizer.eos).sum() == 1
        assert piece.trained[piece.tokens == tokenizer.eos].all()
    open_end = Text(tokenizer, append_eos=False).document(row(text="yes"))
    assert tokenizer.eos not in tokens_of(open_end, tokenizer).tokens
    assert (completion(tokenizer, "abc", "yes</s>").tokens == tokenizer.eos).sum() == 1
