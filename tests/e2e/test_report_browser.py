"""The report in headless Chromium: every section that there is, on a phone and on a desk, without a word on the
console, a request, or anything that has to be scrolled sideways."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from finetune_trainer.report import html
from finetune_trainer.report.html import render
from tests.support.chromium import browser, chromium
from tests.support.full_report import full_record
from tests.support.small_report import record


def test_the_full_report_has_every_section_of_the_page() -> None:
    """A new section is opened in the browser too: tests/support/full_report.py needs its part of the record."""
    assert re.findall(r"<h2>(.*?)</h2>", render(full_record())) == re.findall(
        r'_section\("(.*?)"', inspect.getsource(html)
    )


@pytest.mark.timeout(120)
def test_the_report_opens_without_an_error_on_a_phone_and_on_a_desk(tmp_path: Path) -> None:
    program = browser()
    if program is None:
        pytest.skip("no Chromium (Debian: apt-get install chromium-headless-shell)")
    pages = {"full": full_record(), "small": record()}
    for name, each in pages.items():
        (tmp_path / f"{name}.html").write_text(render(each))
    (tmp_path / "bad.html").write_text(
        "<main><script>console.error('no'); missing()</script><img src='http://127.0.0.1:9/x'>"
        "<p style='width:5000px'>x</p></main>"
    )
    with chromium(program, tmp_path / "profile") as opened:
        bad = opened.visit(tmp_path / "bad.html", width=360)
        assert len(bad.logged) >= 2
        assert (bad.requested, bad.scroll_width > 360, len(bad.cut)) == (["http://127.0.0.1:9/x"], True, 1)
        for name in pages:
            for width in (360, 1400):
                seen = opened.visit(tmp_path / f"{name}.html", width=width)
                assert (seen.logged, seen.requested, seen.cut) == ([], [], []), (name, width)
                assert seen.scroll_width <= width, (name, width)
