"""Exact labels for Python source, from Python's own tokenizer and parser, without any annotation.

pythonTokens   each token: keyword, name, number, string, operator or comment
pythonNames    what a name is there: defined, parameter, keyword, called, attribute, assigned or read
"""

from __future__ import annotations

import ast
import io
import keyword
import tokenize
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import NamedTuple

FAULTS = (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError)
"""What is raised for text that is not Python."""


class Span(NamedTuple):
    """Characters [start, end) of a text."""

    start: int
    end: int
    label: str


_KINDS = {
    tokenize.NUMBER: "number", tokenize.STRING: "string", tokenize.OP: "operator", tokenize.COMMENT: "comment",
}  # fmt: skip


def python_tokens(source: str) -> list[Span]:
    """One of FAULTS where the source is not Python."""
    return [Span(start, end, _kind(kind, text)) for kind, text, start, end in _tokens(source)]


def python_names(source: str) -> list[Span]:
    """One of FAULTS where the source is not Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd escapes in somebody else's strings
        roles = dict(_roles(ast.parse(source), _lines(source)))
    found, before = [], ""
    for kind, text, start, end in _tokens(source):
        if kind == tokenize.NAME and not keyword.iskeyword(text):
            role = "defined" if before in ("def", "class") else roles.get(start)
            found += [Span(start, end, role)] if role else []
        before = text
    return found


def _kind(kind: int, text: str) -> str:
    if kind == tokenize.NAME:
        return "keyword" if keyword.iskeyword(text) else "name"
    return _KINDS[kind]


def _tokens(source: str) -> Iterator[tuple[int, str, int, int]]:
    """(kind, text, start, end) of all that have a text."""
    lines = _lines(source)
    starts = [0, *accumulate(map(len, lines))]
    for each in tokenize.generate_tokens(partial(next, iter(lines), "")):
        if each.type == tokenize.NAME or each.type in _KINDS:
            (first, column), (last, behind) = each.start, each.end
            yield each.type, each.string, starts[first - 1] + column, starts[last - 1] + behind


def _lines(source: str) -> list[str]:
    """As Python counts them: str.splitlines ends lines at form feeds and others, too."""
    return list(io.StringIO(source, newline=""))


def _roles(tree: ast.AST, lines: list[str]) -> Iterator[tuple[int, str]]:
    """(where a name starts, its role). What is called comes last, since a call's name is also read."""
    starts = [0, *accumulate(map(len, lines))]

    def at(line: int, column: int) -> int:
        """The parser counts bytes."""
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode(errors="ignore"))

    called = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield at(node.lineno, node.col_offset), "read" if isinstance(node.ctx, ast.Load) else "assigned"
        elif isinstance(node, ast.Attribute):
            yield _of_attribute(node, at), "attribute"
        elif isinstance(node, ast.arg):
            yield at(node.lineno, node.col_offset), "parameter"
        elif isinstance(node, ast.keyword) and node.arg:
            yield at(node.lineno, node.col_offset), "keyword"
        elif isinstance(node, ast.Call):
            called.append(node.func)
    for function in called:
        if isinstance(function, ast.Name):
            yield at(function.lineno, function.col_offset), "called"
        elif isinstance(function, ast.Attribute):
            yield _of_attribute(function, at), "called"


def _of_attribute(node: ast.Attribute, at: Callable[[int, int], int]) -> int:
    """Where the part after the last dot starts: at the end of the node."""
    return at(node.end_lineno or node.lineno, (node.end_col_offset or 0) - len(node.attr.encode()))
