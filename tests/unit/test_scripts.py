"""Every script that a person starts explains itself: `--help` prints help and starts nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    file
    for folder in ("tools", "tests/benchmarks")
    for file in (ROOT / folder).rglob("*.py")
    if "rivals" not in file.parts and 'if __name__ == "__main__":' in file.read_text()
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_arguments_are_parsed(script: Path) -> None:
    calls = [node.func for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)]
    assert any(isinstance(function, ast.Attribute) and function.attr == "parse_args" for function in calls)


EXAMPLES = [file for file in sorted((ROOT / "examples").glob("*.yaml")) if "\n  command:" in file.read_text()]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.name)
def test_the_command_of_an_example_has_the_options_of_its_script(example: Path) -> None:
    _, script, *options = yaml.safe_load(example.read_text())["spec"]["command"]
    text = (ROOT / "examples" / Path(script).name).read_text()
    compile(text, script, "exec")
    assert [option for option in options if f'"{option.partition("=")[0]}"' not in text] == []
    assert f"--from-file=examples/{Path(script).name}" in example.read_text()


@pytest.mark.parametrize("words", [["-m", "tests.benchmarks"], ["tools/check.py"]], ids=["benchmarks", "check"])
def test_help_starts_nothing(words: list[str]) -> None:
    done = subprocess.run([sys.executable, *words, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0
    assert done.stdout.startswith("usage:")
    assert "==" not in done.stdout
