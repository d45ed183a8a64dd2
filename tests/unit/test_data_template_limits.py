"""A hostile chat template is refused within a second; those that models have are not."""

from __future__ import annotations

import jinja2
import pytest

from finetune_trainer.data.template import ChatTemplate
from finetune_trainer.data.template_limits import SIZE, STEPS

HOSTILE = {
    "loops in loops": "{% for a in range(9999) %}{% for b in range(9999) %}{{ b }}{% endfor %}{% endfor %}",
    "loops that keep nothing": "{% for a in range(9999) %}{% for b in range(9999) if false %}{% endfor %}{% endfor %}",
    "sums in a loop": "{% for a in range(9999) %}{% set x = range(99999) | sum %}{% endfor %}",
    "loops over letters": "{% set t = 'x' * 9999 %}{% for a in t %}{% for b in t %}{% endfor %}{% endfor %}",
    "a recursive loop": "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a long text": "{{ 'x' * 99999999999 }}",
    "a long list": "{{ [0] * 99999999999 }}",
    "a large number": "{{ 9 ** 99999999999 }}",
    "a wide format": "{{ '%99999999999d' % 1 }}",
    "a width among the values": "{{ '%*d' % (99999999999, 1) }}",
    "a wide format by the filter": "{{ '%99999999999d' | format(1) }}",
    "a wide format by the method": "{{ '{:99999999999d}'.format(1) }}",
    "a width among the method's values": "{{ '{:{}d}'.format(1, 99999999999) }}",
    "a long line": "{{ 'x'.ljust(99999999999) }}",
    "a centred line": "{{ 'x' | center(99999999999) }}",
    "a list that is filled up": "{{ [1] | batch(99999999999, 0) | list }}",
    "doubling by ~": "{% set n = namespace(t='x') %}{% for a in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
    "doubling by +": "{% set n = namespace(t='x') %}{% for a in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}",
    "lists that double": "{% set n = namespace(t=[0]) %}{% for a in range(60) %}{% set n.t = n.t + n.t %}{% endfor %}",
}
CONVERSATION = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_it_is_refused(source: str) -> None:
    with pytest.raises((jinja2.TemplateRuntimeError, RecursionError)):
        ChatTemplate(source, {}).render(CONVERSATION)


def test_digits_of_a_text_are_no_widths() -> None:
    source = (
        "{{ 'call 99999999999: %s %5.1f%%' % ('a', 1) }} {{ '99999999999 {} {:>3}'.format('b', 2) }}{{ 7 | string }}"
    )
    assert ChatTemplate(source, {}).render([]).text == "call 99999999999: a   1.0% 99999999999 b   27"


def test_each_rendering_has_a_budget_of_its_own() -> None:
    template = ChatTemplate("{% for a in range(90000) %}{% endfor %}{{ messages | length }}", {})
    for _ in range(STEPS // 90_000):
        assert template.render(CONVERSATION).text == "2"


def test_loops_are_as_before() -> None:
    source = (
        "{% for m in messages if m.role != 'system' %}{{ loop.index }}/{{ loop.length }} {{ loop.last }} "
        "{{ loop.previtem is defined }} {{ 1 + 2 * 3 }} {{ '%s' % 'x' }} {{ 'a' ~ 1 }}; {% else %}none{% endfor %}"
    )
    text = ChatTemplate(source, {}).render(CONVERSATION).text
    assert text == "1/2 False False 7 x a1; 2/2 True True 7 x a1; "
    assert ChatTemplate(source, {}).render([]).text == "none"


def test_a_long_conversation_is_no_attack() -> None:
    turns = [{"role": ("user", "assistant")[i % 2], "content": "x" * 1000} for i in range(4000)]
    source = "{% for m in messages %}{{ m.role + ': ' + m.content ~ '\n' }}{% endfor %}"
    assert len(ChatTemplate(source, {}).render(turns).text) > 4_000_000 < SIZE
