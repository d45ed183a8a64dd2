"""Completion for shells and the JSON schema for editors: they know what the program knows."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_trainer.cli.main import main
from finetune_trainer.cli.shell import SHELLS, json_schema

ROOT = Path(__file__).parents[2]
SCHEMA = json_schema()


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("shell", SHELLS)
def test_a_completion_has_commands_and_options_but_not_the_agent(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = script(shell, capsys)

    assert {"plan", "init", "promote"} <= set(text.replace("'", " ").split())
    assert "longest" in text
    assert "agent" not in text.replace("'", " ").split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [("finetune pl", ["plan"]), ("finetune plan --lon", ["--longest"]), ("finetune completion f", ["fish"])],
)
def test_bash_completes(words: str, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = f"COMP_WORDS=({words}); COMP_CWORD={len(words.split()) - 1}"
    source = f'{script("bash", capsys)}\n{at}; _finetune; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", source], capture_output=True, text=True, check=True, cwd=tmp_path)

    assert done.stdout.split() == expected


def unknown(value: Any, node: dict[str, Any], path: str) -> Iterator[str]:
    if isinstance(value, dict) and "properties" in node:
        for key, child in value.items():
            if key in node["properties"]:
                yield from unknown(child, node["properties"][key], f"{path}.{key}")
            elif node.get("additionalProperties") is False:
                yield f"{path}.{key}"
    elif isinstance(value, list) and "items" in node:
        for child in value:
            yield from unknown(child, node["items"], f"{path}[]")


@pytest.mark.parametrize("example", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda path: path.stem)
def test_an_editor_knows_every_key_of_the_examples(example: Path) -> None:
    assert list(unknown(yaml.safe_load(example.read_text()), SCHEMA, "")) == []


def test_an_editor_marks_a_typing_error() -> None:
    assert list(unknown({"spec": {"training": {"epoch": 1}}}, SCHEMA, "")) == [".spec.training.epoch"]


def test_bounds_and_types_are_those_of_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    printed = json.loads(capsys.readouterr().out)
    spec = printed["properties"]["spec"]["properties"]

    rate = spec["training"]["properties"]["learningRate"]
    assert (rate["type"], rate["maximum"], rate["exclusiveMinimum"]) == ("number", 10, 0)
    assert "minimum" not in rate
    assert spec["processesPerNode"]["type"] == ["integer", "string"]
    assert "null" in spec["pod"]["properties"]["runAsUser"]["type"]
    assert "x-kubernetes" not in json.dumps(printed)
