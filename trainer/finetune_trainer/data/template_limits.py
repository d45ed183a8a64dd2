"""Bounds on what a chat template may compute for one conversation: it is part of a model, perhaps a stranger's.

Jinja's sandbox keeps a template from files and from Python's insides, and a `range` below 100,000. It does not keep it
from loops in loops, or from a text that doubles forty times. Here each rendering has a budget of steps (turns of loops,
numbers of ranges) and one of size (of what +, ~, *, ** and % make); a template that exceeds one is refused.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.filters import do_format
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

STEPS = 1_000_000
"""A conversation of 1,000 turns takes some thousands."""

SIZE = 64 * 2**20
"""Characters, entries or bits of any value that a template computes."""

WIDE = ("batch", "center", "indent", "slice", "truncate", "wordwrap")
"""Filters that make as much as a number says."""

_AFTER_COLON, _NESTED = re.compile(r":[^{}]*?(\d+)"), re.compile(r"\{[^{}]*:[^{}]*\{")
_WIDTHS = re.compile(r"%[-+ #0]*((?:\d+|\*)?(?:\.(?:\d+|\*))?)[a-zA-Z]")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """One template's environment: `restart` gives it a new budget. Exceeding it is a jinja2.TemplateRuntimeError."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._left = STEPS
        self.globals["range"] = self._range
        self.filters |= {name: _bounded(self.filters[name]) for name in WIDE}
        self.filters |= {_COUNTED: self._counted, _SIZED: _sized, "format": _format}

    def restart(self) -> None:
        self._left = STEPS

    def template(self, source: str) -> jinja2.Template:
        tree = _Bounds().visit(self.parse(source))
        return jinja2.Template.from_code(self, self.compile(tree), self.make_globals(None))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check(_size_of(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *arguments: Any, **named: Any) -> Any:
        """Of a text's methods too, such as ljust."""
        if isinstance(getattr(obj, "__self__", None), str):
            _check(_largest(arguments, named))
        return super().call(context, obj, *arguments, **named)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        return None if wrapped is None else functools.partial(_formatted, wrapped, value.__self__)

    def _range(self, *bounds: int) -> range:
        numbers = range(*bounds)
        self._spend(len(numbers))
        return numbers

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._spend(1)
            yield item

    def _spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise jinja2.TemplateRuntimeError(f"it takes more than {STEPS:,} steps for one conversation")


_COUNTED, _SIZED = "__counted", "__sized"


class _Bounds(NodeTransformer):
    """Counts what loops go over, and measures what `~` and `+` have made: a value that doubles is met in time. By
    filters, since these are plain calls, and the sandbox's own calls cost ten times as much."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        assert isinstance(node.iter, nodes.Expr)
        node.iter = _filtered(node.iter, _COUNTED)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, _SIZED)

    def visit_Add(self, node: nodes.Add) -> nodes.Node:
        """a + b + c is one sum, and measured once."""
        chain = node
        while isinstance(chain.left, nodes.Add):
            chain.right = self.visit(chain.right)
            chain = chain.left
        self.generic_visit(chain)
        return _filtered(node, _SIZED)


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _sized(value: Any) -> Any:
    if isinstance(value, (str, list)):
        _check(len(value))
    return value


def _size_of(operator: str, left: Any, right: Any) -> int:
    """At least, of what the operator makes: in characters, entries, or bits of a number."""
    if operator == "%" and isinstance(left, str):
        return _width(left, right if isinstance(right, tuple) else (right,))
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length()
        return bits * max(right, 0) if operator == "**" else bits + right.bit_length()
    sizes = [len(each) for each in (left, right) if isinstance(each, (str, list, tuple))]
    times = [each for each in (left, right) if isinstance(each, int)]
    return sum(sizes) * (times[0] if operator == "*" and times else 1)


def _width(form: str, values: Iterable[Any]) -> int:
    """Of what `%` makes: the widths and precisions of the format, and those that it takes from the values (`*`)."""
    found = _WIDTHS.findall(form)
    given = sum(abs(each) for each in values if isinstance(each, int)) if any("*" in each for each in found) else 0
    return given + sum(int(digits) for each in found for digits in re.findall(r"\d+", each))


def _formatted(method: Callable[..., str], form: str, *values: Any, **named: Any) -> str:
    """str.format, whose widths are in the format or, where braces are nested, among the values."""
    written = max(map(int, _AFTER_COLON.findall(form)), default=0)
    _check(max(written, _largest(values, named) if _NESTED.search(form) else 0))
    return method(*values, **named)


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose numbers are widths or counts."""

    @functools.wraps(function)  # with the marks by which jinja2 knows what to pass first
    def bounded(*arguments: Any, **named: Any) -> Any:
        _check(_largest(arguments, named))
        return function(*arguments, **named)

    return bounded


def _largest(arguments: Iterable[Any], named: Mapping[str, Any]) -> int:
    """Of the numbers among them; 0 of none."""
    return max((each for each in (*arguments, *named.values()) if isinstance(each, int)), default=0)


def _format(form: Any, *values: Any, **named: Any) -> str:
    """jinja2's filter, by the operator that is bounded."""
    _check(_width(str(form), named.values() if named else values))
    return do_format(form, *values, **named)


def _check(size: int) -> None:
    if size > SIZE:
        raise jinja2.TemplateRuntimeError(f"it makes a value of {size:,} characters or more")
