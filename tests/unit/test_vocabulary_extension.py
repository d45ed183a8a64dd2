"""Continued BPE: new tokens for terms and for frequent pairs, and nothing else changes.

Texts are random, by Hypothesis; the judge is the tokenizers library on the tokenizer.json that was written.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.vocabulary.bpe import Bpe
from finetune_trainer.vocabulary.extension import Extension, Growing, counted
from tests.support.tokenizers import byte_level, sentencepiece_like, tokenizer_folder

TERMS = ("STEMI", "hello", "Ödem", "ΕΛΛΗΝΙΚΑ", "wholly", "心電図")
_SAFE = st.text(st.characters(codec="utf-8", exclude_characters="▁"), max_size=40)
TEXTS = st.lists(_SAFE | st.sampled_from(TERMS), max_size=8).map(" ".join)


def with_words() -> Backend:
    """Byte-level with GPT-2's splitting, and special tokens after the vocabulary (as Qwen has them)."""
    backend = byte_level()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return backend


def llama3() -> Backend:
    """A word that is a token is not built by merges."""
    backend = with_words()
    content = backend.to_str().replace('"ignore_merges":false', '"ignore_merges":true')
    assert '"ignore_merges":true' in content
    return Backend.from_str(content)


def grown(backend: Backend, folder: Path, *, texts: tuple[str, ...] = (), most: int = 200) -> tuple[Bpe, Extension]:
    bpe = Bpe.of(tokenizer_folder(folder, backend=backend))
    growing = Growing(bpe, most=most)
    for term in TERMS:
        for words in bpe.words_of_term(term):
            assert growing.add(words[0])
    growing.mine(counted(bpe, texts))
    return bpe, growing.made()


def corpus() -> tuple[str, ...]:
    chosen = random.Random(0)
    words = ["".join(chosen.choice("abcdeё心ß 12") for _ in range(chosen.randint(1, 9))) for _ in range(60)]
    return tuple(" ".join(chosen.choices(words, k=30)) for _ in range(60))


KINDS = {"byte-level": byte_level, "GPT-2": with_words, "Llama 3": llama3, "SentencePiece": sentencepiece_like}


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bpe, Extension, Backend]:
    bpe, extension = grown(KINDS[request.param](), tmp_path_factory.mktemp("tokenizer"), texts=corpus())
    return bpe, extension, Backend.from_str(extension.encoded(bpe).decode())


Both = tuple[Bpe, Extension, Backend]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=TEXTS)
def test_any_text_is_decoded_as_before(both: Both, text: str) -> None:
    bpe, _, backend = both
    old, new = (each.encode(text, add_special_tokens=False).ids for each in (bpe.backend, backend))
    assert backend.decode(new, skip_special_tokens=False) == bpe.backend.decode(old, skip_special_tokens=False)
    assert len(new) <= len(old)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=TEXTS)
def test_only_where_a_new_merge_applies_is_a_text_encoded_otherwise(both: Both, text: str) -> None:
    bpe, extension, backend = both
    old, new = (each.encode(text, add_special_tokens=False).ids for each in (bpe.backend, backend))
    if not set(new) & set(extension.ids):
        assert new == old
    pieces = dict(zip(extension.ids, extension.pieces, strict=True))
    assert [id for token in new for id in pieces.get(token, (token,))] == old


@settings(max_examples=50, deadline=None, derandomize=True)
@given(text=TEXTS)
def test_words_are_cut_as_the_library_cuts_them(both: Both, text: str) -> None:
    bpe, extension, backend = both
    growing = Growing(bpe, most=len(extension.tokens))
    growing._merges, growing._ranks = (
        list(extension.merges),
        {pair: 10**6 + i for i, pair in enumerate(extension.merges)},
    )
    growing._pieces = dict(zip(extension.tokens, extension.pieces, strict=True))
    for word in bpe.words(text):
        if all(growing._known(letter) for letter in word):
            assert growing.cut(word) == [token.value for token in backend.model.tokenize(word)]


def test_ids_of_old_tokens_stay_and_new_ones_follow_all_of_them(both: Both) -> None:
    bpe, extension, backend = both
    assert extension.ids[0] == bpe.backend.get_vocab_size()
    for token, id in bpe.backend.get_vocab(with_added_tokens=True).items():
        assert backend.token_to_id(token) == id
    for token, id in zip(extension.tokens, extension.ids, strict=True):
        assert backend.token_to_id(token) == id
    special = {id: token.content for id, token in backend.get_added_tokens_decoder().items()}
    assert special == {id: token.content for id, token in bpe.backend.get_added_tokens_decoder().items()}
    assert len(extension.tokens) > len(TERMS) + 20, "pairs were mined too"


@pytest.mark.parametrize("term", TERMS)
def test_a_term_is_one_token_in_a_text_and_at_its_beginning(both: Both, term: str) -> None:
    *_, backend = both
    alone = backend.encode(term, add_special_tokens=False).ids
    within = backend.encode(f"a {term}", add_special_tokens=False).ids
    assert len(alone) == 1
    assert len(within) == len(backend.encode("a", add_special_tokens=False).ids) + 1


def test_the_limit_is_kept_and_what_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    bpe = Bpe.of(tokenizer_folder(tmp_path, backend=with_words()))
    growing = Growing(bpe, most=5)
    assert growing.add("STEMI")  # four merges
    assert not growing.add("wholly")
    assert len(growing.made().tokens) == 4
    assert growing.add("ab")
    assert growing.made().tokens[-1] == "ab"
    growing.mine({"xyz": 100})
    assert len(growing.made().tokens) == 5


def test_a_term_of_two_words_is_none(tmp_path: Path) -> None:
    bpe = Bpe.of(tokenizer_folder(tmp_path, backend=with_words()))
    assert bpe.words_of_term("acute-care") == [["Ġacute", "-", "care"], ["acute", "-", "care"]]
    assert bpe.words_of_term("STEMI") == [["ĠSTEMI"], ["STEMI"]]


def test_digits_stay_alone_where_they_are_alone(tmp_path: Path) -> None:
    bpe = Bpe.of(tokenizer_folder(tmp_path, backend=with_words()))
    growing = Growing(bpe, most=50)
    growing.mine(counted(bpe, ["in 1984 in 1984"] * 9))
    tokens = growing.made().tokens
    assert "Ġ1" in tokens
    assert not any(sum(letter.isdigit() for letter in token) > 1 for token in tokens)


def test_text_without_spaces_is_mined_in_parts(tmp_path: Path) -> None:
    """Also where the tokenizer lacks its characters."""
    bpe = Bpe.of(tokenizer_folder(tmp_path, backend=sentencepiece_like()))
    words = counted(bpe, ["心電図の検査" * 100])
    assert max(map(len, words)) == 48
    growing = Growing(bpe, most=20)
    growing.mine(words)
    assert "心電図の検査" in "".join(growing.made().tokens)
    assert bpe.cut("a心b") == ["a", "心", "b"]


def unigram() -> Backend:
    backend = Backend(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    backend.add_special_tokens([AddedToken("<unk>", special=True)])
    return backend


def word_piece() -> Backend:
    return Backend(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))


def of_clip() -> Backend:
    return Backend(models.BPE(vocab={"a</w>": 0, "b": 1}, merges=[], end_of_word_suffix="</w>"))


@pytest.mark.parametrize(
    ("backend", "why"),
    [
        (unigram(), "is a Unigram tokenizer, which has none"),
        (word_piece(), "is a WordPiece tokenizer, which has none"),
        (of_clip(), "marks pieces by a end_of_word_suffix"),
    ],
)
def test_a_tokenizer_without_merges_is_refused_by_name(tmp_path: Path, backend: Backend, why: str) -> None:
    folder = tokenizer_folder(tmp_path, backend=backend)
    with pytest.raises(FinetuneError, match=why) as refused:
        Bpe.of(folder)
    assert refused.value.reason is Reason.ModelUnsupported
    assert "existingRows" in str(refused.value.hint)
