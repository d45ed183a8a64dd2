"""What the documents say to type, so that tests can type it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def commands(document: Path) -> list[str]:
    """Lines of the ```sh blocks, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", document.read_text(), re.S)
    lines = [line.split("  #")[0].split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def other_manifests(document: Path) -> list[str]:
    """The ```yaml blocks of other kinds, for a cluster's administrators."""
    blocks = re.findall(r"```yaml\n(.*?)```", document.read_text(), re.S)
    return [block for block in blocks if "kind: FineTuneJob" not in block]


def manifests(document: Path) -> list[str]:
    """The ```yaml blocks that are FineTuneJobs."""
    return [b for b in re.findall(r"```yaml\n(.*?)```", document.read_text(), re.S) if "kind: FineTuneJob" in b]
