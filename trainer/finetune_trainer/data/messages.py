"""A row's messages as chat templates take them, each checked: every complaint names the row and the turn.

content       a text, or a list of text parts; nothing only where the turn calls tools
tool calls    `tool_calls` as servers give them, or the older `function_call`; arguments as objects
masks         whether an answer is trained, in the spellings of other tools:
              weight, train, training, trainable, loss, loss_mask, loss_scale, loss_weight, step_loss_mask,
              output_with_loss, train_on_turn (1 or true: trained) and masked, mask, ignore (true: not trained)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finetune_api.failures import Reason

from .json_errors import kind_of, parsed
from .read import Row

Message = dict[str, Any]

_TRAINED = (
    "weight", "train", "training", "trainable", "loss", "loss_mask", "loss_scale", "loss_weight", "step_loss_mask",
    "output_with_loss", "train_on_turn",
)  # fmt: skip
_MASKED = ("masked", "mask", "ignore")
MASKS = (*_TRAINED, *_MASKED)

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of one field: data sets use them all, templates read the first, a few the second."""

_PLAIN = {"role", "content"}
_MAY_BE_EMPTY = ("tool_calls", "function_call", "tools", "functions", "documents", *REASONING)
"""Of a turn; tables and exporters write empty ones where a turn has none."""


def means_something(value: Any) -> bool:
    """False for the ways in which data sets write that a key is not there."""
    return value is not None and value not in ("", [], {})


def turns_of(row: Row) -> list[Message]:
    """DataUnreadable where a turn is not what it has to be."""
    messages = row.fields.get("messages")
    if not isinstance(messages, list) or not messages:
        what = "null" if "messages" in row.nulls else "missing"
        raise row.problem(Reason.DataUnreadable, f"messages is {what} or is not a list of turns")
    return [_turn(row, number, message) for number, message in enumerate(messages, start=1)]


def _turn(row: Row, number: int, message: Any) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise row.problem(Reason.DataUnreadable, f"turn {number} is not an object with a role and a content")
    if message.keys() == _PLAIN and type(message["content"]) is str:
        return message
    turn = {
        key: value
        for key, value in message.items()
        if value is not None and (key not in _MAY_BE_EMPTY or means_something(value))
    }
    calls = _calls(row, number, turn)
    if calls:
        turn["tool_calls"] = calls
    if turn["role"] == "function":
        turn["role"] = "tool"
    for name in REASONING:
        if not isinstance(turn.get(name, ""), str):
            raise _wrong(row, number, name, turn[name], "a string")
    turn = _masked(row, number, turn)
    if isinstance(turn.get("content"), list):
        turn["content"] = "".join(_texts(row, number, turn["content"]))
    if "content" not in turn and not calls:
        raise row.problem(Reason.DataUnreadable, f"turn {number} has no content")
    if not isinstance(turn.get("content", ""), str):
        raise _wrong(row, number, "content", turn["content"], "text")
    return turn


def _wrong(row: Row, number: int, key: str, value: Any, wanted: str) -> Exception:
    return row.problem(
        Reason.DataUnreadable,
        f"turn {number} has a {key} that is {kind_of(value)}, not {wanted}",
        f"Write the {key} as a string." if not isinstance(value, dict | list) else "",
    )


def _masked(row: Row, number: int, turn: Message) -> Message:
    """The turn with a `weight` of 0 where any mask says that it is not trained."""
    given = [key for key in MASKS if key in turn]
    if not given:
        return turn
    trained = {key: _flag(row, number, key, turn[key]) is (key in _TRAINED) for key in given}
    if len(set(trained.values())) > 1:
        raise row.problem(
            Reason.DataUnreadable,
            f"turn {number} has {' and '.join(given)}, which contradict each other",
            "Keep one of them, or leave out the others by data.ignoreKeys.",
        )
    plain = {key: value for key, value in turn.items() if key not in given}
    if not trained[given[0]]:
        return {**plain, "weight": 0}
    if turn["role"] != "assistant":
        raise row.problem(
            Reason.DataUnreadable,
            f"turn {number} ({turn['role']!r}) is to be trained by its {given[0]}, and only the assistant's turns are",
            f"Correct the turn's role or its {given[0]}, or set data.ignoreKeys: [{given[0]}] to train all answers.",
        )
    return plain


def _flag(row: Row, number: int, key: str, value: Any) -> bool:
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    shown = value if isinstance(value, str | int | float) else kind_of(value)
    raise row.problem(
        Reason.DataUnreadable,
        f"turn {number} has {key} {shown}, and an answer is trained (1) or not (0)",
        "Write 0 or 1; how often whole sources are seen is data.train[].weight.",
    )


def _calls(row: Row, number: int, turn: Message) -> list[Message]:
    """Of `tool_calls`, or of the older `function_call`, which is taken out of the turn."""
    older = turn.pop("function_call", None)
    calls = turn.get("tool_calls") or ([{"type": "function", "function": older}] if older else [])
    if not isinstance(calls, list):
        raise row.problem(Reason.DataUnreadable, f"turn {number} has tool_calls that are {kind_of(calls)}, not a list")
    return [_call(row, number, call) for call in calls]


def _call(row: Row, number: int, call: Any) -> Message:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise row.problem(
            Reason.DataUnreadable,
            f"turn {number} has a tool call without the name of a function",
            'A call is {"type": "function", "function": {"name": …, "arguments": {…}}}.',
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str) and arguments.lstrip()[:1] == "{":
        value = parsed(arguments, row, f"turn {number}, arguments of {function['name']}", or_text=True)
        function = {**function, "arguments": value if isinstance(value, dict) else arguments}
    return {**call, "function": function} if "function" in call else {"type": "function", "function": function}


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


def tools_of(row: Row) -> list[Any] | None:
    """The row's tools, each an object with a name; None without any."""
    tools = row.fields.get("tools")
    if not means_something(tools):
        return None
    if not isinstance(tools, list):
        raise row.problem(Reason.DataUnreadable, f"tools is not a list but {kind_of(tools)}")
    for number, tool in enumerate(tools, start=1):
        if not isinstance(tool, dict):
            raise row.problem(Reason.DataUnreadable, f"tool {number} is {kind_of(tool)}, not an object")
    return tools
