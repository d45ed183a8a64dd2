"""Rows of one format to documents: a text, the spans of it that are trained, and what stands around it.

    chat            {messages, tools?}     the assistant's turns, but those of `weight` 0, each through its end-of-turn
                                           token; several documents where the template retells earlier turns
    completion      {prompt, completion}   the completion and the end-of-sequence token
    text            {text}                 everything, and the end-of-sequence token unless data.appendEos is false
    classification  {text, label}          the label, as the assistant's answer to a question about the text

A new format is a class with `document`, and a line in `FORMATS` and in `detect`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from finetune_api.failures import Reason

from .chat import Conversation, Span
from .json_errors import kind_of
from .messages import tools_of, turns_of
from .read import Row
from .spelling import ALPACA, spelling_of
from .tokenizer import Tokenizer
from .unused_fields import Unread


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
    closed: bool = False
    """Whether its text ends with an end-of-sequence token that the chat template did not write."""
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
    unread: Unread = field(default_factory=Unread, compare=False)

    def document(self, row: Row) -> Document:
        messages, tools = turns_of(row), tools_of(row)
        template = self.tokenizer.chat(tools)
        self.unread.check(row, messages, tools, template)
        chat = Conversation(row, messages, tools, template, self.tokenizer.stops)
        first, *others = (Document(row, r.text, r.trained, closed=r.closed) for r in chat.renderings())
        return replace(first, further=tuple(others)) if others else first

    def identity(self, row: Row) -> str:
        """Contents, and what tools there are and how they are called; not how a row spells them."""
        said = [part for message in turns_of(row) for part in _identity(message)]
        tools = tools_of(row)
        return " ".join([*said, json.dumps(tools, sort_keys=True)] if tools else said)


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
    append_eos: bool = True
    """After a complete text; never within one that is cut into rows or windows."""
    name: str = "text"
    keys: tuple[str, ...] = ("text",)

    def document(self, row: Row) -> Document:
        text = string_of(row, "text")
        ends = self.append_eos and self.tokenizer.eos is not None and not row.continues and bool(text.strip())
        return Document(row, text, ((0, len(text)),), begins=True, ends=ends, splits=True)

    def identity(self, row: Row) -> str:
        return string_of(row, "text")


FORMATS: dict[str, Callable[[Tokenizer], Format]] = {"chat": Chat, "completion": Completion, "text": Text}
"""Those that need nothing but a tokenizer; classification needs its labels too."""


TELLING = ("messages", "conversations", "prompt", "completion", "instruction", "output", "text", "label")
"""Keys by which a format is recognized."""


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
    nulls = [key for key in row.nulls if key in TELLING]
    what = f", and {' and '.join(nulls)} {'is' if len(nulls) == 1 else 'are'} null in it" if nulls else ""
    raise row.problem(
        Reason.DataUnreadable,
        f"keys {', '.join(sorted(map(str, keys))) or '(none)'} fit no format{what}",
        "Use {messages}, {prompt, completion}, {text} or {text, label}; or ShareGPT's or Alpaca's keys.",
    )


def _identity(message: dict[str, Any]) -> Iterator[str]:
    if content := message.get("content"):
        yield str(content)
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        yield json.dumps([function["name"], function.get("arguments")], sort_keys=True, default=str)


def string_of(row: Row, key: str) -> str:
    value = row.fields.get(key)
    if isinstance(value, str):
        return value
    if key in row.nulls or (key in row.fields and value is None):
        raise row.problem(
            Reason.DataUnreadable, f"{key} is null, not a string", f"Leave out rows without a {key}, or give it a text."
        )
    if isinstance(value, bytes):
        raise row.problem(
            Reason.DataUnreadable, f"{key} is binary data, not a string", "Write the column as strings (UTF-8)."
        )
    if key in row.fields:
        hint = f"Write {key} as a string." if not isinstance(value, dict | list) else ""
        raise row.problem(Reason.DataUnreadable, f"{key} is {kind_of(value)}, not a string", hint)
    raise row.problem(Reason.DataUnreadable, f"{key} is missing", "All rows of a data set have one format.")
