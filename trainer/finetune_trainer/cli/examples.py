"""Examples at the end of each command's `--help`. A test parses every one of them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

EXAMPLES: dict[str, tuple[str, ...]] = {
    "run": ("finetune run job.yaml", "finetune run job.yaml --fresh"),
    "init": (
        "finetune init",
        "finetune init job.yaml --model hf://org/name --data train.jsonl",
        "finetune init job.yaml --from axolotl.yaml",
    ),
    "validate": (
        "finetune validate job.yaml",
        "finetune validate examples/*.yaml",
        "finetune validate job.yaml -o json",
    ),
    "plan": (
        "finetune plan job.yaml",
        "finetune plan job.yaml --gpu H100 --all",
        "finetune plan job.yaml --gpu L40S --model examples/llama-70b --rows 2000 --tokens 600000 --longest 512",
    ),
    "analyze": (
        "finetune analyze job.yaml",
        "finetune analyze job.yaml --documents 200 -o json",
        "finetune analyze job.yaml --against s3://corp/models/tickets",
    ),
    "submit": ("finetune submit job.yaml", "finetune submit job.yaml -n team-a --dry-run"),
    "stop": ("finetune stop tickets", "finetune stop tickets -n team-a -o json"),
    "resume": ("finetune resume tickets",),
    "retry": ("finetune retry tickets", "finetune retry tickets --file job.yaml"),
    "clone": (
        "finetune clone tickets tickets-2 --set training.epochs=5",
        "finetune clone tickets tickets-2 --to s3://corp/models/tickets-2 --print > job.yaml",
    ),
    "delete": ("finetune delete tickets", "finetune delete tickets -n team-a --force"),
    "watch": ("finetune watch tickets", "finetune watch job.yaml -n team-a", "finetune watch tickets --once -o json"),
    "status": ("finetune status tickets", "finetune status tickets -n team-a -o json"),
    "top": ("finetune top", "finetune top -n team-a"),
    "logs": ("finetune logs tickets -f", "finetune logs tickets -n team-a --node 1 --attempt 2"),
    "report": ("finetune report tickets --open", "finetune report s3://corp/models/tickets --save report.html"),
    "promote": ("finetune promote tickets", "finetune promote tickets -n team-a --overwrite"),
    "compare": (
        "finetune compare tickets",
        "finetune compare s3://corp/models/first s3://corp/models/second --data test",
    ),
    "chat": (
        "finetune chat tuned/",
        "finetune chat s3://corp/models/tickets --prompt 'Where is my parcel?' --max-new-tokens 64",
    ),
    "serve-manifest": (
        "finetune serve-manifest s3://corp/models/tickets --for vllm > vllm.yaml",
        "finetune serve-manifest tickets --for kserve",
    ),
    "switch-test": (
        "finetune switch-test s3://corp/models/tickets s3://corp/models/policy",
        "finetune switch-test tickets policy --max-rank 64 -o json",
    ),
    "verify": ("finetune verify s3://corp/models/tickets", "finetune verify tuned/ -o json"),
    "data": (
        "finetune data inspect job.yaml --set test --rows 10",
        "finetune data inspect rows.jsonl --model hf://org/name",
    ),
    "completion": ("source <(finetune completion bash)", "finetune completion fish | source"),
    "schema": ("finetune schema > finetunejob.schema.json", "finetune schema plan"),
}
"""Command → what a person would type."""

AFTER = {
    "schema": "Then write into the first line of a manifest:\n"
    "  # yaml-language-server: $schema=finetunejob.schema.json",
}
"""What follows the examples."""


def add_examples(parsers: Mapping[str, argparse.ArgumentParser]) -> None:
    """Adds them to the help of each command that has some."""
    for name, examples in EXAMPLES.items():
        if name in parsers:
            lines = ["examples:", *(f"  {example}" for example in examples)]
            parsers[name].epilog = "\n".join([*lines, *filter(None, (AFTER.get(name),))])
            parsers[name].formatter_class = argparse.RawDescriptionHelpFormatter
