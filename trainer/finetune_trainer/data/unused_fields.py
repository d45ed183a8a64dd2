"""What of a conversation reaches no text, and so would vanish without a word.

A template may read a key or not, and where it does, it may depend on the roles around it. So each shape of
conversation (its roles and keys) is rendered once with a mark in the place of every value. A value whose mark is in
none of the texts that train or ask is unread: the row is refused by the key's name, unless data.ignoreKeys lists it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jinja2

from finetune_api.failures import FinetuneError, Reason

from .messages import REASONING, means_something
from .read import Row
from .template import ChatTemplate, Message

CONVERSATIONAL = (
    "system", "system_prompt", "system_message", "images", "videos", "audios", "tools", "functions", "tool_calls",
    "function_call", *REASONING, "documents", "chat_template_kwargs", "mask", "masks", "loss_mask", "loss_masks",
    "train_mask", "assistant_mask", "assistant_masks", "train_on_input",
)  # fmt: skip
"""Keys of a row that are a part of its conversation, or say what of it is trained."""

_OF_TURNS = ("tools", "functions", "documents", "train_detail", "loss_detail")
"""Of a turn, besides those that are marked."""

_CALLS = ("tool_calls", "function_call")
_WORDS = (*_CALLS, *REASONING)
"""Of a turn, those by which the assistant says something besides its content."""

_MOST_SHAPES = 10_000

Marked = tuple[str, int, str]
"""Mark, number of the turn (0: of the row), key."""


@dataclass
class Unread:
    """What templates leave out, by the shape of conversations."""

    _known: dict[Hashable, tuple[tuple[int, str], ...]] = field(default_factory=dict)

    def check(self, row: Row, messages: Sequence[Message], tools: Sequence[Any] | None, template: ChatTemplate) -> None:
        """DataUnreadable for the first value that the template does not write."""
        shape = (id(template), tools is not None, *map(_shape, messages))
        if shape not in self._known:
            if len(self._known) >= _MOST_SHAPES:
                self._known.clear()
            self._known[shape] = tuple(unread(messages, tools, template))
        for number, key in self._known[shape]:
            raise _vanishes(row, messages, number, key)


def unread(
    messages: Sequence[Message], tools: Sequence[Any] | None, template: ChatTemplate
) -> Iterable[tuple[int, str]]:
    """(turn or 0, key) of what the template writes nowhere. Nothing where it refuses marks: it has the last word."""
    marks: list[Marked] = []
    marked = [_marked(number, message, marks) for number, message in enumerate(messages, start=1)]
    marked_tools = _named(tools, 0, "tools", marks) if tools else None
    try:
        texts = [template.render(marked, tools=marked_tools).text]
        if any(mark not in texts[0] for mark, _, _ in marks):
            for turn, message in enumerate(messages):
                if message["role"] == "assistant" and turn:
                    texts.append(template.render(marked[:turn], tools=marked_tools, prompt=True).text)
                    texts.append(template.render(marked[: turn + 1], tools=marked_tools).text)
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError):
        return []
    lost = [(number, key) for mark, number, key in marks if not any(mark in text for text in texts)]
    return [*lost, *((n, key) for n, m in enumerate(messages, start=1) for key in _OF_TURNS if m.get(key))]


def _shape(message: Message) -> Hashable:
    if len(message) == 2:
        return str(message["role"])
    kinds = (type(call.get("function", call).get("arguments")) for call in message.get("tool_calls") or ())
    return (message["role"], *(key for key, value in sorted(message.items()) if value), *kinds)


def _mark(marks: list[Marked], number: int, key: str) -> str:
    """Letters and digits alone, which no template changes."""
    mark = f"zq{len(marks)}qz"
    marks.append((mark, number, key))
    return mark


def _marked(number: int, message: Message, marks: list[Marked]) -> Message:
    marked = dict(message)
    if message.get("content") and not (message["role"] == "assistant" and message.get("weight") != 0):
        marked["content"] = _mark(marks, number, "content")
    for key in REASONING:
        if message.get(key):
            marked[key] = _mark(marks, number, key)
            break  # the others are names of the same
    if message.get("tool_calls"):
        marked["tool_calls"] = _named(message["tool_calls"], number, "tool_calls", marks)
    return marked


def _named(tools: Sequence[Any], number: int, key: str, marks: list[Marked]) -> list[Any]:
    """Tools or calls with marks for names, and for the first argument of each call."""
    named = []
    for tool in tools:
        function = dict(inner) if isinstance(inner := tool.get("function", tool), dict) else {}
        if function.get("name"):
            function["name"] = _mark(marks, number, key)
        if isinstance(arguments := function.get("arguments"), dict) and arguments:
            first = next(iter(arguments))
            function["arguments"] = {**arguments, first: _mark(marks, number, key)}
        named.append({**tool, "function": function} if "function" in tool else function)
    return named


def _vanishes(row: Row, messages: Sequence[Message], number: int, key: str) -> FinetuneError:
    where, role = "", ""
    if number:
        role = str(messages[number - 1]["role"])
        where = f" of turn {number} (role {role!r})"
    if key == "content" and number == 1 and role == "system" and row.fields.get("system"):
        key, where = "system", ""
    if key == "tools" and not number and row.fields.get("functions"):
        key = "functions"
    if key == "tool_calls" and "tool_calls" not in (_given(row, number) or {"tool_calls"}):
        key = "function_call"
    what = f"the model's chat template does not write {key}{where}"
    if key == "content":
        return row.problem(Reason.DataUnreadable, what, f"Use roles that the template writes; it leaves out {role!r}.")
    if key in _CALLS and not any(map(_answers, messages)):
        return row.problem(
            Reason.DataUnreadable,
            f"{what}; and without its {key}, the assistant says nothing to learn from in this row",
            f"Use a model whose chat template writes {key}, or leave such rows out of the file.",
        )
    return row.problem(
        Reason.DataUnreadable,
        f"{what}, so the model would never see it",
        f"Use a model whose chat template writes it, or leave it out by data.ignoreKeys: [{key}].",
    )


def _given(row: Row, number: int) -> Any:
    """The turn as the row has it."""
    messages = row.fields.get("messages")
    return messages[number - 1] if isinstance(messages, list) and number <= len(messages) else None


def without(row: Row, wanted: Iterable[str], ignored: Sequence[str], *, conversation: bool) -> Row:
    """The row with its `wanted` keys, less those that are ignored. DataUnreadable for a conversational key that is
    neither: it would not be read."""
    keys = set(wanted)
    fields = {key: value for key, value in row.fields.items() if key in keys and key not in ignored}
    if len(fields) == len(row.fields):
        return row
    dropped = [key for key in ignored if means_something(row.fields.get(key))]
    for key in CONVERSATIONAL if conversation else ():
        if key not in keys and key not in ignored and means_something(value := row.fields.get(key)):
            if key == "mask" and value == "User":
                continue  # NeMo's way to say that the assistant's turns are trained, and no others
            raise row.problem(
                Reason.DataUnreadable,
                f"{key} is not read by rows of this format, so the model would never see it",
                f"Put it into the conversation, or leave it out by data.ignoreKeys: [{key}].",
            )
    return replace(row, fields=fields, ignored=tuple(dropped))


def without_in_turns(row: Row, ignored: Sequence[str]) -> Row:
    """The row whose messages lack the keys that are ignored, and the assistant's turns of which nothing is left then.
    NothingToTrain where these were all of them."""
    messages = row.fields.get("messages")
    if not ignored or not isinstance(messages, list):
        return row
    turns = [turn for turn in messages if isinstance(turn, dict)]
    dropped = [key for key in ignored if any(means_something(turn.get(key)) for turn in turns)]
    if not dropped:
        return row
    left = [
        {key: value for key, value in turn.items() if key not in dropped} if isinstance(turn, dict) else turn
        for turn in messages
    ]
    kept = [turn for turn, given in zip(left, messages, strict=True) if not _emptied(turn, given)]
    if len(kept) < len(left) and not any(isinstance(t, dict) and t.get("role") == "assistant" for t in kept):
        gone = " and ".join(key for key in dropped if key in _WORDS)
        raise row.problem(
            Reason.NothingToTrain,
            f"without {gone}, which data.ignoreKeys leaves out, the assistant says nothing in this row",
            f"Use a model whose chat template writes {gone}, or leave such rows out of the file.",
        )
    every = (*row.ignored, *(key for key in dropped if key not in row.ignored))
    return replace(row, fields={**row.fields, "messages": kept}, ignored=every)


def _emptied(turn: Any, given: Any) -> bool:
    """Whether the assistant's turn said something by its ignored keys alone."""
    if not isinstance(turn, dict) or turn.get("role") != "assistant" or _says(turn.get("content")):
        return False
    if any(means_something(turn.get(key)) for key in _CALLS):
        return False
    return any(means_something(given.get(key)) for key in _WORDS if key not in turn)


def _answers(message: Message) -> bool:
    """Whether there is an answer to train, whatever the turn calls."""
    return message["role"] == "assistant" and message.get("weight") != 0 and _says(message.get("content"))


def _says(content: Any) -> bool:
    if isinstance(content, str):
        return bool(content.strip())
    if isinstance(content, list):
        return any(_says(part.get("text", part) if isinstance(part, dict) and part else part) for part in content)
    return means_something(content)
