"""Manifests by what sets them apart from the short form, and how a wrong one is written down."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]

BASE: Json = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "cardiology"},
    "spec": {
        "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
        "data": {"train": [{"uri": "s3://corp/train.jsonl"}]},
        "output": {"uri": "s3://corp/models/cardiology"},
    },
}


def minimal(folder: Path, **spec: Any) -> Json:
    """A manifest whose model, rows and artifact are in `folder`, with more fields of its spec."""
    return BASE | {
        "metadata": {"name": "tiny"},
        "spec": {
            "model": {"uri": (folder / "model").as_uri()},
            "data": {"train": [{"uri": (folder / "train.jsonl").as_uri()}]},
            "output": {"uri": (folder / "out").as_uri()},
            **spec,
        },
    }


class _Missing:
    """Marks a field that the change takes away."""


MISSING = _Missing()


def changed(base: Json, changes: dict[str, Any]) -> Json:
    """`base` with fields set by dotted path; list indices are numbers, MISSING removes."""
    result = copy.deepcopy(base)
    for path, value in changes.items():
        *parents, last = path.split(".")
        node: Any = result
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if value is MISSING:
            node.pop(last)
        else:
            node[last] = value
    return result


@dataclass(frozen=True)
class Bad:
    """`path` is where both verdicts point, `says` what ours says, `server` what the API server says (default: the
    same)."""

    name: str
    changes: dict[str, Any]
    path: str
    says: str
    server: str = ""
    before: dict[str, Any] | None = None
    """For updates: the stored object, as changes to BASE."""
    server_path: str = ""
    """Where the API server points, if not there."""

    @property
    def new(self) -> Json:
        return changed(changed(BASE, self.before or {}), self.changes)

    @property
    def old(self) -> Json | None:
        return None if self.before is None else changed(BASE, self.before)


SCRIPT: dict[str, Any] = {
    "spec.model": MISSING,
    "spec.data": MISSING,
    "spec.command": ["python", "train.py", "--epochs=3"],
}
