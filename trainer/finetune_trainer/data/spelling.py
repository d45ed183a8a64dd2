"""Conversations as other tools write them, converted to messages; each source of a manifest may have its own.

messages     {messages, system?, tools?}                  what a server takes; `functions` is the older name of tools
ShareGPT     {conversations, system?, tools?}             turns {from, value}, or messages under that name; speakers in
                                                          capitals or not
Alpaca       {instruction, input?, output, …}             the input on a line of its own after the instruction; system,
                                                          and pairs of earlier turns as history
             {prompt, completion}                         both as messages: only the completion's answers are trained

`tools` may be JSON in a string: tables have no other way to keep tools of different parameters. Empty ones are absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from finetune_api.failures import Reason

from .json_errors import kind_of, parsed
from .messages import means_something
from .read import Row

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "observation": "tool",
    "tool": "tool",
    "prompter": "user",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "gpt4": "assistant",
    "gpt_4": "assistant",
    "function": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
_CALLING = ("function_call", "tool_call", "tool_calls")


@dataclass(frozen=True)
class Spelling:
    keys: tuple[str, ...]
    """Of a row, those that it looks at."""
    told: Callable[[Row], Row]
    """The row with `messages`; DataUnreadable where they cannot be determined."""


def spelling_of(row: Row) -> Spelling | None:
    """By the keys of a source's first row; None: it is not a conversation."""
    fields = row.fields
    if "messages" in fields:
        return MESSAGES
    if "conversations" in fields:
        return SHAREGPT
    if {"instruction", "output"} <= fields.keys():
        return ALPACA
    if isinstance(fields.get("prompt"), list) and "completion" in fields:
        return ANSWERED
    return None


def _messages(row: Row) -> Row:
    """A system prompt outside the messages is their first turn."""
    if row.fields.keys() == {"messages"}:
        return row
    messages, system = row.fields.get("messages"), _system(row)
    if not system or not isinstance(messages, list):
        return _with(row, row.fields)
    return _with(row, row.fields, _with_system(row, system, messages))


def _with_system(row: Row, system: list[dict[str, Any]], turns: list[Any]) -> list[Any]:
    """DataUnreadable where the turns have another system prompt of their own."""
    own = next((turn for turn in turns if isinstance(turn, dict) and turn.get("role") == "system"), None)
    if own is None:
        return [*system, *turns]
    if str(own.get("content")).strip() == system[0]["content"].strip():
        return turns
    raise row.problem(
        Reason.DataUnreadable,
        "the row has a system prompt in its turns, and another one under system",
        "Keep one of them, or set data.ignoreKeys: [system].",
    )


def _sharegpt(row: Row) -> Row:
    turns = row.fields.get("conversations")
    if not isinstance(turns, list):
        raise row.problem(Reason.DataUnreadable, f"conversations is {kind_of(turns)}, not a list of turns")
    told = [_turn(row, number, turn) for number, turn in enumerate(turns, start=1)]
    return _with(row, row.fields, _with_system(row, system, told) if (system := _system(row)) else told)


def _turn(row: Row, number: int, turn: Any) -> dict[str, Any]:
    if not isinstance(turn, dict) or "from" not in turn:
        return turn  # a message, or nothing; who reads messages says which
    words = {key: value for key, value in turn.items() if key not in ("from", "value")}
    said, value = turn["from"], turn.get("value")
    if not isinstance(said, str):
        raise row.problem(Reason.DataUnreadable, f"turn {number} is from {kind_of(said)}, not from a speaker")
    speaker = said.strip().lower().replace("-", "_")
    if speaker in _CALLING:
        return {**words, "role": "assistant", "tool_calls": _calls(row, number, value)}
    if speaker not in _ROLES:
        raise row.problem(
            Reason.DataUnreadable,
            f"turn {number} is from {said!r}, which is none of {', '.join((*_ROLES, *_CALLING))}",
            "Rename it, or use {messages} with roles that the model's chat template knows.",
        )
    return {**words, "role": _ROLES[speaker], "content": value}


def _calls(row: Row, number: int, value: Any) -> list[dict[str, Any]]:
    """Of `{"name": …, "arguments": …}` in a string, or of a list of them."""
    calls = parsed(value, row, f"turn {number}", or_text=True) if isinstance(value, str) else value
    calls = calls if isinstance(calls, list) else [calls]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise row.problem(
            Reason.DataUnreadable, f"turn {number} is a function_call without the JSON of a name and arguments"
        )
    return [{"type": "function", "function": call} for call in calls]


def _alpaca(row: Row) -> Row:
    fields = row.fields
    parts = [fields.get("instruction"), fields.get("input") or "", fields.get("output")]
    if not all(isinstance(part, str) for part in parts):
        raise row.problem(Reason.DataUnreadable, "instruction, input and output are not strings, all of them")
    asked = "\n".join(part for part in parts[:2] if part)
    history = fields.get("history") or []
    if not isinstance(history, list | tuple):
        raise row.problem(Reason.DataUnreadable, f"history is {kind_of(history)}, not a list of pairs")
    pairs = [*history, (asked, parts[2])]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise row.problem(Reason.DataUnreadable, "history is not a list of pairs of a question and an answer")
    said = (({"role": "user", "content": q}, {"role": "assistant", "content": a}) for q, a in pairs)
    return _with(row, fields, [*_system(row), *(turn for pair in said for turn in pair)])


def _answered(row: Row) -> Row:
    prompt, completion = row.fields.get("prompt"), row.fields.get("completion")
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise row.problem(Reason.DataUnreadable, "prompt and completion are not lists of messages, both of them")
    asked = [{**turn, "weight": 0} if isinstance(turn, dict) else turn for turn in prompt]
    turns = [*asked, *completion]
    return _with(row, row.fields, _with_system(row, system, turns) if (system := _system(row)) else turns)


def _system(row: Row) -> list[dict[str, Any]]:
    words = row.fields.get("system")
    if means_something(words) and not isinstance(words, str):
        raise row.problem(Reason.DataUnreadable, f"system is {kind_of(words)}, not a string")
    return [{"role": "system", "content": words}] if words else []


def _with(row: Row, fields: dict[str, Any], messages: Iterable[Any] | None = None) -> Row:
    """The row with these messages, its tools as a list."""
    told = dict(fields)
    if messages is not None:
        told["messages"] = list(messages)
    tools, functions = (_list(row, key) for key in ("tools", "functions"))
    if tools is not None:
        told["tools"] = tools
    elif functions is not None:
        told["tools"] = [{"type": "function", "function": function} for function in functions]
    else:
        told.pop("tools", None)
    return replace(row, fields=told)


def _list(row: Row, key: str) -> list[Any] | None:
    """Of the row, as it is or as JSON; None where it is empty."""
    value = row.fields.get(key)
    if isinstance(value, str):
        value = parsed(value, row, key) if value.strip() else None
    if not means_something(value):
        return None
    if not isinstance(value, list):
        raise row.problem(
            Reason.DataUnreadable,
            f"{key} is not a list but {kind_of(value)}",
            f"Write {key} as a list of objects, or as the JSON of one.",
        )
    return value


_ALSO = ("system", "tools", "functions")
"""Keys that conversations of every spelling may have."""

MESSAGES = Spelling(("messages", *_ALSO), _messages)
SHAREGPT = Spelling(("conversations", *_ALSO), _sharegpt)
ALPACA = Spelling(("instruction", "input", "output", "history", *_ALSO), _alpaca)
ANSWERED = Spelling(("prompt", "completion", *_ALSO), _answered)
