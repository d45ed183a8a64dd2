"""What became of the tokenizer, and how it cut the training rows before and after. The package `vocabulary` counts, log
and report show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from finetune_api.base import ApiModel

if TYPE_CHECKING:  # it needs numpy, and `finetune plan` reads records without
    from .fragmentation import Fragmentation

_TOLD = 12
"""Terms that a line names."""


class Cutting(ApiModel):
    """How a tokenizer cuts a text."""

    tokens: int
    tokens_per_byte: float
    fertility: float | None = Field(None, description="Tokens for each word; None where words are not separated.")
    fragmented: float | None = Field(None, description="Share of words in four pieces or more.")

    @classmethod
    def of(cls, found: Fragmentation) -> Cutting:
        return cls(
            tokens=found.tokens,
            tokens_per_byte=found.tokens_per_byte,
            fertility=found.fertility,
            fragmented=found.fragmented,
        )


class TextCut(ApiModel):
    """A sample of one data set."""

    name: str
    documents: int
    before: Cutting
    after: Cutting | None = Field(None, description="None where the tokenizer stays as it is.")

    def line(self) -> str:
        before, after = self.before, self.after or self.before
        parts = [_change("tokens per byte", before.tokens_per_byte, after.tokens_per_byte, "{:.3f}")]
        if before.fertility is not None and after.fertility is not None:
            parts.append(_change("tokens per word", before.fertility, after.fertility, "{:.2f}"))
        if before.fragmented is not None and after.fragmented is not None:
            shares = 100 * before.fragmented, 100 * after.fragmented
            parts.append(_change("words in 4 or more pieces", *shares, "{:.1f} %"))
        return f"{self.name} ({self.documents:,} documents): {', '.join(parts)}"


class TermCut(ApiModel):
    term: str
    before: int = Field(description="Tokens, after another word.")
    after: int
    note: str = Field("", description="Why it is not one token, in words.")


class VocabularyRecord(ApiModel):
    """Of spec.vocabulary, as it ran."""

    new_tokens: int = Field(0, description="Tokens that were added.")
    added_rows: int = Field(0, description="Rows that the embeddings got for them; the others were spare.")
    trained_rows: int = Field(description="Rows of the embeddings that train.")
    terms: tuple[TermCut, ...] = ()
    texts: tuple[TextCut, ...] = ()

    def lines(self) -> Iterator[str]:
        """Sentences for the log, and for report and model card."""
        if self.new_tokens:
            spare = self.new_tokens - self.added_rows
            where = f"{spare:,} in spare rows of the embeddings, {self.added_rows:,} in new ones"
            yield f"{self.new_tokens:,} tokens added, {where}; {self.trained_rows:,} rows train"
        else:
            yield f"tokenizer unchanged; {self.trained_rows:,} rows of the embeddings train"
        yield from (text.line() for text in self.texts)
        if told := [f"{each.term} {each.before} to {each.after}" for each in self.terms[:_TOLD]]:
            more = f" and {len(self.terms) - _TOLD:,} more" if len(self.terms) > _TOLD else ""
            yield f"tokens of terms: {', '.join(told)}{more}"
        yield from (f"{each.term} is not one token: {each.note}" for each in self.terms if each.note)


def _change(what: str, before: float, after: float, form: str) -> str:
    first, second = form.format(before), form.format(after)
    return f"{what} {first}" if first == second else f"{what} {first} to {second}"
