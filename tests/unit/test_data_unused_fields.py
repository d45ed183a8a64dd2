"""Keys with a meaning in a conversation reach the text, or are refused by name, or ignored by choice and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_api.data import Data
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.load import Datasets, load_datasets
from finetune_trainer.data.tokenizer import Tokenizer
from finetune_trainer.statistics import DataRecord
from tests.support.chat_templates import FAMILIES, READS_ALL
from tests.support.tokenizers import CHATML, tokenizer_folder, write_jsonl

USER, ANSWER = {"role": "user", "content": "Use lookup?"}, {"role": "assistant", "content": "Because"}
TOOL = {"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "lookup", "arguments": {"q": "rain"}}}
TWO_ROLES = (
    "{% for m in messages if m.role in ('user', 'assistant') %}"
    "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def load(folder: Path, *rows: dict[str, Any], template: str = CHATML, dev: Any = None, **fields: Any) -> Datasets:
    tokenizer_folder(folder / "model", template=template)
    validation = {"uri": write_jsonl(folder / "dev.jsonl", dev or {"messages": [{**USER, "content": "x"}, ANSWER]})}
    uri = write_jsonl(folder / "train.jsonl", *rows)
    spec = Data.model_validate({"train": ({"uri": uri},), "validation": validation, **fields}, strict=False)
    return load_datasets(spec, tokenizer_path=folder / "model", cache=folder / "cache", seed=1)


def text_of(folder: Path, data: Datasets, index: int = 0, *, trained: bool = False) -> str:
    row = data.train.row(index)
    tokens = row.tokens[row.trained] if trained else row.tokens
    backend = Tokenizer.load(folder / "model").backend
    return str(backend.decode(tokens.tolist(), skip_special_tokens=False))


UNREAD: list[tuple[str, dict[str, Any], str]] = [
    ("tools", {"messages": [USER, ANSWER], "tools": [TOOL]}, "tools"),
    ("tools in their older name", {"messages": [USER, ANSWER], "functions": [TOOL["function"]]}, "functions"),
    ("reasoning", {"messages": [USER, {**ANSWER, "reasoning_content": "Because"}]}, "reasoning_content"),
    ("reasoning by another name", {"messages": [USER, {**ANSWER, "thinking": "why"}]}, "thinking"),
    ("reasoning of an answer that is not trained",
     {"messages": [USER, {**ANSWER, "reasoning": "why", "weight": 0}, USER, ANSWER]}, "reasoning"),
    ("tools within a turn", {"messages": [{**USER, "tools": [TOOL]}, ANSWER]}, "tools"),
    ("calls", {"messages": [USER, {**ANSWER, "tool_calls": [CALL]}]}, "tool_calls"),
    ("a call in its older spelling", {"messages": [USER, {**ANSWER, "function_call": CALL["function"]}]},
     "function_call"),
    ("reasoning beside a completion", {"prompt": "a", "completion": "b", "reasoning": "why"}, "reasoning"),
    ("tools beside a completion", {"prompt": "a", "completion": "b", "tools": [TOOL]}, "tools"),
    ("a mask beside the turns", {"messages": [USER, ANSWER], "loss_mask": [0, 1]}, "loss_mask"),
    ("pictures beside the turns", {"messages": [USER, ANSWER], "images": ["cat.png"]}, "images"),
    ("a system prompt beside a completion", {"prompt": "a", "completion": "b", "system": "Be brief."}, "system"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "key"), [case[1:] for case in UNREAD], ids=[case[0] for case in UNREAD])
def test_what_nobody_reads_is_refused_or_ignored_by_choice(tmp_path: Path, fields: dict[str, Any], key: str) -> None:
    completion = "prompt" in fields
    plain = {"prompt": "c", "completion": "d"} if completion else {"messages": [USER, ANSWER]}
    dev = {"prompt": "x", "completion": "y"} if completion else None
    with pytest.raises(FinetuneError) as caught:
        load(tmp_path, plain, fields, dev=dev)
    assert caught.value.reason is Reason.DataUnreadable
    assert "train.jsonl line 2: " in caught.value.message
    assert key in caught.value.message
    assert f"data.ignoreKeys: [{key}]" in caught.value.hint
    data = load(tmp_path, plain, fields, dev=dev, ignoreKeys=[key], allowDuplicates=True)
    assert data.statistics.splits["train"].ignored == {key: 1}
    assert any(f"{key} ignored in 1 rows" in line for line in data.statistics.lines())
    assert any(f"{key} ignored in 1 rows" in line for _, line in DataRecord(statistics=data.statistics).lines())
    if completion:
        assert text_of(tmp_path, data, 1) == "ab<|im_end|>"


def test_a_template_that_reads_all_is_given_all(tmp_path: Path) -> None:
    turns = [USER, {"role": "assistant", "content": None, "function_call": CALL["function"]},
             {"role": "function", "name": "lookup", "content": "wet"}, {**ANSWER, "reasoning": "why"}]  # fmt: skip
    data = load(tmp_path, {"system": "Be brief.", "messages": turns, "functions": [TOOL["function"]]},
                template=READS_ALL)  # fmt: skip
    text = text_of(tmp_path, data)
    for part in ('{"type": "function", "function": {"name": "lookup"', '"arguments": {"q": "rain"}',
                 "system\nBe brief.", "tool\nwet", "<think>why</think>Because"):  # fmt: skip
        assert part in text
    assert data.statistics.splits["train"].ignored == {}


def test_a_system_prompt_beside_messages_is_their_first_turn(tmp_path: Path) -> None:
    row = {"system": "Be brief.", "messages": [USER, ANSWER]}
    data = load(tmp_path, row, template=FAMILIES["SmolLM2"].template)
    assert text_of(tmp_path, data).startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert "You help" not in text_of(tmp_path, data)
    said = {"role": "system", "content": " Be brief."}
    twice = load(tmp_path, {**row, "messages": [said, USER, ANSWER]})
    assert text_of(tmp_path, twice).count("Be brief.") == 1
    with pytest.raises(FinetuneError, match="another one under system"):
        load(tmp_path, {**row, "messages": [{**said, "content": "Be long."}, USER, ANSWER]})


@pytest.mark.parametrize(
    ("messages", "what"),
    [([{"role": "system", "content": "Be brief."}, USER, ANSWER], "content of turn 1 (role 'system')"),
     ([USER, ANSWER, {"role": "critic", "content": "no"}, USER, ANSWER], "content of turn 3 (role 'critic')")],
    ids=["system", "a role of its own"],
)  # fmt: skip
def test_turns_that_a_template_leaves_out_are_named(tmp_path: Path, messages: list[Any], what: str) -> None:
    with pytest.raises(FinetuneError) as caught:
        load(tmp_path, {"messages": messages}, template=TWO_ROLES)
    assert what in caught.value.message
    with pytest.raises(FinetuneError, match="does not write system, so"):
        load(tmp_path, {"system": "Be brief.", "messages": [USER, ANSWER]}, template=TWO_ROLES)


def test_other_columns_are_listed_once(tmp_path: Path) -> None:
    rows = [{"messages": [USER, ANSWER], "id": n, "source": "x"} for n in range(3)]
    data = load(tmp_path, *rows, {"messages": [USER, ANSWER], "score": 0.5})
    [source] = data.statistics.sources
    assert source.columns == ("id", "score", "source")
    told = [line for line in data.statistics.lines() if "columns not used: id, score, source" in line]
    assert len(told) == 1
    assert ("columns not used: id, score, source") in dict(DataRecord(statistics=data.statistics).lines()).values()


MASKS: list[tuple[str, Any, Any]] = [
    ("weight", 0, 1), ("train", False, True), ("training", False, True), ("trainable", 0, 1), ("loss", False, True),
    ("loss_mask", 0, 1), ("loss_scale", 0.0, 1.0), ("loss_weight", 0, 1.0), ("output_with_loss", False, True),
    ("masked", True, False), ("mask", 1, 0), ("ignore", True, False),
]  # fmt: skip


@pytest.mark.parametrize(("key", "off", "on"), MASKS, ids=[case[0] for case in MASKS])
def test_masks_of_turns_are_honoured_in_every_spelling(tmp_path: Path, key: str, off: Any, on: Any) -> None:
    quiet, loud = {**ANSWER, "content": "quiet", key: off}, {**ANSWER, "content": "loud", key: on}
    data = load(tmp_path, {"messages": [USER, quiet, {**USER, key: off}, loud]})
    assert text_of(tmp_path, data, trained=True) == "loud<|im_end|>"
    assert "quiet" in text_of(tmp_path, data)
    data = load(tmp_path, {"messages": [USER, quiet, USER, loud]}, ignoreKeys=[key])
    assert text_of(tmp_path, data, trained=True) == "quiet<|im_end|>loud<|im_end|>"
    with pytest.raises(FinetuneError, match="only the assistant's turns are"):
        load(tmp_path, {"messages": [{**USER, key: on}, loud]})
    with pytest.raises(FinetuneError, match=f"turn 2 has {key} 7"):
        load(tmp_path, {"messages": [USER, {**ANSWER, key: 7}]})


def test_masks_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError, match="turn 2 has weight and masked, which contradict"):
        load(tmp_path, {"messages": [USER, {**ANSWER, "weight": 1, "masked": True}]})


def test_what_a_row_is_learned_from_cannot_be_ignored() -> None:
    [rule] = [rule for rule in Data.RULES if "ignoreKeys" in rule.message]
    assert not rule.holds({"ignoreKeys": ["id", "content"]}, None)
    assert rule.holds({"ignoreKeys": ["reasoning_content"]}, None)


SAID = {**ANSWER, "content": None, "tool_calls": [CALL]}
"""A turn that calls and says nothing."""
RESULT = {"role": "tool", "content": "wet"}


@pytest.mark.parametrize("nothing", [None, "", " \n", [], [{"type": "text", "text": ""}]], ids=repr)
@pytest.mark.parametrize("key", ["tool_calls", "function_call"])
def test_a_turn_of_which_ignored_keys_leave_nothing_is_left_out(tmp_path: Path, key: str, nothing: Any) -> None:
    call = [CALL] if key == "tool_calls" else CALL["function"]
    row = {"messages": [USER, {"role": "assistant", "content": nothing, key: call}, RESULT, ANSWER]}
    smol = FAMILIES["SmolLM2"].template
    with pytest.raises(FinetuneError) as caught:
        load(tmp_path, row, template=smol)
    assert f"data.ignoreKeys: [{key}]" in caught.value.hint
    data = load(tmp_path, row, template=smol, ignoreKeys=[key])
    same = load(tmp_path / "same", {"messages": [USER, RESULT, ANSWER]}, template=smol)
    assert data.train.tokens.tolist() == same.train.tokens.tolist()
    assert data.train.trained.tolist() == same.train.trained.tolist()
    assert data.statistics.splits["train"].ignored == {key: 1}


@pytest.mark.parametrize("nothing", [None, "", []], ids=repr)
@pytest.mark.parametrize("before", [[], [USER, {**ANSWER, "weight": 0}]], ids=["alone", "behind an untrained answer"])
def test_a_row_that_only_calls_is_not_told_to_ignore_its_calls(tmp_path: Path, before: list[Any], nothing: Any) -> None:
    row = {"messages": [*before, USER, {**SAID, "content": nothing}]}
    with pytest.raises(FinetuneError) as caught:
        load(tmp_path, row, template=FAMILIES["SmolLM2"].template)
    assert caught.value.reason is Reason.DataUnreadable
    assert "ignoreKeys" not in caught.value.hint
    assert "without its tool_calls, the assistant says nothing to learn from in this row" in caught.value.message
    assert "leave such rows out of the file" in caught.value.hint


def test_a_row_of_which_ignored_keys_leave_no_answer_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FinetuneError) as caught:
        load(tmp_path, {"messages": [USER, ANSWER]}, {"messages": [USER, SAID]}, ignoreKeys=["tool_calls"])
    assert caught.value.reason is Reason.NothingToTrain
    assert "train.jsonl line 2: without tool_calls, which data.ignoreKeys leaves out" in caught.value.message
    assert "leave such rows out of the file" in caught.value.hint


def test_rows_that_differ_in_an_ignored_key_alone_are_the_same(tmp_path: Path) -> None:
    def rows(name: str, number: int) -> list[dict[str, Any]]:
        calls = ({"name": "search", "arguments": {"q": f"{name}{n}"}} for n in range(number))
        return [{"messages": [USER, {**ANSWER, "tool_calls": [{"type": "function", "function": c}]}]} for c in calls]

    [dev] = rows("v", 1)
    assert load(tmp_path, *rows("t", 3), dev=dev, template=READS_ALL).statistics.splits["validation"].duplicates == 0
    with pytest.raises(FinetuneError) as caught:
        load(tmp_path, *rows("t", 3), dev=dev, ignoreKeys=["tool_calls"])
    assert caught.value.reason is Reason.DataLeak


IS_THERE = (
    "{% if tools is defined and tools is not none %}TOOLS{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' }}"
    "{% for key in ('tool_calls', 'reasoning_content', 'thinking', 'reasoning', 'tools', 'functions', 'documents') %}"
    "{% if key in m %}{{ key }}{% if m[key] %}{{ m[key] | tojson }}{% endif %}{% endif %}{% endfor %}"
    "{{ (m.content or '') + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Writes the name of every key that is there, empty or not."""
EMPTY: list[Any] = ["", [], {}, None]


@pytest.mark.parametrize("empty", EMPTY, ids=repr)
@pytest.mark.parametrize("key", ["tool_calls", "function_call", "reasoning_content", "thinking", "reasoning",
                                 "tools", "functions", "documents"])  # fmt: skip
def test_an_empty_key_of_a_turn_is_absent(tmp_path: Path, key: str, empty: Any) -> None:
    data = load(tmp_path, {"messages": [USER, {**ANSWER, key: empty}]}, template=IS_THERE)
    same = load(tmp_path / "same", {"messages": [USER, ANSWER]}, template=IS_THERE)
    assert data.train.tokens.tolist() == same.train.tokens.tolist()


def test_reasoning_is_read_past_an_empty_name_of_it(tmp_path: Path) -> None:
    row = {"messages": [USER, {**ANSWER, "reasoning_content": "", "thinking": [], "reasoning": "why"}]}
    assert "<think>why</think>Because" in text_of(tmp_path, load(tmp_path, row, template=READS_ALL))


BESIDE = [
    *((key, empty) for key in ("tools", "functions") for empty in (*EMPTY, "{}", "[]", "null", " \n", '""')),
    *(("system", empty) for empty in EMPTY),
]


@pytest.mark.parametrize(("key", "empty"), BESIDE)
@pytest.mark.parametrize("turns", [{"messages": [USER, ANSWER]},
                                   {"conversations": [{"from": "human", "value": USER["content"]},
                                                      {"from": "gpt", "value": "Because"}]},
                                   {"instruction": USER["content"], "output": "Because"}],
                         ids=["messages", "ShareGPT", "Alpaca"])  # fmt: skip
def test_an_empty_key_beside_the_turns_is_absent(tmp_path: Path, turns: Any, key: str, empty: Any) -> None:
    data = load(tmp_path, {**turns, key: empty}, template=IS_THERE)
    same = load(tmp_path / "same", {"messages": [USER, ANSWER]}, template=IS_THERE)
    assert data.train.tokens.tolist() == same.train.tokens.tolist()


@pytest.mark.parametrize("key", ["tools", "functions"])
def test_tools_that_are_no_list_are_refused(tmp_path: Path, key: str) -> None:
    for given in ({"name": "lookup"}, '{"name": "lookup"}', 3):
        with pytest.raises(FinetuneError, match=f"{key} is not a list but") as caught:
            load(tmp_path, {"messages": [USER, ANSWER], key: given}, template=READS_ALL)
        assert caught.value.reason is Reason.DataUnreadable
