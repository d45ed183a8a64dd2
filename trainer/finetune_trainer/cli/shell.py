"""`finetune completion` for shells, and `finetune schema` for editors: both from what the program itself knows."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Iterator
from typing import Any

from finetune_api import names
from finetune_api.failures import ExitCode, FinetuneError, Reason

SHELLS = ("bash", "zsh", "fish")
JsonSchema = dict[str, Any]


def add_commands(commands: Any, top: argparse.ArgumentParser) -> None:
    """Adds both commands to the subparsers of `top`."""
    completion = commands.add_parser("completion", help="print the completion of a shell")
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(handler=lambda options: _print(completion_of(top, options.shell)))
    schema = commands.add_parser("schema", help="print the JSON schema of a manifest, or of what a command prints")
    schema.add_argument("of", metavar="COMMAND", nargs="?", help="command with -o json (default: the manifest)")
    schema.set_defaults(handler=lambda options: _print(json.dumps(_schema(options.of), indent=1)))


def _schema(command: str | None) -> JsonSchema:
    """Of the manifest without a command. InvalidSpec for one without -o json."""
    from finetune_trainer.cli.outputs import OUTPUTS, schema_of

    if command is None:
        return json_schema()
    if command not in OUTPUTS:
        message = f"{command} does not print JSON"
        raise FinetuneError(Reason.InvalidSpec, message, f"Choose one of {', '.join(OUTPUTS)}.")
    return schema_of(command)


def _print(text: str) -> int:
    print(text)
    return ExitCode.OK


def completion_of(top: argparse.ArgumentParser, shell: str) -> str:
    """A script that the shell sources. It completes commands, options, choices and names of files."""
    commands = dict(_commands(top))
    return _fish(commands) if shell == "fish" else _bash(commands, zsh=shell == "zsh")


def _commands(top: argparse.ArgumentParser) -> Iterator[tuple[str, tuple[str, dict[str, str]]]]:
    """Command → its help, and its options and choices with their help."""
    (actions,) = (action for action in top._actions if isinstance(action, argparse._SubParsersAction))
    helps = {choice.dest: choice.help or "" for choice in actions._choices_actions}
    for name, parser in actions.choices.items():
        if name == "agent":  # not for people
            continue
        words: dict[str, str] = {}
        for action in parser._actions:
            help_text = "" if action.help in (None, argparse.SUPPRESS) else str(action.help)
            words |= dict.fromkeys((word for word in action.option_strings if word.startswith("--")), help_text)
            words |= dict.fromkeys(map(str, action.choices or ()) if not action.option_strings else (), help_text)
        yield name, (helps.get(name, ""), words)


def _bash(commands: dict[str, tuple[str, dict[str, str]]], *, zsh: bool) -> str:
    head = ["autoload -U +X compinit && compinit", "autoload -U +X bashcompinit && bashcompinit"] if zsh else []
    cases = [f"    {name}) words={shlex.quote(' '.join(words))} ;;" for name, (_, words) in commands.items()]
    return "\n".join([
        *head,
        "_finetune() {",
        '  local current="${COMP_WORDS[COMP_CWORD]}" words=""',
        "  if [ \"$COMP_CWORD\" -eq 1 ]; then",
        f"    COMPREPLY=($(compgen -W {shlex.quote(' '.join(commands))} -- \"$current\"))",
        "    return",
        "  fi",
        '  case "${COMP_WORDS[1]}" in',
        *cases,
        "  esac",
        '  COMPREPLY=($(compgen -W "$words" -- "$current"))',
        '  case "$current" in -*) ;; *) COMPREPLY+=($(compgen -f -- "$current")) ;; esac',
        "}",
        "complete -o filenames -F _finetune finetune",
    ])  # fmt: skip


def _fish(commands: dict[str, tuple[str, dict[str, str]]]) -> str:
    lines = []
    for name, (help_text, words) in commands.items():
        lines.append(f"complete -c finetune -n __fish_use_subcommand -a {name} -d {shlex.quote(help_text)}")
        for word, text in words.items():
            what = f"-l {word.removeprefix('--')}" if word.startswith("--") else f"-a {word}"
            lines.append(f"complete -c finetune -n '__fish_seen_subcommand_from {name}' {what} -d {shlex.quote(text)}")
    return "\n".join(lines)


def json_schema() -> JsonSchema:
    """The manifest as a JSON schema (draft 7): the CRD's, in which unknown keys are errors. Rules between fields are
    not in it; `finetune validate` checks them."""
    from finetune_api import schema

    (version,) = schema.crd()["spec"]["versions"]
    spec = _draft_7(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
    metadata = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": names.KIND,
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": names.API_VERSION},
            "kind": {"const": names.KIND},
            "metadata": metadata,
            "spec": spec,
        },
    }


def _draft_7(node: JsonSchema) -> JsonSchema:
    """A node of a structural schema: exclusive bounds become numbers, null and int-or-string become types."""
    made = {key: value for key, value in node.items() if not key.startswith("x-kubernetes-") and key != "nullable"}
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if made.pop(exclusive, False):
            made[exclusive] = made.pop(bound)
    if "properties" in node:
        made["properties"] = {name: _draft_7(child) for name, child in node["properties"].items()}
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            made[key] = _draft_7(node[key])
    if node.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
    if node.get("nullable") and "type" in made:
        kinds = made["type"] if isinstance(made["type"], list) else [made["type"]]
        made["type"] = [*kinds, "null"]
    return made
