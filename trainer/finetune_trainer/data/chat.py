"""Which characters of a conversation the assistant said.

Most chat templates do not tell. So a conversation is also rendered up to each of the assistant's turns, with the header
that asks for it: what the whole rendering has behind that is the turn, and it is trained through its end-of-turn token,
so that the model learns to stop. With SmolLM2:

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\n Hello<|im_end|> \\n
                                                          └── trained ───┘

That only works if a template renders the past as it rendered the present. One that does not (Qwen 3 leaves out the
reasoning of earlier turns) would train text that the model is never asked for: then each of the assistant's turns has a
text of its own, which ends with it. A template that marks the assistant's words with `{% generation %}` is believed.

Some templates never write a turn behind what asks for it, not even the last one: Mistral's has the system's words in
the question alone, until that is answered; DeepSeek R1's opens the reasoning, and leaves it out of what was said.
There the text is what asks for the turn, and behind it what the row says, ended as the template ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jinja2

from finetune_api.failures import FinetuneError, Reason

from .read import Row
from .template import ChatTemplate, Message, Rendering

Span = tuple[int, int]


class Rendered(NamedTuple):
    text: str
    trained: tuple[Span, ...]


class Retold(FinetuneError):
    """A turn that is told otherwise once it is history, than it is asked for, or than it was said."""


_PROBE = "\ufdd2"
"""In the place of a turn's words, to see what a template writes around them: a noncharacter, as in templates."""

_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True)
class Conversation:
    """One row's messages, to be rendered by one model's template."""

    row: Row
    messages: Sequence[Message]
    tools: Sequence[Any] | None
    template: ChatTemplate
    control: Sequence[str]
    """The tokenizer's special tokens."""

    def renderings(self) -> list[Rendered]:
        """One text with all of the assistant's turns, or one for each where the template retells them. Errors of
        `render`; Retold only where a turn is told otherwise than it is asked for, and there is no telling how."""
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
            return Rendered(whole.text, whole.generated)
        return Rendered(whole.text, tuple(self._said(turn, whole.text) for turn in self._turns))

    def _last(self) -> Rendered:
        """The text, and in it the last turn alone."""
        turn = len(self.messages) - 1
        whole = self._render(turn + 1).text
        try:
            return Rendered(whole, (self._said(turn, whole),))
        except Retold:
            asked = self._render(turn, prompt=True).text
            said = self._behind_question(asked, whole) or self._with_reasoning(asked, whole)
            if not said:
                raise
            text = asked + said
            end = self._end_of_turn(text, len(asked), len(text)) or len(text)
            return Rendered(text, ((len(asked), end),))

    def _around(self) -> tuple[str, str]:
        """What the template writes before and behind the last turn's words, whatever they are; else nothing."""
        *before, last = self.messages
        if not isinstance(last.get("content"), str):
            return "", ""
        probed = replace(self, messages=[*before, {**last, "content": _PROBE}])
        start, *ends = probed._render(len(self.messages)).text.split(_PROBE)
        return (start, ends[0]) if len(ends) == 1 else ("", "")

    def _behind_question(self, asked: str, whole: str) -> str:
        """What is written behind the question, where all that is asked differs before the question alone. With Mistral:

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
        if not before or not asked.startswith(before):
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

    def _said(self, turn: int, whole: str) -> Span:
        if turn == 0:
            raise self.row.problem(
                Reason.DataUnreadable,
                "the conversation starts with the assistant: nothing asks for its words",
                "Put a user or system turn first.",
            )
        asked = self._render(turn, prompt=True).text
        if not whole.startswith(asked):
            raise self._retold(turn)
        start = len(asked)
        through = whole if turn + 1 == len(self.messages) else self._render(turn + 1).text
        same = _common(through, whole)
        end = self._end_of_turn(whole, start, same)
        if end is None and same == len(through):
            end = same  # a template that marks no end by a token
        if end is None or not self._holds(whole[start:end], self.messages[turn]):
            raise self._hidden(turn) if same == len(through) else self._retold(turn)
        return start, end

    def _end_of_turn(self, whole: str, start: int, stop: int) -> int | None:
        """Behind the last special token of the turn; a line break after that is the template's, not the model's."""
        ends = [at + len(token) for token in self.control if (at := whole.rfind(token, start, stop)) >= 0]
        return max(ends, default=None)

    def _holds(self, said: str, message: Message) -> bool:
        """Whether the turn's words and the tools that it calls are there; templates may trim words or set line breaks
        around their parts."""
        content, plain = message.get("content"), said
        for token in self.control:
            plain = plain.replace(token, "")
        named = (call.get("function", call).get("name", "") for call in message.get("tool_calls") or ())
        return all(name in plain for name in named) and (
            not isinstance(content, str) or "".join(content.split()) in "".join(said.split())
        )

    def _render(self, turns: int, *, prompt: bool = False) -> Rendering:
        try:
            return self.template.render(self.messages[:turns], tools=self.tools, prompt=prompt)
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise self.row.problem(
                Reason.DataUnreadable,
                f"the model's chat template refuses the conversation: {error}",
                "Correct the roles and their order, or use another format.",
            ) from error

    def _retold(self, turn: int) -> Retold:
        when = "than it asks for it" if turn + 1 == len(self.messages) else "once it is history"
        return Retold(
            Reason.DataUnreadable,
            f"{self.row.place}: the chat template renders turn {turn + 1} (the assistant's) otherwise {when}, so "
            "training on it would teach what the model is never asked for",
            "Use a template with {% generation %} blocks, or format completion.",
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


def _common(one: str, other: str) -> int:
    """Characters that both begin with."""
    if other.startswith(one):
        return len(one)
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)
