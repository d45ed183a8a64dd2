"""`make audit` without a network: the lock file, the licences of what is installed, and a service's answers."""

from __future__ import annotations

import json
from email.message import Message

import pytest

from tools import audit

PACKAGES = (("torch", "2.11.0"), ("jinja2", "3.1.6"))


def test_each_package_of_the_lock_is_read() -> None:
    text = audit.LOCK.read_text()
    found = audit.locked(text)

    assert len(found) == sum(line[:1].isalnum() for line in text.splitlines())
    assert {"torch", "aiohttp", "kopf"} <= {name for name, _ in found}
    twice = 'a==1 ; python_version < "3.13" \\\n    --hash=sha256:0\na==2 ; python_version >= "3.13" \\\n'
    assert audit.locked(twice) == (("a", "1"), ("a", "2"))


def test_the_licences_of_what_is_installed_are_acceptable() -> None:
    licences = audit.installed(name for name, _ in audit.locked(audit.LOCK.read_text()))

    assert len(licences) > 50
    assert audit.objections(licences) == []


@pytest.mark.parametrize(
    ("name", "licence", "accepted"),
    [
        ("a", "MIT", True),
        ("a", "MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("a", "MIT AND GPL-3.0-only", False),
        ("a", "MIT License; GNU General Public License v3 (GPLv3)", False),
        ("a", "Other/Proprietary License", False),
        ("a", "", False),
        ("nvidia-nccl-cu12", "LicenseRef-NVIDIA-Proprietary", True),
    ],
)
def test_a_licence_is_judged_by_all_its_parts(name: str, licence: str, accepted: bool) -> None:
    assert (audit.objections({name: licence}) == []) is accepted


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License-Expression": "MIT", "License": "x"}, "MIT"),
        ({"Classifier": "License :: OSI Approved :: BSD License"}, "BSD License"),
        ({"License": "Apache 2.0\nand a long text"}, "Apache 2.0"),
        ({}, ""),
    ],
)
def test_where_a_package_names_its_licence(fields: dict[str, str], licence: str) -> None:
    found = Message()
    for name, value in fields.items():
        found[name] = value

    assert audit.licence_of(found) == licence  # type: ignore[arg-type]


def test_a_vulnerable_package_is_named_with_its_advisories() -> None:
    assert json.loads(audit.query(PACKAGES))["queries"][1]["package"]["name"] == "jinja2"
    answer = {"results": [{"vulns": [{"id": "GHSA-b"}, {"id": "CVE-a"}]}, {}]}

    assert audit.vulnerabilities(PACKAGES, json.dumps(answer).encode()) == ["torch 2.11.0: CVE-a, GHSA-b"]


@pytest.mark.parametrize("answer", [b"{}", b'{"results": []}', b"<html>"])
def test_an_answer_that_says_something_else_is_no_clean_bill(answer: bytes) -> None:
    with pytest.raises(ValueError, match=r"result|Expecting"):
        audit.vulnerabilities(PACKAGES, answer)


def test_a_service_that_does_not_answer_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FINETUNE_ADVISORIES", "http://127.0.0.1:9")
    monkeypatch.setattr("sys.argv", ["audit.py"])

    assert audit.main() == 0
    assert "vulnerabilities skipped, http://127.0.0.1:9 does not answer" in capsys.readouterr().out
