"""The merges of a tokenizer.json, and how they cut a word.

Byte-level BPE (GPT-2, Llama 3, Qwen) spells bytes by 256 letters, of which Ġ is the space. SentencePiece BPE (Llama 2,
Gemma, Mistral) spells characters, of which ▁ is the space, and bytes where it lacks one. Both merge pairs of
neighbours, the pair that comes first in the list first. Unigram and WordPiece tokenizers have no merges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.tokenizer import Tokenizer

from .mining import Pair

_LAST = 1 << 62
"""The rank of a pair that is never merged."""


@dataclass(frozen=True)
class Bpe:
    content: Mapping[str, Any]
    """tokenizer.json"""
    backend: Backend

    @classmethod
    def of(cls, folder: Path) -> Bpe:
        """ModelUnsupported where the tokenizer in `folder` has no merges, or merges of another kind."""
        backend = Tokenizer.load(folder).backend
        content = json.loads((folder / "tokenizer.json").read_bytes())
        if fault := _fault(content.get("model") or {}):
            raise FinetuneError(
                Reason.ModelUnsupported,
                f"vocabulary appends merges to the tokenizer's, and the one of this model {fault}",
                "Use vocabulary.existingRows: true with terms, which leaves the tokenizer unchanged, or a model with a "
                "BPE tokenizer.",
            )
        return cls(content, backend)

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """Tokens of the merges to their ids, without added ones."""
        return dict(self.content["model"]["vocab"])

    @cached_property
    def added(self) -> Mapping[str, int]:
        """Special and other added tokens, which are found before anything is merged."""
        return {token.content: id for id, token in self.backend.get_added_tokens_decoder().items()}

    @cached_property
    def merges(self) -> tuple[Pair, ...]:
        """Files have a pair as `"a b"` or as `["a", "b"]`."""
        return tuple(_pair(merge) for merge in self.content["model"]["merges"])

    @cached_property
    def ranks(self) -> dict[Pair, int]:
        return {pair: rank for rank, pair in enumerate(self.merges)}

    @property
    def next_id(self) -> int:
        """After all that are in use."""
        return max(*self.vocabulary.values(), *self.added.values(), -1) + 1

    @property
    def spells_bytes(self) -> bool:
        """Whether a character that the vocabulary lacks is spelled by tokens such as <0xC3>."""
        return bool(self.content["model"].get("byte_fallback"))

    @property
    def whole_words_first(self) -> bool:
        """Whether a word that is a token is not built by merges at all (Llama 3)."""
        return bool(self.content["model"].get("ignore_merges"))

    @cached_property
    def joins_digits(self) -> bool:
        """Whether there is a token of several digits. Else each digit has its own, and models count on that."""
        return any(re.search(r"\d\d", token) for token in self.vocabulary)

    @cached_property
    def _space(self) -> str:
        """The letter that spells a space."""
        parts = json.dumps([self.content.get("pre_tokenizer"), self.content.get("normalizer")])
        return "Ġ" if "ByteLevel" in parts else "▁"

    def words(self, text: str) -> list[str]:
        """What is merged by itself, in the letters of the vocabulary: `["The", "Ġend"]`. Where the tokenizer splits at
        no spaces we do, so that no token has one inside."""
        if self.backend.normalizer is not None:
            text = self.backend.normalizer.normalize_str(text)
        words = [text]
        if self.backend.pre_tokenizer is not None:
            words = [word for word, _ in self.backend.pre_tokenizer.pre_tokenize_str(text)]
        space = self._space
        return [part for word in words for part in re.findall(f"{space}*[^{space}]+|{space}+", word)]

    def words_of_term(self, term: str) -> list[list[str]]:
        """The words of a term after another word, and of a term that begins a text, where that is another one."""
        first = self.words("a")[-1]
        after = self.words(f"a {term}")
        if after[0].startswith(first):
            after[0] = after[0][len(first) :]
        forms = [[word for word in after if word], self.words(term)]
        return forms if forms[0] != forms[1] else forms[:1]

    def cut(self, word: str) -> list[str]:
        """The word's tokens. A character that the vocabulary lacks stays as it is, and is part of no merge."""
        found: list[str] = []
        for known, part in groupby(word, key=self.vocabulary.__contains__):
            run = "".join(part)
            found += [token.value for token in self.backend.model.tokenize(run)] if known else list(run)
        return found

    def ids(self, token: str) -> tuple[int, ...]:
        """Of a token; of a character that the vocabulary lacks those of its bytes. Empty where nothing spells it."""
        if token in self.vocabulary:
            return (self.vocabulary[token],)
        spelled = [f"<0x{byte:02X}>" for byte in token.encode()]
        return tuple(self.vocabulary[each] for each in spelled) if self.spells_bytes else ()


def merged(tokens: list[str], ranks: Mapping[Pair, int]) -> list[str]:
    """The tokens after all merges, one at a time: the pair of the lowest rank, the leftmost of equal ones."""
    while len(tokens) > 1:
        rank, index = min((ranks.get(pair, _LAST), index) for index, pair in enumerate(pairwise(tokens)))
        if rank == _LAST:
            break
        tokens[index : index + 2] = [tokens[index] + tokens[index + 1]]
    return tokens


def _fault(model: Mapping[str, Any]) -> str:
    """Why its merges cannot be continued, in words; empty where they can."""
    kind = model.get("type") or ("BPE" if "merges" in model else "unknown")
    if kind != "BPE":
        return f"is a {kind} tokenizer, which has none"
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            return f"marks pieces by a {name}, {model[name]!r}, which is not supported"
    return "drops merges at random" if model.get("dropout") else ""


def _pair(merge: Any) -> Pair:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second
