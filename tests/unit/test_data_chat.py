"""What the assistant said, found in the renderings of templates of many makes."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.chat import Conversation
from finetune_trainer.data.template import ChatTemplate
from finetune_trainer.data.turn_ends import Stops
from tests.support.tokenizers import CHATML, SPECIAL, row

HI = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
TWO = [*HI, {"role": "user", "content": "Bye"}, {"role": "assistant", "content": "See you"}]

DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nBe kind<|im_end|>\\n' }}{% endif %}" + CHATML
)
TRIMMING = CHATML.replace("m['content']", "m['content'] | trim")
HEADERS = (  # the end of a turn without a line break, a begin-of-text token in front
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + ':' + m['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant:' }}{% endif %}"
)
ENDS_ONCE = CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"
NO_TOKENS = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
FORGETS_THINKING = (  # the shape of templates that show the reasoning of the last turn alone
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}"
    "{{ '<think>\\n' + (m['reasoning_content'] or '') + '\\n</think>\\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{{ '\\n' }}{% else %}{{ m['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
)
ASKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
HIDES = CHATML.replace("m['content']", "('' if m['role'] == 'assistant' else m['content'])")
STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}" + CHATML
PROMPT_ADDS = CHATML.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>' }}{% endif %}")


def conversation(template: str, messages: list[dict[str, Any]]) -> Conversation:
    compiled = ChatTemplate(template, {"bos_token": "<s>", "eos_token": "<|im_end|>"})
    return Conversation(row(messages=messages), messages, None, compiled, Stops(SPECIAL, eos="<|endoftext|>"))


TRAINED = [
    ("one turn", CHATML, HI, ["Hello<|im_end|>"]),
    ("each turn", CHATML, TWO, ["Hello<|im_end|>", "See you<|im_end|>"]),
    ("a last word by the user", CHATML, TWO[:3], ["Hello<|im_end|>"]),
    ("two answers in a row", CHATML, [*HI, HI[1]], ["Hello<|im_end|>", "Hello<|im_end|>"]),
    ("an empty answer still ends", CHATML, [HI[0], {"role": "assistant", "content": ""}], ["<|im_end|>"]),
    ("a default system prompt", DEFAULT_SYSTEM, TWO, ["Hello<|im_end|>", "See you<|im_end|>"]),
    ("a template that trims", TRIMMING, [HI[0], {"role": "assistant", "content": " Hello \n"}], ["Hello<|im_end|>"]),
    ("no line break behind a turn", HEADERS, TWO, ["Hello<|im_end|>", "See you<|im_end|>"]),
    ("an end of the whole", ENDS_ONCE, TWO, ["Hello<|im_end|>", "See you<|im_end|>\n<|endoftext|>"]),
    ("no special tokens at all", NO_TOKENS, HI, ["Hello<|endoftext|>"]),
    ("reasoning of the only turn", FORGETS_THINKING, [HI[0], {**HI[1], "thinking": "A greeting."}],
     ["<think>\nA greeting.\n</think>\nHello<|im_end|>"]),
    ("words that the prompt holds too", CHATML, [{"role": "user", "content": "Hello<|im_end|>"}, HI[1]],
     ["Hello<|im_end|>"]),
    ("a template with marks", MARKED, TWO, ["Hello<|im_end|>", "See you<|im_end|>"]),
    ("an answer of weight 0", CHATML, [HI[0], {**HI[1], "weight": 0}, *HI[:1], {**HI[1], "weight": 1}],
     ["Hello<|im_end|>"]),
    ("marks around an answer of weight 0", MARKED + ASKS, [HI[0], {**HI[1], "weight": 0}, *TWO[2:]],
     ["See you<|im_end|>"]),
    ("a null field", CHATML, [HI[0], {**HI[1], "tool_calls": None}], ["Hello<|im_end|>"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "messages", "trained"), [case[1:] for case in TRAINED], ids=[c[0] for c in TRAINED]
)
def test_trained(template: str, messages: list[dict[str, Any]], trained: list[str]) -> None:
    rendered = conversation(template, messages).render()
    assert [rendered.text[start:end] for start, end in rendered.trained] == trained


def test_what_stands_before_does_not_depend_on_weights() -> None:
    """And a turn that is retold and not trained has no text of its own."""
    silent = [HI[0], {**HI[1], "weight": 0}, *TWO[2:]]
    one, other = conversation(CHATML, silent).render(), conversation(CHATML, TWO).render()
    assert (one.text, one.trained) == (other.text, other.trained[1:])
    [(text, [(start, end)], _)] = conversation(FORGETS_THINKING, silent).renderings()
    assert text[start:end] == "<think>\n\n</think>\nSee you<|im_end|>"


def test_marks_leave_no_trace() -> None:
    assert conversation(MARKED, TWO).render().text == conversation(CHATML, TWO).render().text


def test_what_asks_for_a_turn_is_what_stands_before_it() -> None:
    rendered = conversation(DEFAULT_SYSTEM, TWO).render()
    for turn, (start, _) in zip((1, 3), rendered.trained, strict=True):
        asked = ChatTemplate(DEFAULT_SYSTEM, {}).render(TWO[:turn], prompt=True).text
        assert rendered.text[:start] == asked


REFUSED = [
    ("nobody answers", CHATML, HI[:1], Reason.NothingToTrain, "no turn of the conversation is the assistant's"),
    ("answers of weight 0", CHATML, [HI[0], {**HI[1], "weight": 0}], Reason.NothingToTrain,
     "no turn of the conversation is the assistant's, with a weight of 1"),
    ("nobody asks", CHATML, HI[1:], Reason.DataUnreadable, "the conversation starts with the assistant"),
    ("history is told otherwise", FORGETS_THINKING, TWO, Reason.DataUnreadable,
     "renders turn 2 (the assistant's) otherwise"),
    ("the prompt asks otherwise", PROMPT_ADDS, HI, Reason.DataUnreadable, "renders turn 2 (the assistant's) otherwise"),
    ("the answer is left out", HIDES, TWO, Reason.NothingToTrain,
     "leaves out or changes what the assistant says in turn 2"),
    ("a role that the template refuses", STRICT, [{"role": "system", "content": "x"}, *HI], Reason.DataUnreadable,
     "the model's chat template refuses the conversation: roles must alternate"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "messages", "reason", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_refused(template: str, messages: list[dict[str, Any]], reason: Reason, message: str) -> None:
    with pytest.raises(FinetuneError) as caught:
        conversation(template, messages).render()
    assert caught.value.reason is reason
    assert caught.value.message.startswith("train.jsonl line 7: ")
    assert message in caught.value.message
    assert caught.value.hint


def test_a_template_cannot_reach_the_machine() -> None:
    with pytest.raises(FinetuneError, match="refuses the conversation"):
        conversation("{{ messages.__class__.__mro__[1].__subclasses__() }}", HI).render()
