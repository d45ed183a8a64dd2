"""pyproject.toml asks for what is imported, and for no less."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"finetune_api", "finetune_operator", "finetune_trainer"}

MODULES = {
    "yaml": "pyyaml",
    "prometheus_client": "prometheus-client",
    "huggingface_hub": "huggingface-hub",
    "liger_kernel": "liger-kernel",
    "mlflow": "mlflow-skinny",
}
"""Imported by another name than installed by."""


def imported(package: Path) -> Iterator[str]:
    """Packages by the name under which they are installed."""
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            tops = {name.partition(".")[0] for name in names}
            yield from (MODULES.get(top, top) for top in tops - OURS - sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("package", "extras"),
    [
        ("crds/finetune_api", ()),
        ("operator/finetune_operator", ("operator",)),
        ("trainer/finetune_trainer", ("trainer", "qlora", "trackers", "deepspeed", "kernels")),
    ],
)
def test_all_that_is_imported_is_asked_for(package: str, extras: tuple[str, ...]) -> None:
    asked = [*PROJECT["dependencies"]]
    for extra in extras:
        asked += PROJECT["optional-dependencies"][extra]
    known = {re.split(r"[<>=!\[ ]", requirement)[0].lower() for requirement in asked}

    assert set(imported(ROOT / package)) - known == set()
