"""Documents to tokens, and what to do about those that are too long.

A whole text is tokenised at once, and a token is trained when its characters are in a trained span. Where a token would
cross into a span (`abc` + `def` may be one token `cd` in the middle), the parts are tokenised apart: that is what the
model gets to see when it is asked, with the prompt alone. Spaces in front of a span are an exception (`Answer: ` +
`yes`): the token `▁yes` is what the model knows, so it is trained as a whole. What follows the last trained token is
left out: nothing learns from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from finetune_api.failures import FinetuneError, Reason

from .corpus import Flags, Tokens
from .formats import Document
from .tokenizer import Encoded, Tokenizer

AT_ONCE = 1000
"""Documents for each call of the tokenizer: enough for its threads, few enough for memory."""
CHARACTERS = 1 << 20
"""The same for long documents: a token takes some hundred bytes while it is looked at."""


@dataclass(frozen=True)
class Piece:
    """A document in tokens; all arrays are (tokens,)."""

    tokens: Tokens
    trained: Flags
    bytes: NDArray[np.int64]
    """UTF-8 bytes of the text of each token; special tokens have none."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, where: slice) -> Piece:
        """A separate part: its first token has nothing before it, and so is not trained."""
        trained = self.trained[where].copy()
        trained[:1] = False
        return Piece(self.tokens[where], trained, self.bytes[where])

    @property
    def trained_bytes(self) -> int:
        return int(self.bytes[self.trained].sum())


@dataclass(frozen=True)
class Limits:
    sequence_length: int
    overlong: str
    """fail, drop or truncate."""


@dataclass(frozen=True)
class Outcome:
    """What became of a row."""

    document: Document
    pieces: tuple[Piece, ...]
    """What is kept of it: usually one, of a long text its windows, of a retold conversation one for each turn."""
    needed: int = 0
    """Tokens of a row that is too long; else 0."""
    dropped: bool = False
    split: bool = False
    untrained: bool = False
    """No token of it is trained."""

    def joined(self, other: Outcome) -> Outcome:
        """With what became of another document of the same row."""
        return replace(
            self,
            pieces=(*self.pieces, *other.pieces),
            needed=max(self.needed, other.needed),
            dropped=self.dropped and other.dropped,
            untrained=self.untrained and other.untrained,
        )


def encode(documents: Iterable[Document], tokenizer: Tokenizer, limits: Limits) -> Iterator[Outcome]:
    """One outcome for each document, in their order; a few documents are in memory at a time."""
    pieces = _pieces((part for document in documents for part in (document, *document.further)), tokenizer)
    for document, piece in pieces:
        outcome = _outcome(document, piece, tokenizer, limits)
        for _ in document.further:
            outcome = outcome.joined(_outcome(*next(pieces), tokenizer, limits))
        yield outcome


def tokens_of(document: Document, tokenizer: Tokenizer) -> Piece:
    """One document, however long."""
    return next(_pieces([document], tokenizer))[1]


def _outcome(document: Document, piece: Piece, tokenizer: Tokenizer, limits: Limits) -> Outcome:
    parts = [piece]
    needed, split = 0, False
    if document.splits:
        parts = list(_windows(piece, limits.sequence_length, begins=tokenizer.bos is not None))
        split = len(parts) > 1
    elif len(piece) + document.reserve > limits.sequence_length:
        needed = len(piece) + document.reserve
        parts = _cut(document, piece, tokenizer, limits) if limits.overlong == "truncate" else []
    kept = tuple(part for part in parts if part.trained.any())
    return Outcome(document, kept, needed, dropped=not parts, split=split, untrained=len(parts) > 0 and not kept)


def _pieces(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[tuple[Document, Piece]]:
    for batch in _batches(documents):
        for document, encoded in zip(batch, tokenizer.encode([d.text for d in batch]), strict=True):
            if _crossed(document, encoded):
                document = _with_spaces(document, encoded)
                if _crossed(document, encoded):
                    encoded = _apart(document, tokenizer)
            yield document, _piece(document, encoded, tokenizer)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == AT_ONCE or characters >= CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _with_spaces(document: Document, encoded: Encoded) -> Document:
    """Trained spans that start within a token start with it, if only spaces come before: `Answer: ` + `yes` is
    `Answer` `:` `▁yes`, of which the last is trained. The tokens stay those of the whole text."""
    starts, ends = encoded.spans[:, 0], encoded.spans[:, 1]

    def start_of(first: int) -> int:
        over = np.flatnonzero((starts < first) & (first < ends))
        at = int(starts[over[0]]) if len(over) == 1 else first
        return at if document.text[at:first].strip(" ") == "" else first

    trained = tuple((start_of(first), behind) for first, behind in document.trained)
    return document if trained == document.trained else replace(document, trained=trained)


def _crossed(document: Document, encoded: Encoded) -> bool:
    """Whether a token reaches over the edge of a trained span."""
    starts, ends = encoded.spans[:, 0], encoded.spans[:, 1]
    edges = {edge for span in document.trained for edge in span}
    return any(bool(np.any((starts < edge) & (edge < ends))) for edge in edges)


def _apart(document: Document, tokenizer: Tokenizer) -> Encoded:
    edges = sorted({0, len(document.text), *(edge for span in document.trained for edge in span)})
    bounds = list(pairwise(edges))
    first, *others = [document.text[start:end] for start, end in bounds]
    parts = [*tokenizer.encode([first]), *(tokenizer.encode_behind(text) for text in others)]
    return Encoded(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.spans + start for part, (start, _) in zip(parts, bounds, strict=True)]),
    )


def _piece(document: Document, encoded: Encoded, tokenizer: Tokenizer) -> Piece:
    ended = _ended(document, encoded, tokenizer) if document.ends else 0
    if ended:
        encoded = Encoded(encoded.ids[:ended], encoded.spans[:ended])
    starts, ends = encoded.spans[:, 0], encoded.spans[:, 1]
    trained = np.zeros(len(encoded.ids), np.bool_)
    for first, behind in document.trained:
        trained |= (starts >= first) & (ends <= behind) & ((starts < ends) | (starts < behind))
    alone = document.begins and tokenizer.bos is not None and encoded.ids[:1].tolist() != [tokenizer.bos]
    before = np.array([tokenizer.bos] if alone else [], np.int32)
    after = np.array([_end(tokenizer)] if document.ends and not ended else [], np.int32)
    trained = np.concatenate([np.zeros(len(before), np.bool_), trained, np.ones(len(after), np.bool_)])
    whole = Piece(
        tokens=np.concatenate([before, encoded.ids, after]),
        trained=trained,
        bytes=np.pad(_bytes(document.text, encoded, tokenizer), (len(before), len(after))),
    )
    return whole[: int(trained.nonzero()[0][-1]) + 1] if trained.any() else whole[:0]


def _ended(document: Document, encoded: Encoded, tokenizer: Tokenizer) -> int:
    """Tokens through an end-of-sequence token that the text itself ends with, but for white space; else 0."""
    ends = np.flatnonzero(encoded.ids == tokenizer.eos)
    if tokenizer.eos is None or not len(ends) or document.text[int(encoded.spans[ends[-1], 1]) :].strip():
        return 0
    return int(ends[-1]) + 1


def _end(tokenizer: Tokenizer) -> int:
    if tokenizer.eos is None:
        raise FinetuneError(
            Reason.ModelUnsupported,
            "the tokenizer names no eos_token, so the model would never learn where an answer ends",
            "Name eos_token in the model's tokenizer_config.json, or use format text.",
        )
    return tokenizer.eos


def _bytes(text: str, encoded: Encoded, tokenizer: Tokenizer) -> NDArray[np.int64]:
    """(tokens,): each token has the bytes between the end of the tokens before it and its own end, so that every byte
    is counted once, also where spans leave out spaces, and where several tokens make up one character."""
    upto = np.arange(len(text) + 1)
    if not text.isascii():
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        upto[1:] = np.cumsum(1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF))
    reached = np.maximum.accumulate(np.concatenate([np.zeros(1, np.int64), encoded.spans[:, 1]]))
    sizes = np.diff(upto[reached])
    sizes[tokenizer.control[encoded.ids]] = 0
    return sizes


def _windows(piece: Piece, length: int, *, begins: bool) -> Iterator[Piece]:
    """Parts of at most `length` tokens in which every token but the first of all is trained once: each part starts with
    one token of context, which is the begin-of-text token where the model has one, else the last token before."""
    if len(piece) <= length:
        yield piece
        return
    for start in range(0, len(piece) - 1, length - 1):
        part = piece[start : start + length]
        if begins and start:
            part = replace(part, tokens=np.concatenate([piece.tokens[:1], part.tokens[1:]]))
        yield part


def _cut(document: Document, piece: Piece, tokenizer: Tokenizer, limits: Limits) -> list[Piece]:
    """What fits: with a shorter body where the document has one, else without its end. Empty if the rest alone is too
    long."""
    if document.shortened is None:
        return [piece[: limits.sequence_length]]
    body = tokenizer.encode([document.body])[0]
    keep = len(body.ids)
    while (over := len(piece) + document.reserve - limits.sequence_length) > 0:
        keep -= over
        if keep < 1:
            return []
        document = document.shortened(document.body[: int(body.spans[keep - 1, 1])])
        piece = tokens_of(document, tokenizer)
    return [piece]
