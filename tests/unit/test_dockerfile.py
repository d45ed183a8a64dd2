"""The Dockerfile, without Docker: what it copies is there, and what it installs is pinned."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_what_is_copied_is_there_and_is_all_that_the_wheel_needs() -> None:
    copied = [word for line in re.findall(r"^COPY (.*)$", TEXT, re.MULTILINE) for word in line.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) <= set(copied)


@pytest.mark.parametrize("target", ["operator", "trainer"])
def test_every_package_of_an_image_is_pinned(target: str) -> None:
    stage = TEXT.partition(f" AS {target}\n")[2].partition("\nFROM ")[0]
    (extras,) = re.findall(r"\.whl\)\[([a-z,]+|\$EXTRAS)\]", stage)
    if extras == "$EXTRAS":
        (extras,) = re.findall(r"^ARG EXTRAS=([a-z,]+)$", stage, re.MULTILINE)
        extras += ",trackers"
    pattern = re.search(r"sed -n 's/(.*)/\\1/p'", TEXT)
    assert pattern
    lock = (ROOT / "requirements.lock").read_text()
    python = pattern[1].replace(r"\(", "(").replace(r"\)", ")")
    pinned = dict(line.split("==") for line in re.findall(python, lock, re.MULTILINE))
    asked = [*PROJECT["project"]["dependencies"]]
    for extra in extras.split(","):
        asked += PROJECT["project"]["optional-dependencies"][extra]
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement
