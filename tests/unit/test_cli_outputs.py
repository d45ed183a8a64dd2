"""The JSON that commands print has a documented schema for each command; the tests of the commands validate with it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

import jsonschema
import pytest

from finetune_api.failures import ExitCode
from finetune_trainer.cli.main import main, parser
from finetune_trainer.cli.outputs import OUTPUTS, schema_of
from tests.support.documents import ROOT
from tests.support.printed_json import conforms
from tools import cli_page

TESTS = "\n".join(file.read_text() for file in sorted((ROOT / "tests" / "unit").glob("test_*.py")))


def printing(top: argparse.ArgumentParser) -> Iterator[str]:
    """Commands that have -o json, as OUTPUTS names them."""
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                if any(each.dest == "output" and each.choices == ("text", "json") for each in command._actions):
                    yield name
                yield from (f"{name}-{inner}" for inner in printing(command))


def test_every_command_with_json_has_a_schema_and_no_other() -> None:
    assert {*printing(parser("finetune")), "analyze-against"} == set(OUTPUTS)


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_schema_is_valid_and_what_is_printed_is_compared_with_it(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema_of(name))
    same = [other for other, model in OUTPUTS.items() if model is OUTPUTS[name]]
    assert any(f'conforms("{other}"' in TESTS for other in same)


def test_the_committed_schemas_are_those_of_the_models() -> None:
    files = cli_page.schema_files()
    assert {path: path.read_text() for path in sorted(cli_page.FOLDER.iterdir())} == files


def test_the_command_prints_the_schema_of_another(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "chat"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == schema_of("chat")
    assert main(["schema", "logs"]) == ExitCode.CONFIG
    assert "logs does not print JSON" in capsys.readouterr().err


@pytest.mark.parametrize(
    "printed", [{"prompt": "a", "base": "b"}, {"prompt": "a", "base": "b", "tuned": "c", "more": 1}]
)
def test_what_lacks_a_field_or_has_another_does_not_conform(printed: dict[str, object]) -> None:
    with pytest.raises(AssertionError, match="finetune chat -o json"):
        conforms("chat", printed)
