"""What `make test` installs by itself, and what it says where it cannot."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.cluster.rig import machine


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that are run instead of really installing, on a Debian machine of root's without libseccomp."""
    run: list[list[str]] = []

    def done(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        run.append(command)
        return subprocess.CompletedProcess(command, 0, "")

    monkeypatch.setattr(machine.subprocess, "run", done)
    monkeypatch.setattr(machine, "_present", lambda name: name != "libseccomp")
    monkeypatch.setattr(machine.shutil, "which", lambda name, **_: f"/usr/bin/{name}")
    monkeypatch.setattr(machine.os, "geteuid", lambda: 0)
    monkeypatch.delenv("FINETUNE_NO_APT", raising=False)
    return run


def test_root_on_debian_installs_what_is_missing(commands: list[list[str]]) -> None:
    said: list[str] = []
    machine.install_debian_packages(say=said.append)
    assert [command[:2] for command in commands] == [["apt-get", "update"], ["apt-get", "install"]]
    assert commands[1][-1] == "libseccomp-dev"
    assert "libseccomp-dev" in said[0]


@pytest.mark.parametrize("obstacle", ["FINETUNE_NO_APT=1", "not on Debian", "not root"])
def test_otherwise_one_command_is_printed(
    obstacle: str, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle == "not root":
        monkeypatch.setattr(machine.os, "geteuid", lambda: 1000)
    elif obstacle == "not on Debian":
        monkeypatch.setattr(machine.shutil, "which", lambda *_, **__: None)
    else:
        monkeypatch.setenv("FINETUNE_NO_APT", "1")
    said: list[str] = []
    machine.install_debian_packages(say=said.append)
    assert commands == []
    (line,) = said
    assert obstacle in line
    assert line.endswith("apt-get update && apt-get install -y --no-install-recommends libseccomp-dev")


def test_nothing_is_said_where_nothing_is_missing(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine, "_present", lambda _: True)
    machine.install_debian_packages()
    assert commands == []
    assert capsys.readouterr().out == ""
