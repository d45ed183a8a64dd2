"""How a tokenizer cuts a text, and which words make the text another one.

fertility        tokens for each word between spaces; undefined for scripts that put no spaces between words
fragmented       share of words in four or more pieces: the model knows them by spelling, and not as words
terms            words that are typical of one text, by log odds with an informative Dirichlet prior (Monroe, Colaresi
                 and Quinn, Political Analysis 16 (2008) 372, eq. 16, 20 and 22), which holds rare words back
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PIECES = 4
"""From which on a word is fragmented."""
LONGEST_WORD = 20
"""Mean characters of a word, from which on the text is taken for one without spaces between words."""
PRIOR = 1000.0
"""Words that the prior counts for, by their frequency in both texts together."""

_WORD = re.compile(r"[^\W\d_]{2,}(?:[-'’][^\W\d_]+)*")


@dataclass(frozen=True)
class Cut:
    """A text and its tokens."""

    text: str
    spans: NDArray[np.int64]
    """(tokens, 2): first character and the one after the last."""


@dataclass(frozen=True, kw_only=True)
class Fragmentation:
    documents: int
    tokens: int
    tokens_per_byte: float
    fertility: float | None
    fragmented: float | None
    """Both None where words are not separated by spaces."""


@dataclass(frozen=True, kw_only=True)
class Term:
    word: str
    z: float
    """Log odds in units of their standard error."""
    documents: int
    pieces: float
    """Mean number of tokens."""


def fragmentation(cuts: Sequence[Cut]) -> Fragmentation:
    """Of documents with some text."""
    counts = [count for cut in cuts for _, count in _words(cut, r"\S+")]
    tokens = sum(len(cut.spans) for cut in cuts)
    characters = sum(len(cut.text) for cut in cuts)
    spaced = bool(counts) and characters / len(counts) <= LONGEST_WORD
    return Fragmentation(
        documents=len(cuts),
        tokens=tokens,
        tokens_per_byte=tokens / max(1, sum(len(cut.text.encode()) for cut in cuts)),
        fertility=sum(counts) / len(counts) if spaced else None,
        fragmented=sum(count >= PIECES for count in counts) / len(counts) if spaced else None,
    )


def typical_terms(ours: Sequence[Cut], others: Sequence[Cut], *, most: int, fewest: int = 3) -> list[Term]:
    """Of `ours`, those that stand out by two standard errors or more, the most typical first. A document counts a word
    once, so that one document cannot make a term; fewest: documents that have it."""
    here, there = _in_documents(ours), _in_documents(others)
    pieces = _pieces(ours)
    totals = sum(here.values()), sum(there.values())
    if not totals[1]:
        return []
    found = []
    for word, count in here.items():
        prior = PRIOR * (count + there[word]) / sum(totals)
        first, second = count + prior, there[word] + prior
        odds = math.log(first / (totals[0] + PRIOR - first)) - math.log(second / (totals[1] + PRIOR - second))
        z = odds / math.sqrt(1 / first + 1 / second)
        if z >= 2 and count >= fewest:
            found.append(Term(word=word, z=z, documents=count, pieces=pieces[word]))
    return sorted(found, key=lambda term: (-term.z, term.word))[:most]


def _in_documents(cuts: Iterable[Cut]) -> Counter[str]:
    return Counter(word for cut in cuts for word in {match.casefold() for match in _WORD.findall(cut.text)})


def _pieces(cuts: Iterable[Cut]) -> dict[str, float]:
    """Mean number of tokens by word."""
    total: Counter[str] = Counter()
    times: Counter[str] = Counter()
    for cut in cuts:
        for word, count in _words(cut, _WORD):
            total[word.casefold()] += count
            times[word.casefold()] += 1
    return {word: total[word] / times[word] for word in times}


def _words(cut: Cut, pattern: str | re.Pattern[str]) -> Iterable[tuple[str, int]]:
    """(word, tokens that have a character of it)"""
    if not len(cut.spans):
        return
    starts, ends = cut.spans[:, 0], cut.spans[:, 1]
    for match in re.finditer(pattern, cut.text):
        first = int(np.searchsorted(ends, match.start(), side="right"))
        last = int(np.searchsorted(starts, match.end(), side="left"))
        yield match.group(), last - first
