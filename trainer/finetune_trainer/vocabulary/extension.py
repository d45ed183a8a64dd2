"""Continued BPE: merges that are appended to a tokenizer's, so that words which it cuts into pieces become one token.

Appended merges have the lowest priority: a text in which none of them applies is encoded as before, and every text is
decoded as before, since a token's text is that of its two parts. `add_tokens` promises neither: it looks for its words
before anything is merged, also inside of other words, and may eat the spaces around them.
"""

from __future__ import annotations

import json
from collections import ChainMap, Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .bpe import Bpe, merged
from .mining import Pair, learned

FEWEST = 5
"""Occurrences of a pair in the training rows that make it a token."""
LONGEST = 48
"""Letters of a word that merges are learned from."""


@dataclass(frozen=True)
class Extension:
    """What is appended. The new tokens have the ids from `first` on, in their order."""

    first: int
    tokens: tuple[str, ...] = ()
    pieces: tuple[tuple[int, ...], ...] = ()
    """Ids of the old tokens that each new one replaces."""
    merges: tuple[Pair, ...] = ()

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(range(self.first, self.first + len(self.tokens)))

    def content(self, bpe: Bpe) -> dict[str, Any]:
        """tokenizer.json with it."""
        model = dict(bpe.content["model"])
        # Added tokens get their ids by the size of the vocabulary, unless they are in it.
        vocabulary = {**bpe.vocabulary, **bpe.added, **dict(zip(self.tokens, self.ids, strict=True))}
        model["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
        model["merges"] = [[*pair] for pair in (*bpe.merges, *self.merges)]
        return {**bpe.content, "model": model}

    def encoded(self, bpe: Bpe) -> bytes:
        return json.dumps(self.content(bpe), ensure_ascii=False).encode()


class Growing:
    """An extension in the making."""

    def __init__(self, bpe: Bpe, *, most: int) -> None:
        self._bpe = bpe
        self._most = most
        self._pieces: dict[str, tuple[int, ...]] = {}
        self._merges: list[Pair] = []
        self._ranks: dict[Pair, int] = {}

    @property
    def left(self) -> int:
        """Tokens that may still be added."""
        return self._most - len(self._pieces)

    def made(self) -> Extension:
        return Extension(self._bpe.next_id, tuple(self._pieces), tuple(self._pieces.values()), tuple(self._merges))

    def cut(self, word: str) -> list[str]:
        """The word's tokens with what is added so far."""
        if self._bpe.whole_words_first and word in self._pieces:
            return [word]
        # Old merges too: where a new one makes a token that was there before, they may apply to it.
        return merged(self._bpe.cut(word), ChainMap(self._ranks, self._bpe.ranks))

    def add(self, word: str) -> bool:
        """The word becomes one token. False where there are too few tokens left, or it has a character that no token
        spells: then nothing is added."""
        before = dict(self._pieces), list(self._merges), dict(self._ranks)
        for letter in dict.fromkeys(word):
            self._add_letter(letter)
        tokens = self.cut(word)
        while len(tokens) > 1 and self.left >= 0 and self._known(tokens[0]) and self._known(tokens[1]):
            self._append((tokens[0], tokens[1]))
            tokens = self.cut(word)
        if len(tokens) == 1 and self.left >= 0 and self._known(tokens[0]):
            return True
        self._pieces, self._merges, self._ranks = before
        return False

    def mine(self, words: Mapping[str, int]) -> None:
        """Letters and pairs that occur `FEWEST` times or more become tokens, until none is left. words: the word, and
        how often it occurs."""
        letters: Counter[str] = Counter()
        for word, count in words.items():
            for letter in word:
                letters[letter] += count
        for letter, count in sorted(letters.items(), key=lambda item: (-item[1], item[0])):
            if count >= FEWEST and self.left > 0:
                self._add_letter(letter)
        cut = [(self.cut(word), count) for word, count in words.items()]
        for pair in learned(cut, most=self.left, fewest=FEWEST, allowed=self._allowed):
            self._append(pair)

    def _known(self, token: str) -> bool:
        return token in self._pieces or token in self._bpe.vocabulary

    def _allowed(self, pair: Pair) -> bool:
        """For a mined merge: it makes a new token, and joins no digits where each is to stay alone."""
        left, right = pair
        if self._known(left + right) or not (self._known(left) and self._known(right)):
            return False
        return self._bpe.joins_digits or not (left[-1].isdigit() and right[0].isdigit())

    def _append(self, pair: Pair) -> None:
        self._ranks[pair] = len(self._bpe.merges) + len(self._merges)
        self._merges.append(pair)
        token = "".join(pair)
        if not self._known(token):
            self._pieces[token] = tuple(id for part in pair for id in self._ids(part))

    def _add_letter(self, letter: str) -> None:
        """A character that the tokenizer spells in bytes."""
        if not self._known(letter) and (ids := self._bpe.ids(letter)):
            self._pieces[letter] = ids

    def _ids(self, token: str) -> tuple[int, ...]:
        """Of the old tokens that it stands for."""
        return self._pieces.get(token) or self._bpe.ids(token)


def counted(bpe: Bpe, texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs. Text without spaces is cut into parts: mining takes time by the square of a word."""
    return Counter(
        word[start : start + LONGEST]
        for text in texts
        for word in bpe.words(text)
        for start in range(0, len(word), LONGEST)
    )
