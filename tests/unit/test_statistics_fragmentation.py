"""How a tokenizer cuts a text: counts by hand, and planted terms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from finetune_trainer.statistics.fragmentation import PRIOR, Cut, fragmentation, typical_terms


def _cut(text: str, tokens: str) -> Cut:
    """tokens: the text with | between tokens."""
    spans, at = [], 0
    for token in tokens.split("|"):
        spans.append((at, at + len(token)))
        at += len(token)
    assert at == len(text)
    return Cut(text, np.array(spans, np.int64))


def _words(text: str) -> Cut:
    """A token a word, with the space before it."""
    return _cut(text, text.replace(" ", "| "))


def test_counts_by_hand() -> None:
    """`the` is one token, `STEMI` five, `zu` one: 7 tokens of 3 words and 12 bytes, a third in four or more pieces."""
    found = fragmentation([_cut("the STEMI zu", "the| S|T|E|M|I| zu")])
    assert (found.documents, found.tokens) == (1, 7)
    assert found.tokens_per_byte == 7 / 12
    assert found.fertility == pytest.approx(7 / 3)
    assert found.fragmented == pytest.approx(1 / 3)


def test_a_token_over_two_words_counts_for_both_and_bytes_are_those_of_utf_8() -> None:
    found = fragmentation([_cut("où est", "où e|st")])
    assert found.tokens_per_byte == 2 / 7
    assert found.fertility == pytest.approx((1 + 2) / 2)


def test_text_without_spaces_has_no_fertility() -> None:
    text = "これは空白で区切られていない文章であり単語の数は分からない"
    found = fragmentation([_cut(text, "|".join(text))])
    assert (found.fertility, found.fragmented) == (None, None)
    assert found.tokens_per_byte == pytest.approx(1 / 3)


def test_planted_terms_are_found_and_common_words_are_not() -> None:
    chosen = np.random.default_rng(0)
    common = [f"w{letter}{other}" for letter in "abcdefgh" for other in "abcdefgh"]

    def text(extra: list[str]) -> Cut:
        return _words(" ".join([*chosen.choice(common, 20), *extra]))

    planted = ["troponin", "stemi", "angiogram"]
    ours = [text([planted[i % 3], "patient"]) for i in range(60)]
    others = [text(["garden"] if i % 2 else []) for i in range(60)]
    terms = typical_terms(ours, others, most=10)
    assert {term.word for term in terms[:4]} == {"patient", *planted}
    assert "garden" not in {term.word for term in terms}
    assert len(terms) <= 6, "of 64 common words a few are beyond two standard errors by chance"
    assert (terms[0].documents, terms[0].pieces) == (60, 1)


def test_the_score_is_that_of_the_formula() -> None:
    """A word in 400 of 400 documents and in 100 of 400, next to one that is in all: log odds of counts plus prior, over
    their error."""
    ours = [_words("alpha base")] * 400
    others = [_words("alpha base")] * 100 + [_words("base")] * 300
    [term] = typical_terms(ours, others, most=1)
    prior = PRIOR * 500 / 1300
    first, second = 400 + prior, 100 + prior
    odds = math.log(first / (800 + PRIOR - first)) - math.log(second / (500 + PRIOR - second))
    assert (term.word, term.documents) == ("alpha", 400)
    assert term.z == pytest.approx(odds / math.sqrt(1 / first + 1 / second))


def test_a_word_that_one_document_repeats_is_not_a_term() -> None:
    ours = [_words("spam " * 50 + "end"), *[_words("end of it")] * 20]
    assert typical_terms(ours, [_words("end of it")] * 20, most=5) == []
