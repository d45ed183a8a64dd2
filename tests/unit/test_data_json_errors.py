"""Rows that cannot be read are faults of the data, told by file, row and column; never an error of the trainer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from finetune_api.data import Data
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.load import Datasets, load_datasets
from finetune_trainer.data.tokenizer import Tokenizer
from tests.support.chat_templates import READS_ALL
from tests.support.tokenizers import CHATML, tokenizer_folder, write_jsonl

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
DEEP = "[" * 5000 + "]" * 5000
HALF = r"\ud83d"
DIGITS = "7" * 5000


def load(folder: Path, uri: str, *, template: str = READS_ALL, **fields: Any) -> Datasets:
    tokenizer_folder(folder / "model", template=template)
    spec = Data.model_validate({"train": ({"uri": uri},), **fields}, strict=False)
    return load_datasets(spec, tokenizer_path=folder / "model", cache=folder / "cache", seed=1)


def called(arguments: Any) -> str:
    turn = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    return json.dumps({"messages": [USER, turn]})


FAULTS: list[tuple[str, str, str]] = [
    ("half a character", f'{{"text": "a{HALF}"}}', "in text has no other half"),
    ("half a character in an argument's JSON", called(f'{{"x": "{HALF}"}}'),
     "in turn 2, arguments of f has no other half"),
    ("half a character in JSON of tools", json.dumps({"messages": [USER, ANSWER], "tools": f'[{{"name": "{HALF}"}}]'}),
     "in tools has no other half"),
    ("half a character in a call's JSON",
     json.dumps({"conversations": [{"from": "human", "value": "a"}, {"from": "function_call",
                 "value": f'{{"name": "f", "arguments": {{"x": "{HALF}"}}}}'}]}), "in turn 2 has no other half"),
    ("deep nesting", f'{{"id": 1, "text": "a", "meta": {DEEP}}}', "meta is nested too deeply"),
    ("deep nesting in an argument's JSON", called(f'{{"x": {DEEP}}}'), "turn 2, arguments of f is nested too deeply"),
    ("a number of 5,000 digits", f'{{"text": "a", "id": {DIGITS}}}', "id has a number of more than 4,300 digits"),
    ("such a number in an argument's JSON", called(f'{{"x": {DIGITS}}}'),
     "turn 2, arguments of f has a number of more than 4,300 digits"),
    ("calls that are a text", json.dumps({"messages": [USER, {"role": "assistant", "tool_calls": "f"}]}),
     "turn 2 has tool_calls that are a string"),
    ("a call without a name", json.dumps({"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "1"}]}]}),
     "turn 2 has a tool call without the name"),
    ("a call that is null", json.dumps({"messages": [USER, {"role": "assistant", "tool_calls": [None]}]}),
     "turn 2 has a tool call without the name"),
    ("a tool that is a text", json.dumps({"messages": [USER, ANSWER], "tools": ["f"]}), "tool 1 is a string"),
    ("a content that is a number", json.dumps({"messages": [USER, {**ANSWER, "content": 7}]}),
     "turn 2 has a content that is a number, not text"),
    ("a content that is an object", json.dumps({"messages": [USER, {**ANSWER, "content": {"a": 1}}]}),
     "turn 2 has a content that is an object, not text"),
    ("reasoning that is a list", json.dumps({"messages": [USER, {**ANSWER, "thinking": ["a"]}]}),
     "turn 2 has a thinking that is a list"),
    ("a speaker that is a list", json.dumps({"conversations": [{"from": ["a"], "value": "x"}]}),
     "turn 1 is from a list"),
    ("a history that is a number", json.dumps({"instruction": "a", "output": "b", "history": 3}),
     "history is a number"),
    ("a system prompt that is a list", json.dumps({"system": ["a"], "messages": [USER, ANSWER]}), "system is a list"),
    ("a completion that is a number", json.dumps({"prompt": "a", "completion": 3}), "completion is a number"),
    ("null as text", json.dumps({"text": None}), "text is null"),
]  # fmt: skip


GOOD: list[dict[str, Any]] = [
    {"text": "good"},
    {"prompt": "a", "completion": "b"},
    {"instruction": "a", "output": "b"},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"messages": [USER, ANSWER]},
]


@pytest.mark.parametrize(("line", "message"), [case[1:] for case in FAULTS], ids=[case[0] for case in FAULTS])
@pytest.mark.parametrize("first", [True, False], ids=["the first row", "a later row"])
def test_faults_of_a_row_name_row_and_column(tmp_path: Path, line: str, message: str, first: bool) -> None:
    keys = set(json.loads(line.replace(DEEP, "0").replace(DIGITS, "0").replace("\\" + HALF, "").replace(HALF, "")))
    good: Mapping[str, Any] = {"messages": [USER, ANSWER]}
    for need, fields in (
        ("text", {"text": "good"}),
        ("prompt", {"prompt": "a", "completion": "b"}),
        ("instruction", {"instruction": "a", "output": "b"}),
        ("conversations", {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}),
    ):
        good = fields if need in keys else good  # fmt: skip
    rows = [json.dumps(good), json.dumps(good)]
    rows.insert(0 if first else 2, line)
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n")
    with pytest.raises(FinetuneError) as caught:
        load(tmp_path, f"file://{tmp_path}/train.jsonl")
    assert caught.value.reason is Reason.DataUnreadable
    assert f"train.jsonl line {1 if first else 3}: " in caught.value.message
    assert message in caught.value.message
    assert caught.value.hint


ARRAYS = [
    ("an array in one line", '[{"text": "a"}, {"text": "b"}]\n', "is a JSON array", "jq -c '.[]'"),
    ("an array over several lines", '[\n  {"text": "a"}\n]\n', "is a JSON array", "jq -c '.[]'"),
    ("an object over several lines", '{\n  "text": "a"\n}\n', "continues on the next line", "jq -c ."),
]


@pytest.mark.parametrize(("content", "message", "hint"), [c[1:] for c in ARRAYS], ids=[c[0] for c in ARRAYS])
def test_json_that_is_called_jsonl_is_told_as_what_it_is(tmp_path: Path, content: str, message: str, hint: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(FinetuneError, match=message) as caught:
        load(tmp_path, f"file://{tmp_path}/a.jsonl")
    assert hint in caught.value.hint


def table(folder: Path, columns: Mapping[str, Any]) -> str:
    parquet.write_table(pyarrow.table(dict(columns)), folder / "a.parquet")
    return f"file://{folder}/a.parquet"


TABLES: list[tuple[str, dict[str, Any], Reason, str]] = [
    ("binary text", {"text": pyarrow.array([b"a", b"b"])}, Reason.DataUnreadable, "row 1: text is binary data"),
    ("a null", {"text": pyarrow.array(["a", None])}, Reason.DataUnreadable, "row 2: text is null"),
    ("a column of nulls", {"text": pyarrow.array([None, None], pyarrow.string())}, Reason.DataUnreadable,
     "text is null"),
    ("half a label", {"text": ["a", "b"], "label": [0.0, 0.5]}, Reason.LabelsMissing, "label 0.5 is neither a word"),
    ("a null label", {"text": ["a", "b"], "label": ["x", None]}, Reason.LabelsMissing,
     "row 2: the row has no label"),
    ("text of times", {"text": pyarrow.array([1, 2], pyarrow.timestamp("s"))}, Reason.DataUnreadable, "text is a time"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "reason", "message"), [c[1:] for c in TABLES], ids=[c[0] for c in TABLES])
def test_columns_of_tables_are_told_as_what_they_are(
    tmp_path: Path, columns: dict[str, Any], reason: Reason, message: str
) -> None:
    with pytest.raises(FinetuneError) as caught:
        load(tmp_path, table(tmp_path, columns))
    assert caught.value.reason is reason
    assert message in caught.value.message
    assert caught.value.hint


def test_whole_numbers_of_a_column_with_nulls_are_labels(tmp_path: Path) -> None:
    rows = {"text": [f"text {n}" for n in range(8)], "label": [float(n % 2) for n in range(8)]}
    assert load(tmp_path, table(tmp_path, rows)).labels == ("0", "1")


CALLS = pyarrow.list_(
    pyarrow.struct([("name", pyarrow.string()), ("arguments", pyarrow.map_(pyarrow.string(), pyarrow.string()))])
)
TURNS = pyarrow.list_(
    pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string()), ("tool_calls", CALLS)])
)


def test_a_map_is_an_object_in_what_is_taught(tmp_path: Path) -> None:
    turn = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": [("city", "Rome"), ("at", None)]}]}
    uri = table(tmp_path, {"messages": pyarrow.array([[USER, turn]], TURNS)})
    data = load(tmp_path, uri, validation={"uri": write_jsonl(tmp_path / "v.jsonl", {"messages": [USER, ANSWER]})})
    backend = Tokenizer.load(tmp_path / "model").backend
    assert '"arguments": {"city": "Rome"}' in backend.decode(data.train.tokens.tolist(), skip_special_tokens=False)


def test_a_null_is_absent_in_every_kind_of_file(tmp_path: Path) -> None:
    given = {"name": "f", "arguments": {"city": "Rome", "at": None}}
    rows = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [given]}], "tools": None}
    dev = {"uri": write_jsonl(tmp_path / "v.jsonl", {"messages": [USER, ANSWER]})}
    lines = load(tmp_path, write_jsonl(tmp_path / "a.jsonl", rows), validation=dev)
    backend = Tokenizer.load(tmp_path / "model").backend
    assert '"arguments": {"city": "Rome"}' in backend.decode(lines.train.tokens.tolist(), skip_special_tokens=False)
    assert "null" not in backend.decode(lines.train.tokens.tolist())


def test_rows_that_differ_in_calls_or_tools_alone_are_no_leak(tmp_path: Path) -> None:
    def row(q: str, **more: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "search", "arguments": {"q": q}}}
        return {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}], **more}

    tool = {"type": "function", "function": {"name": "search"}}
    train = write_jsonl(tmp_path / "t.jsonl", *(row(f"t{n}") for n in range(6)))
    dev = write_jsonl(tmp_path / "v.jsonl", row("v0"), row("t0", tools=[tool]), row("t1", system="Be brief."))
    assert len(load(tmp_path, train, validation={"uri": dev}).train) == 6
    spelled = row("t0")
    spelled["messages"][1]["tool_calls"][0]["function"]["arguments"] = '{"q": "t0"}'
    with pytest.raises(FinetuneError, match="validation: 1 of 1 rows are among the training rows too"):
        load(tmp_path, train, validation={"uri": write_jsonl(tmp_path / "w.jsonl", spelled)})


@pytest.mark.parametrize("some", [False, True], ids=["all rows", "some rows"])
def test_truncation_that_leaves_nothing_to_train_says_so(tmp_path: Path, some: bool) -> None:
    long = [{"messages": [{"role": "user", "content": f"{n} " + "word " * 40}, ANSWER]} for n in range(6)]
    short = [{"messages": [USER, ANSWER]}] if some else []
    uri = write_jsonl(tmp_path / "a.jsonl", *long, *short)
    dev = {"uri": write_jsonl(tmp_path / "v.jsonl", {"messages": [{**USER, "content": "x"}, ANSWER]})}
    fields = {"overlong": "truncate", "sequenceLength": 64, "validation": dev, "template": CHATML}
    if some:
        split = load(tmp_path, uri, **fields).statistics.splits["train"]
        assert (split.documents, split.emptied) == (1, 6)
        assert "6 truncated before their first trained token" in split.line()
        return
    with pytest.raises(FinetuneError, match="cut every trained token off 6 of 6 rows") as caught:
        load(tmp_path, uri, **fields)
    assert caught.value.reason is Reason.SequenceTooLong
    needed = int("".join(filter(str.isdigit, caught.value.hint)))
    assert len(load(tmp_path, uri, **{**fields, "sequenceLength": needed}).train) == 6
