"""Classification as a language model does it: the label is what the assistant answers to a question about the text.

A model without a chat template gets `text\\nLabel: label` instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from finetune_api.failures import FinetuneError, Reason

from .chat import Conversation, Rendered
from .corpus import Tokens
from .encode import tokens_of
from .formats import Document, string_of
from .json_errors import kind_of
from .read import Row
from .tokenizer import Tokenizer

MOST_LABELS = 64


@dataclass(frozen=True)
class Classification:
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    instruction: str
    answers: tuple[Tokens, ...]
    """What each label is in tokens, with the token that ends it."""
    name: str = "classification"
    keys: tuple[str, ...] = ("text", "label")

    @classmethod
    def of(cls, tokenizer: Tokenizer, labels: Sequence[str], instruction: str | None) -> Classification:
        asked = instruction or f"Classify the text. Answer with one of: {', '.join(labels)}."
        bare = cls(tokenizer, tuple(labels), asked, ())
        answers = []
        for label in labels:
            piece = tokens_of(bare._ask(Row("the labels", 1, {}), "…", label), tokenizer)
            answers.append(piece.tokens[piece.trained])
        return cls(tokenizer, tuple(labels), asked, tuple(answers))

    def document(self, row: Row) -> Document:
        label = label_of(row)
        if label not in self.labels:
            raise row.problem(
                Reason.LabelsMissing,
                f"label {label!r} is not one of {', '.join(map(repr, self.labels))}",
                "Correct the label, or list all labels in data.classification.labels.",
            )
        return self._ask(row, string_of(row, "text"), label)

    def identity(self, row: Row) -> str:
        return string_of(row, "text")

    def _ask(self, row: Row, text: str, label: str) -> Document:
        gold = self.labels.index(label)
        longest = max(map(len, self.answers), default=0)
        chat = bool(self.tokenizer.templates)
        rendered = self._chat(row, text, label) if chat else self._plain(text, label)
        return Document(
            row,
            rendered.text,
            rendered.trained,
            begins=not chat,
            ends=not chat,
            label=gold,
            reserve=longest - len(self.answers[gold]) if self.answers else 0,
            body=text,
            shortened=lambda body: self._ask(row, body, label),
        )

    def _chat(self, row: Row, text: str, label: str) -> Rendered:
        question = {"role": "user", "content": f"{self.instruction}\n\n{text}"}
        messages = [question, {"role": "assistant", "content": label}]
        return Conversation(row, messages, None, self.tokenizer.chat(), self.tokenizer.stops).render()

    def _plain(self, text: str, label: str) -> Rendered:
        asked = f"{text}\nLabel:"
        return Rendered(f"{asked} {label}", ((len(asked), len(asked) + 1 + len(label)),))


def label_of(row: Row) -> str:
    """LabelsMissing without one. Numbers and booleans count as they are written in JSON."""
    label = row.fields.get("label")
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, int):
        return str(label)
    if isinstance(label, float) and label.is_integer():  # a whole number in a column with nulls
        return str(int(label))
    if isinstance(label, float):
        raise row.problem(
            Reason.LabelsMissing, f"label {label:g} is neither a word nor an integer", "Give each class a word."
        )
    if not isinstance(label, str):
        what = f"label is {kind_of(label)}, not a word" if label is not None else "the row has no label"
        null = "Its label is null: leave the row out, or give it a label." if "label" in row.nulls else ""
        raise row.problem(Reason.LabelsMissing, what, null)
    if not label.strip():
        raise row.problem(Reason.LabelsMissing, "the label is empty")
    return label


def labels_of(rows: Iterable[Row]) -> tuple[str, ...]:
    """The distinct labels of the training rows, sorted. LabelsMissing with one, or with more than is plausible."""
    labels = sorted({label_of(row) for row in rows})
    if 2 <= len(labels) <= MOST_LABELS:
        return tuple(labels)
    raise FinetuneError(
        Reason.LabelsMissing,
        f"the training rows have {len(labels)} different label(s); classification needs 2 to {MOST_LABELS}",
        "List the labels in data.classification.labels, or choose another data.format.",
    )
