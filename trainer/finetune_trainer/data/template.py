"""A model's chat template: conversations in, the text that the model was taught, out.

The environment is the one that templates are written for: sandboxed, whitespace of block tags trimmed, `tojson`,
`raise_exception`, `strftime_now`, loop controls and `{% generation %}` blocks. Tests compare it with transformers'
`apply_chat_template`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from itertools import product
from typing import Any, NamedTuple, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from .messages import REASONING
from .template_limits import BoundedEnvironment

Message = Mapping[str, Any]

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Around what a `{% generation %}` block holds, until the spans are known: noncharacters, which no text may contain."""

TODAY = datetime(2024, 7, 26)
"""For templates that write today's date, and the day that Llama 3's fall back to. The real one would make other rows on
each day: a run that resumes, or a node that starts after midnight, would train on others than it began with."""


_ABSENT = object()
"""In the place of a content that is not there."""


class Rendering(NamedTuple):
    text: str
    generated: tuple[tuple[int, int], ...]
    """What stood in `{% generation %}` blocks, as spans of the text."""


class ChatTemplate:
    """jinja2.TemplateError when the source is not a valid template, or refuses a conversation."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._environment = _environment()
        self._template = self._environment.template(source)
        self._special_tokens = dict(special_tokens)
        self._asks_always: dict[str, bool] = {}

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None, prompt: bool = False
    ) -> Rendering:
        """`prompt` asks for the header of an assistant's turn at the end."""
        told = [_told(message) for message in messages]
        if not any(message.get("tool_calls") for message in told):
            return self._render(told, tools, prompt)
        return self._with_calls(told, tools, prompt)

    def _with_calls(self, messages: Sequence[Message], tools: Sequence[Any] | None, prompt: bool) -> Rendering:
        """Templates differ in what they take for the arguments of a call (an object, or its JSON) and for the content
        of a turn that calls alone (null, an empty text, no key). The first way is taken that writes all names of
        functions and neither `None` nor an object as Python prints it; else the one that comes nearest."""
        best: tuple[tuple[int, int], Rendering] | None = None
        failed: Exception | None = None
        for arguments, empty in product((_as_object, _as_text), (None, "", _ABSENT)):
            given = [_with_content(_with_calls(message, arguments), empty) for message in messages]
            try:
                rendering = self._render(given, tools, prompt)
            except (TypeError, jinja2.TemplateError) as error:
                failed = failed or error
                continue
            score = _faults(given, rendering.text)
            if score == (0, 0):
                return rendering
            if best is None or score < best[0]:
                best = score, rendering
        if best is None:
            assert failed is not None
            raise failed
        return best[1]

    def asks_always(self, messages: Sequence[Message], asked: str, *, tools: Sequence[Any] | None = None) -> bool:
        """Whether the template writes `asked` whatever `prompt` says; looked at once for each role that comes last."""
        role = str(messages[-1]["role"])
        if role not in self._asks_always:
            try:
                self._asks_always[role] = self.render(messages, tools=tools).text == asked
            except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError):
                self._asks_always[role] = False
        return self._asks_always[role]

    def _render(self, messages: Sequence[Message], tools: Sequence[Any] | None, prompt: bool) -> Rendering:
        self._environment.restart()
        text = self._template.render(
            messages=messages,
            tools=tools,
            documents=None,
            add_generation_prompt=prompt,
            **self._special_tokens,
        )
        return _without_marks(text)


def _told(message: Message) -> dict[str, Any]:
    """A message without nulls, its reasoning under the names that templates read, and what it calls tools with as
    objects, as servers give them to templates: most write them as JSON, and a text of JSON as a text once more."""
    plain = {key: value for key, value in message.items() if value is not None}
    reasoning = next((plain[name] for name in REASONING if name in plain), None)
    if reasoning is not None:
        plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
    return _with_calls(plain, _as_object)


def _with_calls(message: Message, change: Callable[[Any], Any]) -> dict[str, Any]:
    """With the arguments of its tool calls changed."""
    if not message.get("tool_calls"):
        return dict(message)

    def changed(call: Mapping[str, Any]) -> dict[str, Any]:
        function = call.get("function", call)
        function = {**function, **({"arguments": change(function["arguments"])} if "arguments" in function else {})}
        return {**call, "function": function} if "function" in call else function

    return {**message, "tool_calls": [changed(call) for call in message["tool_calls"]]}


def _with_content(message: Message, empty: Any) -> Message:
    """A turn that calls tools and says nothing, with this content."""
    if not message.get("tool_calls") or message.get("content") or empty is _ABSENT:
        return message
    return {**message, "content": empty}


def _faults(messages: Sequence[Message], text: str) -> tuple[int, int]:
    """(calls that are not written or written as Python prints them, times that the text says None)."""
    functions = [call.get("function", call) for message in messages for call in message.get("tool_calls") or ()]
    missing = sum(str(function.get("name", "")) not in text for function in functions)
    objects = [given for function in functions if (given := function.get("arguments")) and isinstance(given, dict)]
    return missing + sum(str(given) in text for given in objects), text.count("None")


def _as_object(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments


def _as_text(arguments: Any) -> Any:
    """For templates that set them between other words."""
    return _to_json(arguments) if isinstance(arguments, dict) else arguments


def _without_marks(text: str) -> Rendering:
    if OPEN not in text:
        return Rendering(text, ())
    before, *marked = text.split(OPEN)
    parts, spans = [before], []
    at = len(before)
    for piece in marked:
        inside, _, after = piece.partition(CLOSE)
        spans.append((at, at + len(inside)))
        parts += [inside, after]
        at += len(inside) + len(after)
    return Rendering("".join(parts), tuple(spans))


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}`, by which a template says what the assistant said."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        return f"{OPEN}{caller()}{CLOSE}"


def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = TODAY.strftime
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own escapes HTML, which no model was taught."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
