"""What the pages in docs/tasks show of a command: a block between two comments, with a digest.

    <!-- output 3f0a…: written by python -m tests.proof.tasks support-bot -->
    …
    <!-- end of output -->

The digest is that of the page's manifests and of the block, so a test sees when one changed without the other.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from tests.support.documents import ROOT, manifests

PAGES = ROOT / "docs" / "tasks"
END = "<!-- end of output -->"
_BLOCK = re.compile(
    rf"<!-- output (?P<digest>\w+): written by python -m tests\.proof\.tasks (?P<name>\S+) -->\n(?P<text>.*?)\n{END}",
    re.S,
)


def pages() -> list[Path]:
    return sorted(page for page in PAGES.glob("*.md") if page.name != "index.md")


def block_of(page: Path) -> re.Match[str] | None:
    """With the groups digest, name and text."""
    return _BLOCK.search(page.read_text())


def digest(page: Path, text: str) -> str:
    return hashlib.sha256("\0".join([*manifests(page), text]).encode()).hexdigest()[:16]


def write(page: Path, text: str) -> None:
    """Puts the block in place of the last one. ValueError if the page has none: where it stands is for people."""
    if (found := block_of(page)) is None:
        raise ValueError(f"{page.name} has no block of output to replace")
    head = f"<!-- output {digest(page, text)}: written by python -m tests.proof.tasks {page.stem} -->"
    content = page.read_text()
    page.write_text(f"{content[: found.start()]}{head}\n{text}\n{END}{content[found.end() :]}")
