"""JSON that cannot be read, reported with row and column. What only Python's reader accepts or fails at (halves
of surrogate pairs, numbers of thousands of digits, a thousand levels of nesting) is a fault of the row like any other.
"""

from __future__ import annotations

import json
import re
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Protocol

from finetune_api.failures import FinetuneError, Reason

_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')
_KEY_ENDS = re.compile(r"\s*:")
_LONG_NUMBER = re.compile(r"\d{4301,}")

_ARRAY = "Write one JSON object a line: jq -c '.[]' in.json > out.jsonl"
_SPREAD = "Write one JSON object a line: jq -c . in.json > out.jsonl"


FAULTS = (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError)
"""What Python raises where a row's values are of unexpected kinds; for `unreadable`."""


class Place(Protocol):
    """A row, as far as a complaint needs it."""

    @property
    def line(self) -> int: ...

    def problem(self, reason: Reason, what: str, hint: str = "") -> FinetuneError: ...


def object_of(text: str, row: Place) -> dict[str, Any]:
    """A line of JSON. DataUnreadable names the column where there is one."""
    if row.line == 1 and text.lstrip().startswith("["):
        raise row.problem(
            Reason.DataUnreadable, "the file is a JSON array, and a row is one JSON object a line", _ARRAY
        )
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if row.line == 1 and text.strip() == "{":
            raise row.problem(
                Reason.DataUnreadable, "a JSON object begins here and continues on the next line", _SPREAD
            ) from error
        raise row.problem(Reason.DataUnreadable, f"not valid JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise _beyond(error, text, row) from error
    if not isinstance(value, dict):
        raise row.problem(Reason.DataUnreadable, f"a row is a JSON object, this is {kind_of(value)}")
    return value


def parsed(text: str, row: Place, where: str, *, or_text: bool = False) -> Any:
    """JSON in a string. With `or_text`, what is not valid JSON is text; else it is DataUnreadable, as others."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if or_text:
            return text
        raise row.problem(Reason.DataUnreadable, f"{where} is a string that is not valid JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        raise row.problem(Reason.DataUnreadable, f"{where} {_why(error)}", _hint(error)) from error
    if r"\ud" in text.lower():
        refuse_half_characters({where: value}, row)
    return value


def refuse_half_characters(value: dict[str, Any], row: Place) -> None:
    """JSON may spell half of a surrogate pair, which is not a character and cannot be tokenised."""
    for key, inner in value.items():
        try:
            json.dumps([key, inner], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            shown = key.encode("ascii", "backslashreplace").decode()
            raise row.problem(
                Reason.DataUnreadable,
                rf"a \ud… escape in {shown} has no other half, and so is not a character",
                "Remove the escape, or write the whole character.",
            ) from error


def unreadable(error: Exception, fields: dict[str, Any], row: Place) -> FinetuneError:
    """What kept a row from becoming text, by the first column that cannot be written as JSON."""
    for key, inner in fields.items():
        try:
            json.dumps(inner, ensure_ascii=False, default=str).encode()
        except (ValueError, RecursionError) as fault:
            return row.problem(Reason.DataUnreadable, f"{key} {_why(fault)}", _hint(fault))
    columns = ", ".join(sorted(fields)) or "it"
    return row.problem(Reason.DataUnreadable, f"{columns} cannot be read: {type(error).__name__}: {error}")


def _beyond(error: Exception, text: str, row: Place) -> FinetuneError:
    number = _LONG_NUMBER.search(text)
    column = _column(text, number.start() if number and not isinstance(error, RecursionError) else None)
    return row.problem(Reason.DataUnreadable, f"{column or 'this'} {_why(error)}", _hint(error))


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "is nested too deeply to be read"
    if isinstance(error, UnicodeError):
        return r"has a \ud… escape without its other half, which is not a character"
    return "has a number of more than 4,300 digits"


def _hint(error: Exception) -> str:
    return "Flatten it, or write it as text." if isinstance(error, RecursionError) else "Write it as a string."


def _column(text: str, at: int | None) -> str:
    """The key of the outermost object that contains a position; without one, in which brackets are nested deepest."""
    key, depth = "", 0
    deepest = (0, "")
    for token in _TOKENS.finditer(text):
        if at is not None and token.start() > at:
            break
        if token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth -= 1
        elif depth == 1 and _KEY_ENDS.match(text, token.end()):
            key = str(json.loads(token[0]))
        deepest = max(deepest, (depth, key), key=lambda pair: pair[0])
    return key if at is not None else deepest[1]


def kind_of(value: object) -> str:
    """A value's type in words: JSON's, and what tables have besides."""
    kinds = {
        dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null", bytes: "binary data",
        int: "a number", float: "a number", Decimal: "a number", datetime: "a time", date: "a date",
    }  # fmt: skip
    return kinds.get(type(value), f"of type {type(value).__name__}")
