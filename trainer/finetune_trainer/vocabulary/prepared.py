"""What spec.vocabulary makes of a model before a run: the extended model in the cache, and the report of it.

It is a function of the model's files, the settings and the rows that are read, so that every rank and every attempt
finds the same one, and a node makes it once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from finetune_api.base import ApiModel
from finetune_api.failures import FinetuneError, Reason
from finetune_api.vocabulary import Vocabulary
from finetune_trainer.data.cache import kept
from finetune_trainer.data.corpus import Corpus
from finetune_trainer.data.load import Datasets
from finetune_trainer.data.sample import drawn_part
from finetune_trainer.data.tokenizer import Tokenizer
from finetune_trainer.statistics.fragmentation import Cut, fragmentation
from finetune_trainer.statistics.vocabulary import Cutting, TermCut, TextCut, VocabularyRecord
from finetune_trainer.store.models import LocalModel
from finetune_trainer.transfer.diagnostics.vocabulary import cuts_of

from . import derived
from .base_rows import Pieces
from .bpe import Bpe
from .extension import FEWEST, Growing, counted

RECIPE: Final = 2
"""Raised when the same rows would give another extension, or the cache has more next to it."""
MOST_DOCUMENTS: Final = 20_000
MOST_BYTES: Final = 16 << 20
"""Of the training rows that merges are learned from."""
SAMPLE: Final = 500
"""Documents whose fragmentation is reported."""

_RECORD, _MODEL = "vocabulary.json", "model"


@dataclass(frozen=True)
class Prepared:
    local: LocalModel
    """The model that the run starts from: the base model, with more tokens unless its tokenizer stays as it is."""
    ids: tuple[int, ...]
    """Tokens whose rows of the embeddings train."""
    record: VocabularyRecord
    first: int = 0
    """The id of the first new token."""
    pieces: Pieces | None = None
    """What new tokens stand for; None where the tokenizer stays as it is."""


class _Noted(ApiModel):
    """What the cache has next to a model."""

    first: int
    pieces: tuple[tuple[int, ...], ...]
    """Of the new tokens, in their order."""
    record: VocabularyRecord

    def prepared(self, local: LocalModel) -> Prepared:
        ids = tuple(range(self.first, self.first + len(self.pieces)))
        return Prepared(local, ids, self.record, self.first, Pieces.of(self.first, self.pieces))


def prepared(settings: Vocabulary, local: LocalModel, data: Datasets, *, cache: Path, seed: int) -> Prepared:
    """`data`: tokenised by the base model's tokenizer. ModelUnsupported where it cannot be extended, InvalidSpec where
    nothing would be."""
    derived.by_token(local.path)
    if settings.existing_rows:
        return _existing(settings, local, data, seed=seed)
    bpe = Bpe.of(local.path)

    def fill(folder: Path) -> None:
        _fill(folder, settings, bpe, local, data, seed=seed)

    with kept(cache / "vocabulary" / _key(settings, local, data, seed), fill, most_bytes=None) as folder:
        noted = _Noted.model_validate_json((folder / _RECORD).read_bytes())
        return noted.prepared(replace(local, path=folder / _MODEL))


def _fill(folder: Path, settings: Vocabulary, bpe: Bpe, local: LocalModel, data: Datasets, *, seed: int) -> None:
    growing = Growing(bpe, most=settings.most)
    notes = {term: _added(growing, bpe, term) for term in dict.fromkeys(settings.terms)}
    if settings.mine:
        growing.mine(counted(bpe, _texts(data.train, Tokenizer.load(local.path), seed)))
    made = growing.made()
    if not made.merges and not made.tokens:
        raise _nothing(settings, notes)
    target = folder / _MODEL
    target.mkdir()
    derived.write(local.path, bpe, made, target)
    rows = _rows(local.path)
    record = VocabularyRecord(
        new_tokens=len(made.tokens),
        added_rows=max(0, made.first + len(made.tokens) - rows),
        trained_rows=len(made.tokens),
        terms=tuple(_terms(notes, Tokenizer.load(local.path), Tokenizer.load(target))),
        texts=tuple(_cut(data, Tokenizer.load(local.path), Tokenizer.load(target), seed)),
    )
    noted = _Noted(first=made.first, pieces=made.pieces, record=record)
    (folder / _RECORD).write_text(noted.model_dump_json(by_alias=True))


def _existing(settings: Vocabulary, local: LocalModel, data: Datasets, *, seed: int) -> Prepared:
    tokenizer = Tokenizer.load(local.path)
    terms = list(dict.fromkeys(settings.terms))
    ids = {int(id) for term in terms for text in (f"a {term}", term) for id in _own(tokenizer, text, term)}
    record = VocabularyRecord(
        trained_rows=len(ids),
        terms=tuple(_terms(dict.fromkeys(terms, ""), tokenizer, tokenizer)),
        texts=tuple(_cut(data, tokenizer, None, seed)),
    )
    return Prepared(local, tuple(sorted(ids)), record)


def _added(growing: Growing, bpe: Bpe, term: str) -> str:
    """Why the term is not one token now, in words; empty where it is."""
    forms = bpe.words_of_term(term)
    if len(forms[0]) > 1:
        return f"the tokenizer splits it before it merges: {' | '.join(forms[0])}"
    words = [form[0] for form in forms if len(form) == 1]
    if unknown := sorted({letter for word in words for letter in word if not bpe.ids(letter)}):
        return f"the tokenizer has no token for {unknown[0]}"
    return "" if all(growing.add(word) for word in words) else "vocabulary.maxNewTokens is reached"


def _nothing(settings: Vocabulary, notes: Mapping[str, str]) -> FinetuneError:
    asked = [f"{term}: {note or 'it is one token already'}" for term, note in notes.items()]
    if settings.mine:
        asked.append(f"no pair of tokens occurs {FEWEST} times in the training rows")
    return FinetuneError(
        Reason.InvalidSpec,
        f"vocabulary adds no token ({'; '.join(asked)})",
        "Remove vocabulary, list other terms, or set vocabulary.mine: true.",
    )


def _rows(folder: Path) -> int:
    return next(iter(derived.by_token(folder).values())).shape[0]


def _texts(corpus: Corpus, tokenizer: Tokenizer, seed: int) -> Iterator[str]:
    left = MOST_BYTES
    for cut in cuts_of(drawn_part(corpus, MOST_DOCUMENTS, seed), tokenizer):
        left -= len(cut.text.encode())
        if left < 0:
            return
        yield cut.text


def _terms(notes: Mapping[str, str], before: Tokenizer, after: Tokenizer) -> Iterator[TermCut]:
    for term, note in notes.items():
        counts = [len(_own(tokenizer, f"a {term}", term)) for tokenizer in (before, after)]
        yield TermCut(term=term, before=counts[0], after=counts[1], note=note)


def _own(tokenizer: Tokenizer, text: str, term: str) -> list[int]:
    """The tokens of the text that have a character of the term at its end."""
    [encoded] = tokenizer.encode([text])
    return [int(id) for id in encoded.ids[encoded.spans[:, 1] > len(text) - len(term)]]


def _cut(data: Datasets, before: Tokenizer, after: Tokenizer | None, seed: int) -> Iterator[TextCut]:
    for name, corpus in (("training rows", data.train), ("general text", data.general)):
        if corpus is None or not (cuts := cuts_of(drawn_part(corpus, SAMPLE, seed), before)):
            continue
        texts = [cut.text for cut in cuts]
        again = after and [Cut(text, each.spans) for text, each in zip(texts, after.encode(texts), strict=True)]
        yield TextCut(
            name=name,
            documents=len(cuts),
            before=Cutting.of(fragmentation(cuts)),
            after=Cutting.of(fragmentation(again)) if again else None,
        )


def _key(settings: Vocabulary, local: LocalModel, data: Datasets, seed: int) -> str:
    found = hashlib.sha256(f"{RECIPE} {seed} {settings.model_dump_json()}".encode())
    found.update(json.dumps(local.digests(), sort_keys=True).encode())
    for corpus in (data.train, data.general):
        if corpus is not None:
            found.update(corpus.tokens.tobytes())
            found.update(corpus.offsets.tobytes())
    return found.hexdigest()[:32]
