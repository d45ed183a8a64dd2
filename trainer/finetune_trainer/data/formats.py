"""Rows of one format to documents: a text, the spans of it that are trained, and what stands around it.

    chat            {messages, tools?}     the assistant's turns, but those of `weight` 0, each through its end-of-turn
                                           token; several documents where the template retells earlier turns
    completion      {prompt, completion}   the completion and the end-of-sequence token
    text            {text}                 everything; no end is added, since where a passage stops teaches nothing
    classification  {text, label}          the label, as the assistant's answer to a question about the text

A new format is a class with `document`, and a line in `FORMATS` and in `detect`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from finetune_api.failures import FinetuneError, Reason

from .chat import Conversation, Span
from .read import Row, kind_of
from .spelling import ALPACA, spelling_of
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Document:
    row: Row
    text: str
    trained: tuple[Span, ...]
    """Spans of characters."""
    begins: bool = False
    """Whether the model's begin-of-text token goes before it; chat templates write their own."""
    ends: bool = False
    """Whether a trained end-of-sequence token comes after it."""
    splits: bool = False
    """Whether it may be cut into windows when it is too long."""
    label: int | None = None
    reserve: int = 0
    """Tokens to leave free, so that the longest label's answer fits as well."""
    body: str = ""
    """The part that may be shortened when the document is too long; empty: the end is cut off."""
    shortened: Callable[[str], Document] | None = field(default=None, compare=False)
    """The same document with another body."""
    further: tuple[Document, ...] = ()
    """Of the same row."""


class Format(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def keys(self) -> tuple[str, ...]:
        """Of a row, those that it looks at."""

    def document(self, row: Row) -> Document:
        """FinetuneError that names the row when it is not of this format, or has nothing to learn from."""

    def identity(self, row: Row) -> str:
        """What makes two rows the same example."""


@dataclass(frozen=True)
class Chat:
    tokenizer: Tokenizer
    name: str = "chat"
    keys: tuple[str, ...] = ("messages", "tools")

    def document(self, row: Row) -> Document:
        if self.tokenizer.chat is None:
            raise FinetuneError(
                Reason.ModelUnsupported,
                "data.format chat needs a model with a chat template, and this one has none",
                "Use an instruction-tuned model, or format completion.",
            )
        messages = _messages(row)
        tools = row.fields.get("tools")
        if tools is not None and not isinstance(tools, list):
            raise row.problem(Reason.DataUnreadable, "tools is not a list")
        chat = Conversation(row, messages, tools or None, self.tokenizer.chat, self.tokenizer.control_texts)
        first, *others = chat.renderings()
        return Document(row, *first, further=tuple(Document(row, *other) for other in others))

    def identity(self, row: Row) -> str:
        return " ".join(str(message.get("content")) for message in _messages(row))


@dataclass(frozen=True)
class Completion:
    tokenizer: Tokenizer
    name: str = "completion"
    keys: tuple[str, ...] = ("prompt", "completion")

    def document(self, row: Row) -> Document:
        prompt, completion = string_of(row, "prompt"), string_of(row, "completion")
        text = prompt + completion
        return Document(row, text, ((len(prompt), len(text)),), begins=True, ends=True)

    def identity(self, row: Row) -> str:
        return f"{row.fields.get('prompt')} {row.fields.get('completion')}"


@dataclass(frozen=True)
class Text:
    tokenizer: Tokenizer
    name: str = "text"
    keys: tuple[str, ...] = ("text",)

    def document(self, row: Row) -> Document:
        text = string_of(row, "text")
        return Document(row, text, ((0, len(text)),), begins=True, splits=True)

    def identity(self, row: Row) -> str:
        return string_of(row, "text")


FORMATS: dict[str, Callable[[Tokenizer], Format]] = {"chat": Chat, "completion": Completion, "text": Text}
"""Those that need nothing but a tokenizer; classification needs its labels too."""


TELLING = ("messages", "conversations", "prompt", "completion", "instruction", "output", "text", "label")
"""Keys by which a format is told."""


def detect(row: Row, *, labelled: bool = True) -> str:
    """The format of a row by its keys; DataUnreadable if it is none. With `labelled` false, a label is overlooked."""
    keys = row.fields.keys()
    spelling = spelling_of(row)
    if spelling and not (spelling is ALPACA and "text" in keys):  # written out: nobody asks for turns
        return "chat"
    if {"prompt", "completion"} <= keys:
        return "completion"
    if labelled and {"text", "label"} <= keys:
        return "classification"
    if "text" in keys:
        return "text"
    raise row.problem(
        Reason.DataUnreadable,
        f"keys {', '.join(sorted(map(str, keys))) or '(none)'} fit no format",
        "Use {messages}, {prompt, completion}, {text} or {text, label}; or ShareGPT's or Alpaca's keys.",
    )


def string_of(row: Row, key: str) -> str:
    value = row.fields.get(key)
    if isinstance(value, str):
        return value
    if key in row.fields:
        raise row.problem(Reason.DataUnreadable, f"{key} is {kind_of(value)}, not a string")
    raise row.problem(Reason.DataUnreadable, f"{key} is missing", "All rows of a data set have one format.")


def _messages(row: Row) -> Sequence[dict[str, Any]]:
    """With contents that are lists of text parts as texts: many templates would write the list itself."""
    messages = row.fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise row.problem(Reason.DataUnreadable, "messages is missing or is not a list of turns")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise row.problem(Reason.DataUnreadable, f"turn {number} is not an object with a role and a content")
        if not isinstance(message.get("content"), str | list) and not message.get("tool_calls"):
            raise row.problem(Reason.DataUnreadable, f"turn {number} has no content")
        if message.get("weight") not in (None, 0, 1):
            raise row.problem(
                Reason.DataUnreadable,
                f"turn {number} has weight {message['weight']}, and an answer is trained (1) or not (0)",
                "Write 0 or 1; how often whole sources are seen is data.train[].weight.",
            )
    return [
        {**message, "content": "".join(_texts(row, number, message["content"]))}
        if isinstance(message.get("content"), list)
        else message
        for number, message in enumerate(messages, start=1)
    ]


def _texts(row: Row, turn: int, parts: list[Any]) -> Iterator[str]:
    """Of `[{"type": "text", "text": …}, …]`."""
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type", "no known type") if isinstance(part, dict) else kind_of(part)
            raise row.problem(
                Reason.DataUnreadable,
                f"turn {turn} has content of type {kind}, and the model reads text alone",
                "Keep text parts alone.",
            )
        yield text
