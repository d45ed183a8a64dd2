"""Warnings about valid manifests that are probably not intended, for `finetune validate` and a condition."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from pathlib import PurePosixPath

from .spec import FineTuneJobSpec

LAUNCHERS = frozenset({"accelerate", "accelerate-launch", "deepspeed", "torchrun", "trl"})
"""Programs that start the processes of a distributed job."""

MODULES = re.compile(
    r"accelerate\.commands\.launch|torch\.distributed\.(run|launch)|deepspeed\.launcher(\..+)?|trl(\..+)?"
)
"""The same programs as Python modules."""

SHELLS = frozenset({"sh", "bash", "dash", "ash", "zsh"})
BEFORE = frozenset({"env", "exec", "nohup", "nice", "time", "command", "numactl", "uv", "poetry", "run", "then", "do"})
"""Words that may precede a program."""


def advice(spec: FineTuneJobSpec) -> tuple[str, ...]:
    """Returns one sentence per warning."""
    if spec.command is None or spec.world_size == 1:
        return ()
    found = dict.fromkeys(name for argv in _programs(spec.command) if (name := _launcher(argv)))
    return tuple(
        f"spec.command runs {name}, which starts its own processes and does not join the other pods: each of the "
        f"{spec.world_size} processes would train alone, with world size 1. torchrun already starts the command in "
        "each process, so name the script itself, such as [python, train.py]"
        for name in found
    )


def undecidable(spec: FineTuneJobSpec) -> tuple[str, ...]:
    """Returns one sentence per guard that no answers can pass, for `finetune validate`: the lower limit of a share of n
    out of n answers is .025^(1/n) (Clopper and Pearson)."""
    asked = spec.generates
    if asked is None:
        return ()
    keys = {"stops": "minStops", "jsonValid": "minJsonValid"}
    return tuple(
        f"guards.generation.{keys[metric]} {bound:g} cannot be passed with {asked.max_rows} prompts: "
        + ("a share of 1 is proved by no number of them" if needed is None else f"it takes at least {needed}, all of "
           "them right; set evaluation.generate.maxRows")
        for metric, bound in spec.guards.shares.items()
        if (needed := _proving(bound)) is None or needed > asked.max_rows
    )  # fmt: skip


def _proving(share: float) -> int | None:
    """Returns the smallest n whose lower limit is the share, if all n are hits; None if there is none."""
    if share in (0, 1):
        return None if share else 0
    return math.ceil(math.log(0.025) / math.log(share))


def _launcher(argv: list[str]) -> str:
    """Returns the name of the launcher; empty if there is none."""
    while argv and (argv[0] in BEFORE or argv[0].startswith("-") or re.match(r"[A-Za-z_]\w*=", argv[0])):
        argv = argv[1:]
    if not argv:
        return ""
    name = PurePosixPath(argv[0]).name
    if name == "accelerate":
        return "accelerate launch" if "launch" in argv[1:] else ""
    if name in LAUNCHERS:
        return name
    if name.startswith("python") and "-m" in argv[:-1]:
        module = argv[argv.index("-m") + 1]
        return f"python -m {module}" if MODULES.fullmatch(module) else ""
    return ""


def _programs(argv: tuple[str, ...]) -> Iterator[list[str]]:
    """Yields the command and, for a shell with a script (-c), each command in the script."""
    yield [*argv]
    names = [PurePosixPath(word).name for word in argv]
    shell = next((at for at, name in enumerate(names) if name in SHELLS), None)
    if shell is None:
        return
    options = argv[shell + 1 :]
    at = next((n for n, word in enumerate(options) if re.fullmatch(r"-\w*c", word)), None)
    if at is None or at + 1 >= len(options):
        return
    for line in re.split(r"[\n;&|(){}]+", options[at + 1].replace("\\\n", " ")):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            words = line.split()  # a quote that spans several commands
        if words:
            yield words
