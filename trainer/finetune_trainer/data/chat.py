"""Which characters of a conversation the assistant said.

Most chat templates do not say. So a conversation is also rendered up to each of the assistant's turns, with the header
that asks for it: what the whole rendering has after that is the turn, and it is trained through its end-of-turn token,
so that the model learns to stop. With SmolLM2:

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n Hello<|im_end|> \\n
                                                          └── trained ───┘

That only works if a template renders the past as it rendered the present. One that does not (Qwen 3 leaves out the
reasoning of earlier turns) would train text that the model is never asked for: then each of the assistant's turns has a
text of its own, which ends with it. A template that marks the assistant's words with `{% generation %}` is believed.

Some templates never write a turn after what asks for it, not even the last one: Mistral's has the system's words in
the question alone, until that is answered; DeepSeek R1's opens the reasoning, and leaves it out of what was said.
There the text is what asks for the turn, and after it what the row says, ended as the template ends it.

Every trained turn ends with a token that stops an answer. Where the template writes none (ChatGLM's marks the next
speaker alone), each turn has a text of its own, which ends with the end-of-sequence token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jinja2

from finetune_api.failures import FinetuneError, Reason

from .json_errors import FAULTS
from .messages import REASONING
from .read import Row
from .template import ChatTemplate, Message, Rendering
from .turn_ends import Stops, common

Span = tuple[int, int]


class Rendered(NamedTuple):
    text: str
    trained: tuple[Span, ...]
    closed: bool = False
    """Whether the end-of-sequence token was appended, since the template ends no turn with a token."""


class Said(NamedTuple):
    start: int
    end: int
    stops: bool
    """Whether it ends with a token."""


class Retold(FinetuneError):
    """Turns that need a text each: the template writes one otherwise once it is history, or otherwise than the row has
    it; or none has an end."""


_PROBE = "\ufdd2"
"""In the place of a turn's words, to see what a template writes around them: a noncharacter, as in templates."""

_OPEN, _CLOSE = "<think>", "</think>"

_NEXT: Message = {"role": "user", "content": "\ufdd3"}
"""What a user says next, to see what a template writes of a turn whatever follows."""


@dataclass(frozen=True)
class Conversation:
    """One row's messages, to be rendered by one model's template."""

    row: Row
    messages: Sequence[Message]
    tools: Sequence[Any] | None
    template: ChatTemplate
    stops: Stops

    def renderings(self) -> list[Rendered]:
        """One text with all of the assistant's turns, or one for each where the template retells them. Errors of
        `render`; Retold only where the template rewrites a turn in a way that cannot be determined."""
        try:
            return [self.render()]
        except Retold:
            return [replace(self, messages=self.messages[: turn + 1])._last() for turn in self._turns]

    def render(self) -> Rendered:
        """The text, and in it the assistant's turns but those of weight 0. NothingToTrain without one, or where the
        template hides one; DataUnreadable where the template refuses the conversation, and Retold."""
        if not self._turns:
            raise self.row.problem(
                Reason.NothingToTrain,
                "no turn of the conversation is the assistant's, with a weight of 1 if it has one",
            )
        whole = self._render(len(self.messages))
        if whole.generated and all(map(_trains, self.messages)):
            return self._marked(whole)
        said = [self._said(turn, whole.text) for turn in self._turns]
        if all(turn.stops for turn in said):
            return Rendered(whole.text, tuple([turn[:2] for turn in said]))
        if len(said) > 1:
            raise self._endless()
        return self._closed(whole.text, said[0].start, said[0].end)

    def _marked(self, whole: Rendering) -> Rendered:
        """As the template marks it; where a turn's last mark ends before the token that ends the turn, through that."""
        marks = [(start, start + len(self.stops.through_end(whole.text[start:end]))) for start, end in whole.generated]
        if all(self.stops.closes(whole.text[start:end]) for start, end in marks):
            return Rendered(whole.text, tuple(marks))
        for turn in self._turns:
            said = self._said(turn, whole.text)
            inside = [number for number, (start, end) in enumerate(marks) if said.start <= start and end <= said.end]
            if not said.stops and len(self._turns) > 1:
                raise self._endless()
            if not said.stops:
                return self._closed(whole.text, said.start, said.end)
            if inside:
                marks[inside[-1]] = (marks[inside[-1]][0], said.end)
        return Rendered(whole.text, tuple(marks))

    def _closed(self, text: str, start: int, end: int) -> Rendered:
        """The text through this turn, then the end-of-sequence token."""
        if self.stops.eos is None:
            raise self.row.problem(
                Reason.ModelUnsupported,
                "the chat template ends the assistant's turns with no token, and the tokenizer names no eos_token: the "
                "model would never learn to stop",
                "Name eos_token in the model's tokenizer_config.json, or end turns with a token in its chat template.",
            )
        ended = text[:end] + self.stops.eos
        return Rendered(ended, ((start, len(ended)),), closed=True)

    def _last(self) -> Rendered:
        """The text, and in it the last turn alone."""
        turn = len(self.messages) - 1
        whole = self._render(turn + 1).text
        try:
            text, (start, end, stops) = whole, self._said(turn, whole)
        except Retold:
            asked = self._render(turn, prompt=True).text
            said = (
                self._without_reasoning(asked, whole)
                or self._behind_question(asked, whole)
                or self._with_reasoning(asked, whole)
            )
            if not said:
                raise
            text, start = asked + said, len(asked)
            at, stops = self.stops.end(said, _words(self.messages[turn]))
            end = start + at
        return Rendered(text, ((start, end),)) if stops else self._closed(text, start, end)

    def _around(self) -> tuple[str, str]:
        """What the template writes before and after the last turn's words, whatever they are; else nothing."""
        *before, last = self.messages
        if not isinstance(last.get("content"), str):
            return "", ""
        probed = replace(self, messages=[*before, {**last, "content": _PROBE}])
        start, *ends = probed._render(len(self.messages)).text.split(_PROBE)
        return (start, ends[0]) if len(ends) == 1 else ("", "")

    def _without_reasoning(self, asked: str, whole: str) -> str:
        """What is written where a question closes the reasoning that it opens, and only the answer is written.
        With Gemma 4:

        asked   <|turn>model\\n<|channel>thought\\n<channel|>
        whole   <|turn>model\\nHello<turn|>\\n
                                └── said ─┘
        """
        message, block = self.messages[-1], self.stops.closed_block(asked)
        if block is None or any(message.get(name) for name in REASONING):
            return ""
        before = asked.removesuffix(block.text)
        said = whole.removeprefix(before)
        told = whole.startswith(before) and block.opening not in said and self._holds(said, message)
        return said if told else ""

    def _behind_question(self, asked: str, whole: str) -> str:
        """What is written after the question, where all that is asked differs before the question alone. With Mistral:

        asked   <s>[INST] Be brief.\\n\\nHello[/INST]
        whole   <s>[INST] Hello[/INST] See you</s>
                                      └── said ──┘
        """
        turn = len(self.messages) - 1
        question = str(self.messages[turn - 1].get("content") or "").strip()
        if not question or question not in asked:
            return ""
        tail = asked[asked.rindex(question) :]
        before, _ = self._around()
        at = (before or whole).rfind(tail)
        said = whole[at + len(tail) :] if at >= 0 else ""
        return said if self._holds(said, self.messages[turn]) else ""

    def _with_reasoning(self, asked: str, whole: str) -> str:
        """The last turn's words with the reasoning that the template leaves out of them, from where it is asked for.
        With DeepSeek R1 and a turn `<think>\\nA greeting.\\n</think>\\n\\nHello`:

        asked   <|User|>Hi<|Assistant|><think>\\n
        whole   <|User|>Hi<|Assistant|>\\n\\nHello<|end of sentence|>
        said    A greeting.\\n</think>\\n\\nHello<|end of sentence|>
        """
        before, behind = self._around()
        if not before or not asked.startswith(before) or self.stops.closed_block(asked):
            return ""
        content, opened = str(self.messages[-1]["content"]), asked[len(before) :]
        reasoning, close, answer = content.rpartition(_CLOSE)
        if opened.strip() not in ("", _OPEN):
            return ""
        if opened.strip() and not close:
            raise self._unreasoned(opened)
        written = whole[len(before) : len(whole) - len(behind)]
        if not close or written.strip() != answer.strip():
            return ""
        reasoning = reasoning.lstrip()
        if opened.strip() and reasoning.startswith(_OPEN):
            exact = reasoning.startswith(opened)
            reasoning = reasoning.removeprefix(opened) if exact else reasoning.removeprefix(_OPEN).lstrip()
        space = answer[: len(answer) - len(answer.lstrip())]
        return reasoning + close + space + written.lstrip() + behind

    @property
    def _turns(self) -> list[int]:
        """Of the assistant, to be trained."""
        return [n for n, message in enumerate(self.messages) if message["role"] == "assistant" and _trains(message)]

    def _said(self, turn: int, whole: str) -> Said:
        """From the end of what asks for the turn through its end token; without one, through its words."""
        if turn == 0:
            raise self.row.problem(
                Reason.DataUnreadable,
                "the conversation starts with the assistant: nothing asks for its words",
                "Put a user or system turn first.",
            )
        message, asked = self.messages[turn], self._render(turn, prompt=True).text
        if not whole.startswith(asked):
            raise self._retold(turn)
        start = len(asked)
        through = whole if turn + 1 == len(self.messages) else self._render(turn + 1).text
        same = common(through, whole)
        if self._asks_always(turn, asked, through):
            same = self._without_header(turn, through, start, same)
        at, stops = self.stops.end(whole[start:same], _words(message), asked=asked, rest=through[same:])
        opened = _OPEN if asked.rstrip().endswith(_OPEN) else ""
        if not self._holds(opened + whole[start : start + at], message):
            raise self._hidden(turn) if same == len(through) else self._retold(turn)
        return Said(start, start + at, stops)

    def _asks_always(self, turn: int, asked: str, through: str) -> bool:
        """Whether the template may write the next header after the turn, although nothing asks for one."""
        if self.stops.eos and through.rstrip().endswith(self.stops.eos):
            return False
        return self.template.asks_always(self.messages[:turn], asked, tools=self.tools)

    def _without_header(self, turn: int, through: str, start: int, same: int) -> int:
        """Of `same` characters, those that the template writes whichever role is next."""
        try:
            after = replace(self, messages=[*self.messages[: turn + 1], _NEXT])._render(turn + 2).text
        except FinetuneError:
            return same
        shorter = min(same, common(through, after))
        return shorter if self._holds(through[start:shorter], self.messages[turn]) else same

    def _holds(self, said: str, message: Message) -> bool:
        """Whether the turn's words and the tools that it calls are there; templates may trim words or set line breaks
        around their parts."""
        content = message.get("content")
        if isinstance(content, str) and content not in said and "".join(content.split()) not in "".join(said.split()):
            return False
        calls = message.get("tool_calls")
        plain = self.stops.without_tokens(said) if calls else ""
        return all(call.get("function", call).get("name", "") in plain for call in calls or ())

    def _render(self, turns: int, *, prompt: bool = False) -> Rendering:
        try:
            return self.template.render(self.messages[:turns], tools=self.tools, prompt=prompt)
        except (jinja2.TemplateError, *FAULTS) as error:
            raise self.row.problem(
                Reason.DataUnreadable,
                f"the model's chat template refuses the conversation: {error}{self._refused_at(turns)}",
                "Correct the roles and their order, or use another format.",
            ) from error

    def _refused_at(self, turns: int) -> str:
        """The first turn through which the template does not write the conversation."""
        for turn in range(turns):
            try:
                self.template.render(self.messages[: turn + 1], tools=self.tools)
            except (jinja2.TemplateError, *FAULTS):
                return f" (at turn {turn + 1}, role {self.messages[turn]['role']!r})"
        return ""

    def _retold(self, turn: int) -> Retold:
        when = "than it asks for it" if turn + 1 == len(self.messages) else "once it is history"
        hint = "Use a template with {% generation %} blocks, or format completion."
        reasoning = next((name for name in REASONING if self.messages[turn].get(name)), None)
        if reasoning:
            hint = f"Use a model that is asked to reason, or leave it out by data.ignoreKeys: [{reasoning}]."
        elif _CLOSE in str(self.messages[turn].get("content")):
            hint = "Use a model that is asked to reason, or leave the reasoning out of what the assistant says."
        return Retold(
            Reason.DataUnreadable,
            f"{self.row.place}: the chat template renders turn {turn + 1} (the assistant's) otherwise {when}, so "
            "training on it would teach what the model is never asked for",
            hint,
        )

    def _endless(self) -> Retold:
        return Retold(
            Reason.ModelUnsupported,
            f"{self.row.place}: the chat template ends the assistant's turns with no token",
            "Use a model whose chat template ends each turn with a token.",
        )

    def _hidden(self, turn: int) -> Retold:
        return Retold(
            Reason.NothingToTrain,
            f"{self.row.place}: the chat template leaves out or changes what the assistant says in turn {turn + 1}",
            "Use a model whose template keeps assistant turns as they are, or format completion.",
        )

    def _unreasoned(self, opened: str) -> FinetuneError:
        return self.row.problem(
            Reason.DataUnreadable,
            f"the chat template asks for turn {len(self.messages)} (the assistant's) with {opened!r}, "
            "and the turn has no reasoning",
            f"Write {_OPEN}…{_CLOSE} in front of the answer in its content, or use a model that answers at once.",
        )


def _trains(message: Message) -> bool:
    return message.get("weight") != 0


def _words(message: Message) -> list[str]:
    """A turn's own words, as a template is likely to write them."""
    content = message.get("content")
    words = [content.strip()] if isinstance(content, str) else []
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        words += [str(function.get("name", "")), *_strings(function.get("arguments"))]
    return words


def _strings(value: Any) -> list[str]:
    """The kind of a JSON value."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [text for each in inner for text in _strings(each)]
    return [value] if isinstance(value, str) else []
