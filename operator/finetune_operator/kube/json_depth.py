"""JSON that is nested deeper than its reader takes: one object of that kind must not make a list of all unreadable.

The API server takes ten thousand levels, below a field that has no schema (`pod.affinity`). orjson reads a thousand and
writes 254, Python's json (kopf's) reads a little less. What is deeper than `CUT` is left out; the object
then still is too deep to be written, and is refused.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import orjson

CUT = 300

_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def loads(text: bytes) -> Any:
    """JSONDecodeError for what is not JSON at any depth."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        shallow = cut(text)
        if len(shallow) == len(text):
            raise error
        return orjson.loads(shallow)


def cut(text: bytes) -> bytes:
    """With null in place of all objects and lists deeper than `CUT`."""
    if text.count(b"{") + text.count(b"[") <= CUT:
        return text
    depth, begin, pieces = 0, 0, list[bytes]()
    for token in _TOKENS.finditer(text):
        match token.group():
            case b"{" | b"[":
                depth += 1
                if depth == CUT + 1:
                    pieces.append(text[begin : token.start()] + b"null")
            case b"}" | b"]":
                if depth == CUT + 1:
                    begin = token.end()
                depth -= 1
    if not pieces or depth:
        return text
    return b"".join([*pieces, text[begin:]])


class Lines:
    """A stream of JSON lines, each cut; else the stream that it was made of."""

    def __init__(self, content: Any) -> None:
        self._content = content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        rest = b""
        async for chunk in self._content.iter_chunked(size):
            *lines, rest = (rest + chunk).split(b"\n")
            if lines:
                yield b"".join(cut(line) + b"\n" for line in lines)
        if rest:
            yield cut(rest)
