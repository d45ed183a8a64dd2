"""Conversations in the spellings of people's data sets: what they are as messages, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_api.data import Data
from finetune_api.failures import FinetuneError, Reason
from finetune_trainer.data.formats import detect
from finetune_trainer.data.load import Datasets, load_datasets
from finetune_trainer.data.spelling import SHAREGPT, spelling_of
from tests.support.tokenizers import row, tokenizer_folder, write_jsonl

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}
HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}
CALL = {"name": "add", "arguments": {"x": 1}}
TOOL = {"type": "function", "function": {"name": "add"}}

TOLD: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
    ("messages", {"messages": [USER, ASSISTANT]}, [USER, ASSISTANT]),
    ("ShareGPT", {"conversations": [HUMAN, GPT]}, [USER, ASSISTANT]),
    ("ShareGPT with a system prompt beside", {"system": "Be brief.", "conversations": [HUMAN, GPT]},
     [SYSTEM, USER, ASSISTANT]),
    ("ShareGPT with one inside", {"conversations": [{"from": "system", "value": "Be brief."}, HUMAN, GPT]},
     [SYSTEM, USER, ASSISTANT]),
    ("messages under ShareGPT's name", {"conversations": [USER, ASSISTANT]}, [USER, ASSISTANT]),
    ("ShareGPT's weights", {"conversations": [HUMAN, {**GPT, "weight": 0}]}, [USER, {**ASSISTANT, "weight": 0}]),
    ("ShareGPT's tools",
     {"conversations": [HUMAN, {"from": "function_call", "value": '{"name": "add", "arguments": {"x": 1}}'},
                        {"from": "observation", "value": "2"}, GPT]},
     [USER, {"role": "assistant", "tool_calls": [{"type": "function", "function": CALL}]},
      {"role": "tool", "content": "2"}, ASSISTANT]),
    ("Alpaca", {"instruction": "Hi", "output": "Hello"}, [USER, ASSISTANT]),
    ("Alpaca with an empty input", {"instruction": "Hi", "input": "", "output": "Hello"}, [USER, ASSISTANT]),
    ("Alpaca with an input", {"instruction": "Add.", "input": "1 2", "output": "Hello", "system": "Be brief."},
     [SYSTEM, {"role": "user", "content": "Add.\n1 2"}, ASSISTANT]),
    ("Alpaca with a history", {"instruction": "Hi", "output": "Hello", "history": [["Hi", "Hello"]]},
     [USER, ASSISTANT, USER, ASSISTANT]),
    ("prompt and completion as messages", {"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT]},
     [{**USER, "weight": 0}, {**ASSISTANT, "weight": 0}, {**USER, "weight": 0}, ASSISTANT]),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "messages"), [case[1:] for case in TOLD], ids=[case[0] for case in TOLD])
def test_told_as_messages(fields: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    given = row(**fields)
    spelling = spelling_of(given)
    assert spelling is not None
    assert set(fields) <= set(spelling.keys)
    assert spelling.told(given).fields["messages"] == messages
    assert spelling.told(given).place == given.place
    assert detect(given) == "chat"


SPEAKERS = {
    "system": ("System", "SYSTEM"),
    "user": ("Human", "USER", " human", "prompter"),
    "assistant": ("GPT", "Assistant", "chatgpt", "ChatGPT", "bot", "Bot", "model", "AI", "gpt4", "GPT-4"),
    "tool": ("Observation", "Tool", "function", "tool_response", "function_response", "function-response", "ipython"),
}


@pytest.mark.parametrize(("role", "said"), [(role, said) for role, many in SPEAKERS.items() for said in many])
def test_speakers_of_sharegpt_in_the_spellings_of_public_data_sets(role: str, said: str) -> None:
    given = row(conversations=[HUMAN, {"from": said, "value": "Hello"}])
    assert SHAREGPT.told(given).fields["messages"] == [USER, {"role": role, "content": "Hello"}]


@pytest.mark.parametrize("said", ["Function_Call", "function-call", "tool_call", "tool_calls"])
def test_calls_of_sharegpt_in_the_spellings_of_public_data_sets(said: str) -> None:
    given = row(conversations=[HUMAN, {"from": said, "value": '{"name": "add", "arguments": {"x": 1}}'}])
    called = {"role": "assistant", "tool_calls": [{"type": "function", "function": CALL}]}
    assert SHAREGPT.told(given).fields["messages"] == [USER, called]


def test_an_unknown_speaker_is_refused_with_the_list_of_the_known() -> None:
    for said in ("bing", "", "critic"):
        with pytest.raises(FinetuneError) as caught:
            SHAREGPT.told(row(conversations=[HUMAN, {"from": said, "value": "Hello"}]))
        assert f"turn 2 is from {said!r}, which is none of system, human, user, gpt, assistant" in caught.value.message
        assert "chatgpt, bot, model" in caught.value.message
        assert "function_call" in caught.value.message


@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_tools_may_be_json(key: str) -> None:
    given = row(**{key: [USER, ASSISTANT], "tools": '[{"type": "function", "function": {"name": "add"}}]'})
    spelling = spelling_of(given)
    assert spelling is not None
    assert spelling.told(given).fields["tools"] == [TOOL]


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"prompt": "a", "completion": "b"}, "completion"),
        ({"instruction": "a", "output": "b", "text": "both"}, "text"),
        ({"text": "a", "label": "b"}, "classification"),
    ],
    ids=str,
)
def test_what_is_no_conversation_stays_what_it_was(fields: dict[str, Any], found: str) -> None:
    assert detect(row(**fields)) == found


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("an unknown speaker", {"conversations": [HUMAN, {"from": "bing", "value": "Hello"}]},
     "turn 2 is from 'bing', which is none of system, human, user, gpt, assistant, observation, tool"),
    ("a call that is no JSON", {"conversations": [HUMAN, {"from": "function_call", "value": "add 1"}]},
     "turn 2 is a function_call without the JSON of a name and arguments"),
    ("conversations that are text", {"conversations": "Hi"}, "conversations is a string, not a list of turns"),
    ("an output of a number", {"instruction": "Add.", "output": 3}, "instruction, input and output are not strings"),
    ("an answer that is text", {"prompt": [USER], "completion": "Hello"},
     "prompt and completion are not lists of messages, both of them"),
    ("tools that are no JSON", {"messages": [USER, ASSISTANT], "tools": "add"},
     "tools is a string that is not valid JSON"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused_by_name(fields: dict[str, Any], message: str) -> None:
    given = row(**fields)
    spelling = spelling_of(given)
    assert spelling is not None
    with pytest.raises(FinetuneError) as caught:
        spelling.told(given)
    assert caught.value.reason is Reason.DataUnreadable
    assert caught.value.message.startswith(f"train.jsonl line 7: {message}")
    assert caught.value.hint


def load(folder: Path, *sources: str, **fields: Any) -> Datasets:
    model = tokenizer_folder(folder / "model")
    spec = Data.model_validate({"train": tuple({"uri": uri} for uri in sources), **fields}, strict=False)
    return load_datasets(spec, tokenizer_path=model, cache=folder / "cache", seed=1)


def test_sources_of_several_spellings_are_one_set_of_conversations(tmp_path: Path) -> None:
    asked = [f"Hi {number}" for number in range(6)]
    plain = [{"messages": [{**USER, "content": words}, ASSISTANT]} for words in asked]
    shared = [{"conversations": [{**HUMAN, "value": words}, GPT]} for words in asked[2:4]]
    alpaca = [{"instruction": words, "input": "", "output": "Hello", "text": "…"} for words in asked[4:]]
    dev = write_jsonl(tmp_path / "dev.jsonl", {"messages": [USER, ASSISTANT]})
    one = load(tmp_path, write_jsonl(tmp_path / "one.jsonl", *plain), validation={"uri": dev})
    uris = [
        write_jsonl(tmp_path / f"{name}.jsonl", *rows)
        for name, rows in (("plain", plain[:2]), ("shared", shared), ("alpaca", alpaca))
    ]
    three = load(
        tmp_path, *uris, validation={"uri": dev}, format="chat", augmentation=[{"type": "casing", "probability": 1}]
    )
    assert three.statistics.format == "chat"
    assert three.train.tokens.tolist() == one.train.tokens.tolist()
    assert three.train.trained.tolist() == one.train.trained.tolist()
    assert three.variants is not None
    assert [three.variants.original(n).fields["messages"][0]["content"] for n in range(6)] == asked


def test_a_test_row_leaks_in_another_spelling_too(tmp_path: Path) -> None:
    train = write_jsonl(
        tmp_path / "train.jsonl", {"conversations": [HUMAN, GPT]}, {"conversations": [HUMAN, HUMAN, GPT]}
    )
    test = write_jsonl(tmp_path / "test.jsonl", {"messages": [USER, ASSISTANT]})
    with pytest.raises(FinetuneError) as caught:
        load(
            tmp_path,
            train,
            test={"uri": test},
            validation={"uri": write_jsonl(tmp_path / "v.jsonl", {"instruction": "x", "output": "y"})},
        )
    assert caught.value.reason is Reason.DataLeak
