"""Conversations as other tools keep them, told as messages; each source of a manifest may have its own.

messages     {messages, tools?}                           what a server takes
ShareGPT     {conversations, system?, tools?}             turns {from, value}, or messages under that name
Alpaca       {instruction, input?, output, …}             the input on a line of its own behind the instruction; system,
                                                          and pairs of earlier turns as history
             {prompt, completion}                         both as messages: only the completion's answers are trained

`tools` may be JSON in a string: tables have no other way to keep tools of different parameters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from finetune_api.failures import Reason

from .read import Row, kind_of

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "observation": "tool",
    "tool": "tool",
}


@dataclass(frozen=True)
class Spelling:
    keys: tuple[str, ...]
    """Of a row, those that it looks at."""
    told: Callable[[Row], Row]
    """The row with `messages`; DataUnreadable where that cannot be told."""


def spelling_of(row: Row) -> Spelling | None:
    """By the keys of a source's first row; None: it is no conversation."""
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
    return _with(row, row.fields)


def _sharegpt(row: Row) -> Row:
    turns = row.fields.get("conversations")
    if not isinstance(turns, list):
        raise row.problem(Reason.DataUnreadable, f"conversations is {kind_of(turns)}, not a list of turns")
    told = [_turn(row, number, turn) for number, turn in enumerate(turns, start=1)]
    return _with(row, row.fields, [*_system(row), *told])


def _turn(row: Row, number: int, turn: Any) -> dict[str, Any]:
    if not isinstance(turn, dict) or "from" not in turn:
        return turn  # a message, or nothing; who reads messages says which
    words = {key: value for key, value in turn.items() if key not in ("from", "value")}
    said, value = turn["from"], turn.get("value")
    if said == "function_call":
        return {**words, "role": "assistant", "tool_calls": _calls(row, number, value)}
    if said not in _ROLES:
        raise row.problem(
            Reason.DataUnreadable,
            f"turn {number} is from {said!r}, which is none of {', '.join(_ROLES)} and function_call",
            "Rename it, or use {messages} with roles that the model's chat template knows.",
        )
    return {**words, "role": _ROLES[said], "content": value}


def _calls(row: Row, number: int, value: Any) -> list[dict[str, Any]]:
    """Of `{"name": …, "arguments": …}` in a string, or of a list of them."""
    try:
        calls = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        calls = None
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
    pairs = [*(fields.get("history") or ()), (asked, parts[2])]
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise row.problem(Reason.DataUnreadable, "history is not a list of pairs of a question and an answer")
    said = (({"role": "user", "content": q}, {"role": "assistant", "content": a}) for q, a in pairs)
    return _with(row, fields, [*_system(row), *(turn for pair in said for turn in pair)])


def _answered(row: Row) -> Row:
    prompt, completion = row.fields.get("prompt"), row.fields.get("completion")
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise row.problem(Reason.DataUnreadable, "prompt and completion are not lists of messages, both of them")
    asked = [{**turn, "weight": 0} if isinstance(turn, dict) else turn for turn in prompt]
    return _with(row, row.fields, [*asked, *completion])


def _system(row: Row) -> list[dict[str, Any]]:
    words = row.fields.get("system")
    return [{"role": "system", "content": words}] if words else []


def _with(row: Row, fields: dict[str, Any], messages: Iterable[Any] | None = None) -> Row:
    """The row with these messages, its tools as a list."""
    told = dict(fields)
    if messages is not None:
        told["messages"] = list(messages)
    if isinstance(told.get("tools"), str):
        try:
            told["tools"] = json.loads(told["tools"] or "null")
        except ValueError as error:
            raise row.problem(Reason.DataUnreadable, f"tools is a string that is no JSON: {error}") from error
    return Row(row.file, row.line, told, row.unit)


MESSAGES = Spelling(("messages", "tools"), _messages)
SHAREGPT = Spelling(("conversations", "system", "tools"), _sharegpt)
ALPACA = Spelling(("instruction", "input", "output", "system", "history"), _alpaca)
ANSWERED = Spelling(("prompt", "completion", "tools"), _answered)
