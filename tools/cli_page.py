"""docs/cli.md: the commands, their options and examples, from the parser itself; the JSON from its models."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_api.base import ApiModel
from finetune_api.client import Outcome
from finetune_api.failures import FailureClass
from finetune_api.status import Phase
from finetune_trainer.cli.examples import EXAMPLES
from finetune_trainer.cli.main import parser
from finetune_trainer.cli.outputs import OUTPUTS, schema_of
from finetune_trainer.cli.watch_view import Snapshot

HEAD = """# Commands

Generated from the command's own parser by `make generate`; do not edit.

`finetune COMMAND --help` prints the same. `kubectl finetune COMMAND` is the same program. A job is looked for among the
runs of this machine first, and then on the cluster that `kubectl` uses; `-n` and `--context` look on the cluster only.
`submit`, `stop`, `resume`, `retry`, `clone` and `delete` are for jobs of a cluster, and also a [Python API](python.md).
Errors are printed to stderr with a [reason](reasons.md), whose exit code the command returns.

| command | what it does |
|---|---|
"""

JSON = """## JSON

What a command prints with `-o json` has a schema, which `finetune schema COMMAND` prints, too. `watch` and `chat` print
an object a line, and the schema is that of a line. Fields may be added, and are not renamed: ignore those that you do
not know. `status` prints the job, as in the [reference](manifest.md).

| command | schema |
|---|---|
"""
FOLDER = Path(__file__).parents[1] / "docs" / "json"


def schema_files() -> dict[Path, str]:
    """docs/json: one file for each model, named after the first command that prints it."""
    return {FOLDER / f"{each[0]}.schema.json": json.dumps(schema_of(each[0]), indent=1) + "\n" for each in _printing()}


def _printing() -> list[list[str]]:
    """Commands that print the same. Not the job itself, whose schema is as long as its reference."""
    found: dict[int, list[str]] = {}
    for name, model in OUTPUTS.items():
        if name != "status":
            found.setdefault(id(model), []).append(name)
    return list(found.values())


def _schemas() -> str:
    rows = []
    for names in _printing():
        said = ", ".join(f"`{SPELLED.get(name, name)}`" for name in names)
        rows.append(f"| {said} | [json/{names[0]}.schema.json](json/{names[0]}.schema.json) |")
    return JSON + "\n".join(rows)


SPELLED = {"analyze-against": "analyze --against", "data-inspect": "data inspect"}
LIFECYCLE = """`submit`, `stop`, `resume`, `retry`, `clone` and `delete` print one object:

| field | type | meaning |
|---|---|---|
"""
WATCH = """`watch` prints an object for each change; the last one is that of the finished job:

| field | type | meaning |
|---|---|---|
"""


def page() -> str:
    commands = {name: found for name, found in _commands() if name != "agent"}
    rows = [f"| [`{name}`](#{name}) | {text} |" for name, (text, _) in commands.items()]
    parts = [HEAD + "\n".join(rows), *(_section(name, *found) for name, found in commands.items())]
    parts += [_schemas(), LIFECYCLE + _fields(Outcome), WATCH + _fields(Snapshot)]
    return "\n\n".join(parts) + "\n"


def _commands() -> Iterator[tuple[str, tuple[str, argparse.ArgumentParser]]]:
    (actions,) = (each for each in parser("finetune")._actions if isinstance(each, argparse._SubParsersAction))
    for choice in actions._choices_actions:
        yield choice.dest, (choice.help or "", actions.choices[choice.dest])


def _section(name: str, text: str, command: argparse.ArgumentParser) -> str:
    parts = [f"## {name}", f"{text[0].upper()}{text[1:]}."]
    rows = [_row(action) for action in command._actions if action.help != argparse.SUPPRESS and action.dest != "help"]
    if rows:
        parts.append("\n".join(["| argument | meaning |", "|---|---|", *rows]))
    if name in EXAMPLES:
        parts.append("```text\n" + "\n".join(EXAMPLES[name]) + "\n```")
    return "\n\n".join(parts)


def _row(action: argparse.Action) -> str:
    value = (
        "" if action.nargs == 0 else action.metavar or "\\|".join(map(str, action.choices or (action.dest.upper(),)))
    )
    words = [f"`{option} {value}`" if value else f"`{option}`" for option in action.option_strings] or [f"`{value}`"]
    shown = ", ".join(word.replace("\\|", "` \\| `") for word in words)
    return f"| {shown} | {(action.help or '').replace('|', chr(92) + '|')} |"


def _fields(model: type[ApiModel]) -> str:
    schema = model.model_json_schema(by_alias=True)
    return "\n".join(
        f"| `{name}` | {_type(field)} | {field['description']} |" for name, field in schema["properties"].items()
    )


def _type(field: dict[str, Any]) -> str:
    kinds = [each for each in field.get("anyOf", [field]) if each.get("type") != "null"]
    kind = kinds[0].get("type", "object")
    if kind == "array":
        return f"list of {kinds[0]['items'].get('type', 'object')}s"
    named = kinds[0].get("$ref", "").rpartition("/")[2]
    return "string" if named in (Phase.__name__, FailureClass.__name__) else str(kind)
