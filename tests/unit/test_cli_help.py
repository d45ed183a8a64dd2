"""The help of the commands: each has examples, and each example is one that the command takes."""

from __future__ import annotations

import argparse
import shlex

import pytest

from finetune_api.failures import ExitCode
from finetune_trainer.cli.examples import EXAMPLES
from finetune_trainer.cli.main import main, parser


def commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (action for action in parser("finetune")._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def test_examples_are_of_commands_that_exist() -> None:
    assert set(EXAMPLES) <= set(commands())
    assert {"run", "init", "validate", "plan", "status", "logs"} <= set(EXAMPLES)


@pytest.mark.parametrize(("name", "example"), [(name, each) for name, some in EXAMPLES.items() for each in some])
def test_an_example_is_what_the_command_takes(name: str, example: str, capsys: pytest.CaptureFixture[str]) -> None:
    typed = example.removeprefix("source <(").removesuffix(")").partition(" | ")[0].partition(" > ")[0]
    options = parser("finetune").parse_args(shlex.split(typed)[1:])

    assert callable(options.handler)
    assert main([name, "--help"]) == ExitCode.OK
    assert example in capsys.readouterr().out


def test_without_a_command_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == ExitCode.USAGE
    printed = capsys.readouterr()

    assert "write a commented manifest" in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["plna"], "argument COMMAND: 'plna' does not exist; did you mean plan?"),
        (["completion", "fishh"], "'fishh' does not exist; did you mean fish?"),
        (["completion", "cmd"], "'cmd' does not exist; choose from bash, zsh, fish"),
        (["status", "tickets", "--namspace=a"], "unrecognized arguments: --namspace=a; did you mean --namespace?"),
        (["watch", "tickets", "--onec"], "finetune watch: error: unrecognized arguments: --onec; did you mean --once?"),
        (["data", "inspect", "job.yaml", "--zzz"], "finetune data inspect: error: unrecognized arguments: --zzz\n"),
        (["run"], "the following arguments are required: FILE"),
    ],
)
def test_a_typing_error_is_answered_with_what_was_meant(
    typed: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(typed) == ExitCode.USAGE
    assert said in capsys.readouterr().err
