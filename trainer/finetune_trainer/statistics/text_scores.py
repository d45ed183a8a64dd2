"""Scores of one generated text: each a function of the text (and of a reference) to a number from 0 to 1."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

_WORD = re.compile(r"[^\W_]+")
"""Letters and digits of any alphabet."""


def exact_match(text: str, reference: str) -> float:
    """1 if both are equal but for white space at their ends."""
    return float(text.strip() == reference.strip())


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, in lower case and without stemming: precision is its share of the
    text, recall its share of the reference. 1 for two texts without words. Source: Lin, ROUGE, ACL workshop 2004."""
    given, wanted = (_WORD.findall(each.lower()) for each in (text, reference))
    if not given and not wanted:
        return 1.0
    common = _common(given, wanted)
    return 2 * common / (len(given) + len(wanted))


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, by rows of the table of all prefixes."""
    before = [0] * (len(second) + 1)
    for word in first:
        row = [0]
        for at, other in enumerate(second):
            row.append(before[at] + 1 if word == other else max(row[-1], before[at + 1]))
        before = row
    return before[-1]


def json_of(text: str) -> Any:
    """The value of a text that is JSON (RFC 8259) and nothing else. ValueError where it is not."""
    try:
        return json.loads(text.strip(), parse_constant=_refused)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_valid(text: str) -> float:
    """1 if `json_of` reads it."""
    try:
        json_of(text)
    except ValueError:
        return 0.0
    return 1.0


def _refused(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number of JSON")
