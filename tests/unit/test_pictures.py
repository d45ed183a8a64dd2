"""`make pictures`: what a terminal shows as an SVG, without fonts of other hosts."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.documents import ROOT
from tools import pictures

TEXT = "{http://www.w3.org/2000/svg}text"


def test_an_svg_has_every_line_as_text_and_fetches_nothing() -> None:
    drawn = pictures.svg(["sentiment  Running", "█▆▃▁  loss 4 < 5 & more"], title="finetune watch sentiment")
    tree = ElementTree.fromstring(drawn)
    assert [each.text for each in tree.iter(TEXT)] == [
        "$ finetune watch sentiment", "sentiment  Running", "█▆▃▁  loss 4 < 5 & more",
    ]  # fmt: skip
    assert drawn.count("http") == 1  # the namespace
    assert "url(" not in drawn


def test_paths_of_this_machine_are_not_in_a_picture() -> None:
    assert pictures.shortened(f"artifact  {ROOT.as_uri()}/.finetune/out {ROOT}/x") == "artifact  .finetune/out x"
    assert pictures.shortened(f"lora on {pictures.CACHE.as_uri()}/models/SmolLM2") == "lora on models/SmolLM2"
    for picture in (pictures.WATCH, pictures.REPORT):
        assert str(ROOT).encode() not in picture.read_bytes()


def test_a_picture_without_its_source_is_skipped_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["pictures.py", "--only", "report", "--demo", str(tmp_path)])
    assert pictures.main() == 0
    assert "docs/report.png skipped" in capsys.readouterr().out
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "report.html").write_text("<h1>report</h1>")
    monkeypatch.setattr(pictures, "browser", lambda: None)
    assert pictures.main() == 0
    assert "there is no Chromium" in capsys.readouterr().out


def test_without_a_browser_there_is_no_name_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert pictures.browser() is None
