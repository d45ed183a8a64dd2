"""A model's chat template: conversations in, the text that the model was taught, out.

The environment is the one that templates are written for: sandboxed, whitespace of block tags trimmed, `tojson`,
`raise_exception`, `strftime_now`, loop controls and `{% generation %}` blocks. Tests compare it with transformers'
`apply_chat_template`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, Any]

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Around what a `{% generation %}` block holds, until the spans are known: noncharacters, which no text may contain."""

TODAY = datetime(2024, 7, 26)
"""For templates that write today's date, and the day that Llama 3's fall back to. The real one would make other rows on
each day: a run that resumes, or a node that starts after midnight, would train on others than it began with."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of one field: data sets use them all, templates read the first, a few the second."""


class Rendering(NamedTuple):
    text: str
    generated: tuple[tuple[int, int], ...]
    """What stood in `{% generation %}` blocks, as spans of the text."""


class ChatTemplate:
    """jinja2.TemplateError when the source is no template, or refuses a conversation."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._template = _environment().from_string(source)
        self._special_tokens = dict(special_tokens)

    def render(
        self, messages: Sequence[Message], *, tools: Sequence[Any] | None = None, prompt: bool = False
    ) -> Rendering:
        """`prompt` asks for the header of an assistant's turn at the end."""
        text = self._template.render(
            messages=[_with_reasoning(message) for message in messages],
            tools=tools,
            documents=None,
            add_generation_prompt=prompt,
            **self._special_tokens,
        )
        return _without_marks(text)


def _with_reasoning(message: Message) -> dict[str, Any]:
    """A message without nulls, its reasoning under the names that templates read."""
    plain = {key: value for key, value in message.items() if value is not None}
    reasoning = next((plain[name] for name in REASONING if name in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


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


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
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
