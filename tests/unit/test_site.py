"""The documentation builds as a site: every link and anchor leads somewhere, and browsers fetch nothing elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.documents import ROOT
from tools import docs_site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built strictly: a broken link or a missing anchor ends it."""
    return docs_site.built(tmp_path_factory.mktemp("site"))


def test_a_browser_fetches_nothing_from_another_host(site: Path) -> None:
    assert docs_site.external_requests(site) == []


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.html", '<script src="https://unpkg.com/x.js"></script>', True),
        ("a.html", "<link rel=stylesheet href=//fonts.example/x.css>", True),
        ("a.css", "@font-face{src:url(https://fonts.example/x.woff)}", True),
        ("a.html", '<a href="https://semver.org">a link is followed by a person</a><img src="flow.svg">', False),
    ],
)
def test_such_a_request_would_be_found(tmp_path: Path, name: str, content: str, found: bool) -> None:
    (tmp_path / name).write_text(content)

    assert bool(docs_site.external_requests(tmp_path)) is found


def test_every_page_is_found_by_search_and_by_language_models(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text())
    searched = {entry["location"].partition("#")[0] for entry in index["docs"]}
    listed = re.findall(r"^- \[.+\]\((\S+)\): \S", (site / "llms.txt").read_text(), re.MULTILINE)
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}

    assert {page.replace(".md", ".html") for page in pages} <= searched
    assert set(listed) == pages
    assert all((site / page).exists() for page in listed)


def test_a_page_that_the_navigation_does_not_name_is_added(tmp_path: Path) -> None:
    for name in ("index.md", "new.md"):
        (tmp_path / name).write_text("# A page")

    config = docs_site.on_config({"docs_dir": str(tmp_path), "nav": [{"Home": "index.md"}]})
    assert config["nav"] == [{"Home": "index.md"}, {"More": ["new.md"]}]


def test_files_outside_docs_come_along(site: Path) -> None:
    linked = re.findall(r'href="\.\./?(repository/[^"#]+)', (site / "operations.html").read_text())
    linked += re.findall(r'href="(repository/[^"#]+)', (site / "operations.html").read_text())

    assert linked
    assert all((site / each).exists() for each in linked)


def test_the_version_switch_lists_the_version(site: Path) -> None:
    assert [each["version"] for each in json.loads((site.parent / "versions.json").read_text())] == [site.name]
