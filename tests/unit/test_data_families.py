"""What the assistant said, under templates of the shapes that families of models have, written anew here: ones that
trim, that merge the system's words into the user's, that refuse them, that answer by another role's name, that show
reasoning once. None marks the assistant's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.data import Data
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.encode import Limits, encode
from finetune_trainer.data.formats import Chat
from finetune_trainer.data.load import load_datasets
from tests.support.chat_templates import CHATML_ASKS, CHATML_TURN, FAMILIES, IM, Family, Messages
from tests.support.tokenizers import row, tiny, tokenizer_folder, write_jsonl


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


SYSTEM = {"role": "system", "content": "Be brief."}
ONE = [user("Hello"), assistant("Hello")]
TWO = [*ONE, user("Hello"), assistant("See you")]
SPACES = [user(" Hi \n"), assistant(" Hello\n")]
CALL = assistant("", tool_calls=[{"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}])
CALLED = [user("1 + 1?"), CALL, {"role": "tool", "content": "2"}, assistant("Two.")]

TRAINED: list[tuple[str, Messages, list[str]]] = [
    ("ChatML", [SYSTEM, *TWO], ["Hello<|im_end|>", "See you<|im_end|>"]),
    ("ChatML", SPACES, [" Hello\n<|im_end|>"]),
    ("SmolLM2", TWO, ["Hello<|im_end|>", "See you<|im_end|>"]),
    ("SmolLM2", [SYSTEM, *ONE], ["Hello<|im_end|>"]),
    ("Llama 3", [SYSTEM, *TWO], ["Hello<|eot_id|>", "See you<|eot_id|>"]),
    ("Llama 3", SPACES, ["Hello<|eot_id|>"]),
    ("Qwen 2.5", [SYSTEM, *TWO], ["Hello<|im_end|>", "See you<|im_end|>"]),
    ("Qwen 2.5", CALLED,
     ['<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call><|im_end|>', "Two.<|im_end|>"]),
    ("Qwen 3", ONE, ["<think>\n\n</think>\n\nHello<|im_end|>"]),
    ("Qwen 3", [SYSTEM, user("Hi"), assistant("Hello", reasoning_content="A greeting.")],
     ["<think>\nA greeting.\n</think>\n\nHello<|im_end|>"]),
    ("Mistral", TWO, [" Hello</s>", " See you</s>"]),
    ("Mistral with the system in the last question", TWO, [" Hello</s>", " See you</s>"]),
    ("Llama 2", [SYSTEM, *TWO], [" Hello </s>", " See you </s>"]),
    ("Gemma", TWO, ["Hello<end_of_turn>", "See you<end_of_turn>"]),
    ("Gemma", SPACES, ["Hello<end_of_turn>"]),
    ("Gemma 3", [SYSTEM, *TWO], ["Hello<end_of_turn>", "See you<end_of_turn>"]),
    ("Phi 3", TWO, ["Hello<|end|>", "See you<|end|>\n<|endoftext|>"]),
    ("Vicuna", [SYSTEM, *TWO], [" Hello</s>", " See you</s>"]),
]  # fmt: skip


@pytest.mark.parametrize(("family", "messages", "trained"), TRAINED, ids=lambda v: v if isinstance(v, str) else "")
def test_the_assistants_words_through_their_end(family: str, messages: Messages, trained: list[str]) -> None:
    """And what stands before them is to the letter what the model will be asked."""
    rendered = FAMILIES[family].render(messages)
    assert [rendered.text[start:end] for start, end in rendered.trained] == trained
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    for turn, (start, _) in zip(turns, rendered.trained, strict=True):
        assert rendered.text[:start] == FAMILIES[family].compiled().render(messages[:turn], prompt=True).text


REFUSED: list[tuple[str, Messages, Reason, str, str]] = [
    ("Mistral", [SYSTEM, *ONE], Reason.DataUnreadable, "refuses the conversation: roles must alternate",
     "Correct the roles"),
    ("Gemma", [SYSTEM, *ONE], Reason.DataUnreadable, "refuses the conversation: System role not supported",
     "Correct the roles"),
    *((family, ONE, Reason.DataUnreadable, "asks for turn 2 (the assistant's) with '<think>\\n', and the turn has no "
       "reasoning", "<think>…</think> in front of the answer") for family in ("DeepSeek R1", "QwQ")),
    ("Gemma 4", [user("Hi"), assistant("Hello", reasoning_content="A greeting.")], Reason.DataUnreadable,
     "otherwise than it asks for it", "leave it out by data.ignoreKeys: [reasoning_content]"),
    *((family, CALLED, Reason.NothingToTrain, "leaves out or changes what the assistant says in turn 2",
       "Use a model whose template keeps") for family in ("ChatML", "Llama 3", "Gemma 3")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("family", "messages", "reason", "message", "hint"), REFUSED, ids=[f"{case[0]}-{case[2]}" for case in REFUSED]
)
def test_what_would_train_other_than_it_says(
    family: str, messages: Messages, reason: Reason, message: str, hint: str
) -> None:
    with pytest.raises(FinetuneError) as caught:
        FAMILIES[family].renderings(messages)
    assert caught.value.reason is reason
    assert message in caught.value.message
    assert hint in caught.value.hint


THOUGHT = assistant("<think>\nA greeting.\n</think>\n\nHello")
TERSE = assistant("<think>Bye?</think>See you \n")
CUT = assistant("A greeting.\n</think>\n\nHello")
"""As the model wrote it behind a prompt that opens its reasoning."""
QUOTED = [SYSTEM, user("Hello"), assistant(" Hello"), user("[INST] Hello[/INST]?"), assistant("Hello [/INST]")]

APART: list[tuple[str, Messages, list[str]]] = [
    # Only a conversation that ends with a question has the system's words in it: with the answer they are gone.
    ("Mistral with the system in the last question", [SYSTEM, *ONE], [" Hello</s>"]),
    ("Mistral with the system in the last question", [SYSTEM, *TWO], [" Hello</s>", " See you</s>"]),
    ("Mistral with the system in the last question", [SYSTEM, *TWO[:3]], [" Hello</s>"]),
    ("Mistral with the system in the last question", QUOTED, [" Hello</s>", " Hello [/INST]</s>"]),
    ("DeepSeek R1", [SYSTEM, user("Hi"), THOUGHT], ["A greeting.\n</think>\n\nHello<|end of sentence|>"]),
    ("DeepSeek R1", [user("Hi"), THOUGHT, user("Bye"), TERSE],
     ["A greeting.\n</think>\n\nHello<|end of sentence|>", "Bye?</think>See you \n<|end of sentence|>"]),
    ("DeepSeek R1", [user("Hi"), CUT], ["A greeting.\n</think>\n\nHello<|end of sentence|>"]),
    ("DeepSeek R1 of May", [user("Hi"), THOUGHT, user("Bye"), assistant("See you")],
     ["<think>\nA greeting.\n</think>\n\nHello<|end of sentence|>", "See you<|end of sentence|>"]),
    ("QwQ", [SYSTEM, user("Hi"), THOUGHT, user("Bye"), TERSE],
     ["A greeting.\n</think>\n\nHello<|im_end|>", "Bye?</think>See you \n<|im_end|>"]),
    # What asks for a turn says that there is no reasoning, and what is told of it does not.
    ("Gemma 4", [SYSTEM, *TWO], ["Hello<turn|>", "See you<turn|>"]),
    ("Qwen 3.5", [user("Hi"), THOUGHT, user("Bye"), assistant("<think>\nBye?\n</think>\n\nSee you")],
     ["A greeting.\n</think>\n\nHello<|im_end|>", "Bye?\n</think>\n\nSee you<|im_end|>"]),
]  # fmt: skip


@pytest.mark.parametrize(("family", "messages", "said"), APART, ids=lambda v: v if isinstance(v, str) else "")
def test_what_a_template_never_writes_behind_its_question(family: str, messages: Messages, said: list[str]) -> None:
    """Of each turn a text: to the letter what the model will be asked, then what the row says that it answers."""
    texts = FAMILIES[family].renderings(messages)
    asked = [
        FAMILIES[family].compiled().render(messages[:turn], prompt=True).text
        for turn, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    assert [text[: trained[0][0]] for text, trained, _ in texts] == asked
    assert [[text[start:end] for start, end in trained] for text, trained, _ in texts] == [[words] for words in said]


WRITES_TEXT = (  # puts arguments between others' words, which only a text can be
    "{%- for m in messages %}{% if m.tool_calls %}{% for call in m.tool_calls %}"
    "{{ '<|im_start|>assistant\\n' + call.function.name + '\\n' + call.function.arguments + '<|im_end|>\\n' }}"
    "{% endfor %}{% else %}" + CHATML_TURN + "{% endif %}{%- endfor %}" + CHATML_ASKS
)
ARGUMENTS: list[tuple[str, Any]] = [("an object", {"x": 1, "s": "é"}), ("its JSON", '{"x": 1, "s": "é"}')]


@pytest.mark.parametrize(("spelled", "arguments"), ARGUMENTS, ids=[case[0] for case in ARGUMENTS])
@pytest.mark.parametrize(
    ("template", "said"),
    [
        (FAMILIES["Qwen 2.5"].template,
         '<tool_call>\n{"name": "add", "arguments": {"x": 1, "s": "é"}}\n</tool_call><|im_end|>'),
        (WRITES_TEXT, 'add\n{"x": 1, "s": "é"}<|im_end|>'),
    ],
    ids=["a template that writes JSON", "a template that wants text"],
)  # fmt: skip
def test_arguments_of_a_tool_are_written_once(template: str, said: str, spelled: str, arguments: Any) -> None:
    """Data sets and servers keep them as JSON in a string, which `tojson` would write as a string once more."""
    call = assistant(None, tool_calls=[{"type": "function", "function": {"name": "add", "arguments": arguments}}])
    rendered = Family(template, IM).render([user("1 + 1?"), call])
    assert [rendered.text[start:end] for start, end in rendered.trained] == [said]


def test_turns_that_are_retold_have_texts_of_their_own(tmp_path: Path) -> None:
    """Qwen 3 writes the reasoning of the last answer alone: each is trained as it was asked for."""
    family = FAMILIES["Qwen 3"]
    texts = family.renderings([SYSTEM, *TWO])
    assert [[text[start:end] for start, end in trained] for text, trained, _ in texts] == [
        ["<think>\n\n</think>\n\nHello<|im_end|>"],
        ["<think>\n\n</think>\n\nSee you<|im_end|>"],
    ]
    for turn, (text, [(start, _)], _) in zip((2, 4), texts, strict=True):
        assert text[:start] == family.compiled().render([SYSTEM, *TWO][:turn], prompt=True).text
    form = Chat(tiny(tmp_path, template=family.template))
    document = form.document(row(messages=TWO))
    for limit, overlong, left in ((500, "fail", 2), (60, "drop", 1)):
        [outcome] = encode([document], form.tokenizer, Limits(limit, overlong))
        assert len(outcome.pieces) == left
        assert (outcome.needed > 0, outcome.dropped) == (left == 1, False)
    many = list(encode([document, form.document(row(messages=ONE)), document], form.tokenizer, Limits(500, "fail")))
    assert [len(outcome.pieces) for outcome in many] == [2, 1, 2]


def test_rows_of_several_documents_load_and_keep_their_variants_apart(tmp_path: Path) -> None:
    rows = [{"messages": [user(f"a{n}"), assistant("b"), user("c"), assistant("d")]} for n in range(8)]
    dev = write_jsonl(tmp_path / "dev.jsonl", {"messages": [user("x"), assistant("y")]})
    spec = {"train": ({"uri": write_jsonl(tmp_path / "train.jsonl", *rows)},), "validation": {"uri": dev}}
    casing = ({"type": "casing", "probability": 1.0},)
    model = tokenizer_folder(tmp_path / "model", template=FAMILIES["Qwen 3"].template)
    data = load_datasets(
        Data.model_validate({**spec, "augmentation": casing}, strict=False),
        tokenizer_path=model, cache=tmp_path / "cache", seed=1,
    )  # fmt: skip
    counts = data.statistics.splits["train"]
    assert (counts.rows, counts.documents, len(data.train), counts.retold) == (8, 16, 16, 8)
    assert "8 conversations rendered once for each answer" in counts.line()
    assert "told" not in data.statistics.splits["validation"].line()
    assert data.mixture.per_epoch == 16
    assert data.variants is not None
    chosen = np.arange(16)
    corpus, places = data.variants.of(chosen, epoch=0)
    for place, document in zip(places, chosen, strict=True):
        kept, seen = data.train.row(int(document)), corpus.row(int(place))
        assert seen.tokens[seen.trained].tolist() == kept.tokens[kept.trained].tolist()


def test_contents_in_parts_are_their_text(tmp_path: Path) -> None:
    """A template that trims would have written the list as Python prints it."""
    form = Chat(tiny(tmp_path, template=FAMILIES["Llama 3"].template.replace("<|eot_id|>", "<|im_end|>")))
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    document = form.document(row(messages=[user(parts), assistant(parts)]))
    assert [document.text[start:end] for start, end in document.trained] == ["Hello<|im_end|>"]
    assert form.identity(row(messages=[user(parts), assistant(parts)])) == form.identity(row(messages=ONE))
    picture = [{"type": "image", "url": "a.png"}, {"type": "text", "text": "What is it?"}]
    with pytest.raises(FinetuneError, match="turn 1 has content of type image, and the model reads text alone"):
        form.document(row(messages=[user(picture), assistant("A cat.")]))


def test_rows_are_the_same_on_every_day() -> None:
    """Llama 3 writes today's date: a run that resumes tomorrow would train on other rows than it began with."""
    assert "Today Date: 26 Jul 2024\n" in FAMILIES["Llama 3"].render(ONE).text


SAYS = "{{ '<|im_start|>' + m.role + '\\n' }}"
WRITES_CALLS = "{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}"
OF_NOTHING = {
    "tests for none": f"{SAYS}{{% if m.content is none %}}{WRITES_CALLS}{{% else %}}{{{{ m.content }}}}{{% endif %}}",
    "joins whatever it is": f"{SAYS}{{{{ '' + m.content }}}}{WRITES_CALLS}",
    "prints whatever it is": f"{SAYS}{{{{ m.content }}}}{WRITES_CALLS}",
    "trims whatever it is": f"{SAYS}{{{{ m.content | trim }}}}{WRITES_CALLS}",
    "asks whether it is there": f"{SAYS}{{% if m.content is defined and m.content is not none %}}{{{{ m.content }}}}"
    f"{{% endif %}}{WRITES_CALLS}",
    "prints arguments": f'{SAYS}{{% for c in m.tool_calls %}}{{{{ \'{{"name": "\' ~ c.function.name ~ \'", '
    f"\"arguments\": ' }}}}{{{{ c.function.arguments }}}}{{{{ '}}' }}}}{{% endfor %}}{{{{ m.content or '' }}}}",
}


@pytest.mark.parametrize("content", [[("content", None)], [], [("content", "")]], ids=["null", "no key", "empty"])
@pytest.mark.parametrize("name", OF_NOTHING)
def test_a_turn_that_calls_and_says_nothing(name: str, content: list[tuple[str, Any]]) -> None:
    template = "{% for m in messages %}" + OF_NOTHING[name] + "{{ '<|im_end|>\\n' }}{% endfor %}" + CHATML_ASKS
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    turn = {"role": "assistant", **dict(content), "tool_calls": [call]}
    if name == "tests for none" and content == [("content", "")]:
        turn["content"] = None  # what it writes of an empty text, it writes of all
    rendered = Family(template, IM).render([{**user("1?"), "tool_calls": []}, turn])
    said = [rendered.text[start:end] for start, end in rendered.trained]
    assert said == ['{"name": "add", "arguments": {"x": 1}}<|im_end|>']


def test_a_role_that_a_template_refuses_is_named() -> None:
    with pytest.raises(FinetuneError, match=r"roles must alternate \(at turn 3, role 'critic'\)"):
        FAMILIES["Gemma"].renderings([*ONE, {"role": "critic", "content": "no"}, *ONE])
