"""`finetune init`: writes a commented manifest that validates, from three answers, from flags, or from the
configuration of another trainer (`--from`, see `conversion`)."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetune_api import manifest, yaml_text
from finetune_api.failures import ExitCode, FinetuneError, Reason
from finetune_trainer.cli.conversion import converted
from finetune_trainer.cli.paths import resolved, uri_of
from finetune_trainer.cli.text import problems_text

MODEL = "hf://HuggingFaceTB/SmolLM2-135M-Instruct"

QUESTIONS = (
    ("model", "Which base model? hf://org/name, a folder, or a bucket", MODEL),
    ("data", "Where is the training data? A file such as train.jsonl, or a bucket", "train.jsonl"),
    ("output", "Where should the result go? A folder or a bucket", "tuned"),
)
"""Option, question, default."""

COMMENTS = {
    "model": "the base model",
    "data": "rows: {messages}, {prompt, completion}, {text} or {text, label}",
    "train": "one source per entry",
    "test": "rows to compare base and tuned model on; never trained",
    "validation": "a twentieth of the rows if you leave it out",
    "method": "lora, qlora, full, partial, probe …",
    "training": "what you leave out is chosen for you; finetune plan shows it",
    "nodes": "pods that train together",
    "resources": "of each pod",
    "output": "adapter, report and model card",
    "command": "torchrun starts it in each process",
    "credentials": "a Secret with the keys of the store",
}
"""Keys of the manifest that get a comment the first time they appear."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Options of the command; None was not given."""

    file: Path
    name: str | None = None
    model: str | None = None
    data: str | None = None
    test: str | None = None
    output: str | None = None
    secret: str | None = None
    nodes: int | None = None
    gpus: int | None = None
    source: Path | None = None
    force: bool = False


def init(answers: Answers, *, ask: Callable[[str], str] | None = None) -> int:
    """Writes the manifest, and prints what was not converted and which commands follow. `ask` is None without a
    terminal: then what is missing gets its default."""
    to_stdout = str(answers.file) == "-"
    if answers.file.exists() and not answers.force and not to_stdout:
        message = f"{answers.file} exists"
        raise FinetuneError(Reason.InvalidSpec, message, "Name another file: finetune init FILE, or use --force.")
    spec, ignored, where = _spec(answers, ask)
    name = answers.name or _name(where.removesuffix("/").rpartition("/")[2])
    raw = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": spec}
    for line in ignored:
        print(f"not converted: {line}", file=sys.stderr)
    if problems := manifest.validate(resolved(raw, answers.file.parent)):
        print(problems_text(str(answers.source or "the answers"), problems), file=sys.stderr)
        return ExitCode.CONFIG
    text = written(raw)
    if to_stdout:
        print(text, end="")
        return ExitCode.OK
    answers.file.write_text(text)
    print(f"{answers.file} is written and valid. Next:")
    file = answers.file
    print(f"  finetune plan {file}        # does it fit, and how long does it take")
    print(f"  finetune run {file}         # on this machine")
    print(f"  kubectl apply -f {file}     # on a cluster, whose pods need URIs of buckets")
    return ExitCode.OK


def _spec(answers: Answers, ask: Callable[[str], str] | None) -> tuple[dict[str, Any], tuple[str, ...], str]:
    """The spec, what could not be converted, and the text from which the job gets its name."""
    given = {key: value for key, value in vars(answers).items() if value is not None}
    if answers.source is not None:
        found = converted(_read(answers.source))
        spec, ignored = found.spec, found.ignored
    else:
        for option, question, default in QUESTIONS:
            if option not in given:
                given[option] = (ask and ask(f"{question} [{default}]: ").strip()) or default
        spec, ignored = {}, ()
    spec = _with_options(spec, given)
    return spec, ignored, given.get("output") or (answers.source.stem if answers.source else "job")


def _with_options(spec: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with what the options say, in the order in which a person writes a manifest."""
    if "model" in given:
        spec["model"] = {"uri": uri_of(given["model"])}
    if "data" in given:
        spec["data"] = {**spec.get("data", {}), "train": [{"uri": uri_of(given["data"])}]}
    if "test" in given:
        spec.setdefault("data", {})["test"] = {"uri": uri_of(given["test"])}
    if "output" in given:
        spec["output"] = {"uri": uri_of(given["output"])}
    if "nodes" in given:
        spec["nodes"] = given["nodes"]
    if "gpus" in given:
        spec["resources"] = {"limits": {"nvidia.com/gpu": given["gpus"]}}
    if "secret" in given:
        for part in ("data", "output"):
            if part in spec:
                spec[part]["credentials"] = {"secretName": given["secret"]}
    order = (
        "model",
        "data",
        "command",
        "method",
        "training",
        "strategy",
        "nodes",
        "resources",
        "image",
        "pod",
        "output",
    )
    return {key: spec[key] for key in sorted(spec, key=lambda key: order.index(key) if key in order else len(order))}


def _name(text: str) -> str:
    """A DNS label that starts with a letter."""
    return re.sub(r"^[^a-z]+", "", re.sub(r"[^a-z0-9]+", "-", text.lower()))[:40].strip("-") or "job"


_GIVE = "Give the configuration file of one run, in YAML or JSON."


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml_text.document(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FinetuneError(Reason.NotFound, f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise FinetuneError(Reason.InvalidSpec, f"{file} is not UTF-8 text", _GIVE) from error
    except yaml_text.YamlError as error:
        raise FinetuneError(Reason.InvalidSpec, f"{file} is not valid YAML or JSON: {error}", _GIVE) from error
    if not isinstance(content, dict):
        raise FinetuneError(Reason.InvalidSpec, f"{file} must contain one mapping of keys", _GIVE)
    return content


def written(raw: dict[str, Any]) -> str:
    """The manifest as YAML, with a comment at each key of COMMENTS where it appears first."""
    lines, seen = ["# Every field, with its default: docs/manifest.md, or kubectl explain finetunejob.spec"], set[str]()
    for line in yaml.safe_dump(raw, sort_keys=False, allow_unicode=True, width=200).splitlines():
        key = line.strip(" -").partition(":")[0]
        if key in COMMENTS and key not in seen and line.rstrip().endswith((":", *"0123456789")):
            seen.add(key)
            line = f"{line:<34}  # {COMMENTS[key]}"
        lines.append(line)
    return "\n".join(lines) + "\n"
