"""Where a turn ends in what a chat template writes. Pure functions over strings.

A turn ends after the last token that the tokenizer does not split and that follows the turn's own words:

    Hello<|im_end|>\\n                        after <|im_end|>; the line break is the template's
    Hello<|eot_id|><|start_header_id|>       after <|eot_id|>: what opens the next header is not an end
    Hello </s><s>                            after </s>: what begins a text is not an end
    Hello                                    nowhere: the template ends no turn
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

_MASK = "\ufdd4"
"""In the place of tokens while a turn's words are looked for, so that `end` is not found within `<|im_end|>`."""


class End(NamedTuple):
    at: int
    """Characters of the turn, through its end token where it has one."""
    stops: bool
    """Whether it ends with a token."""


class Block(NamedTuple):
    opening: str
    """Its first token."""
    text: str
    """All of it, and white space after it."""


@dataclass(frozen=True)
class Stops:
    """The tokens of a tokenizer that may end a turn: all but the begin-of-text token, and tags in pairs such as
    `<think>` and `</think>`."""

    control: tuple[str, ...]
    """Special tokens."""
    eos: str | None = None
    bos: str | None = None
    added: tuple[str, ...] = ()
    """Tokens that the tokenizer does not split either."""

    @cached_property
    def _tokens(self) -> re.Pattern[str]:
        every = {*self.control, *self.added} - {"", self.bos if self.bos != self.eos else ""}
        tags = {token for token in every if token.startswith("</") and f"<{token[2:]}" in every} - {self.eos}
        tokens = sorted(every - tags - {f"<{tag[2:]}" for tag in tags}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")

    @cached_property
    def _tokens_and_tags(self) -> re.Pattern[str]:
        tokens = sorted({*self.control, *self.added, "<think>", "</think>"} - {""}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)))

    def without_tokens(self, text: str) -> str:
        return self._tokens.sub("", text)

    def closes(self, said: str) -> bool:
        """Whether it ends with a token, but for white space."""
        return self._last(said) >= len(said.rstrip()) > 0

    def through_end(self, said: str) -> str:
        """Without the white space after the token that ends it; all of it where no token does."""
        return said[: self._last(said)] if self.closes(said) else said

    def _last(self, said: str) -> int:
        """Characters through the last token."""
        *_, last = (0, *(match.end() for match in self._tokens.finditer(said)))
        return last

    def closed_block(self, asked: str) -> Block | None:
        """The block that ends `asked` where one is opened and closed at once, so that the model does not reason:
        `<think>\\n\\n</think>\\n\\n`, `<|channel>thought\\n<channel|>`."""
        found = [match.span() for match in self._tokens_and_tags.finditer(asked)]
        if len(found) < 2 or asked[found[-1][1] :].strip():
            return None
        opening, closing = (asked[start:end] for start, end in found[-2:])
        same = opening != closing and _name_of(opening) == _name_of(closing) != ""
        return Block(opening, asked[found[-2][0] :]) if same else None

    def end(self, said: str, words: Sequence[str], *, asked: str = "", rest: str = "") -> End:
        """Of a turn with these `words`, in what is written of it.

        `rest` is what follows `said` when no turn follows. Where `asked`, which asks for the turn, ends with it too,
        a header was cut: the token in front of `rest` opens the header.
        """
        found = [match.span() for match in self._tokens.finditer(said)]
        if len(found) == 1 and not rest and all(word in said[: found[0][0]] for word in words):
            return End(found[0][1], stops=True)  # as almost always
        masked = self._tokens.sub(lambda match: _MASK * len(match[0]), said) if found else said
        floor = max((masked.rfind(word) + len(word) for word in words if word and word in masked), default=0)
        ends = [(start, end) for start, end in found if start >= floor]
        if ends and ends[-1][1] == len(said) and rest:
            token = said[slice(*ends[-1])]
            if token != self.eos and asked.endswith(token + rest):
                ends.pop()
        if ends:
            return End(ends[-1][1], stops=True)
        return End(floor if rest and floor else len(said.rstrip()), stops=False)


def _name_of(token: str) -> str:
    """`channel` of `<|channel>` and of `<channel|>`."""
    return "".join(character for character in token if character.isalpha())


def common(one: str, other: str) -> int:
    """Characters that both begin with."""
    if other.startswith(one):
        return len(one)
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)
