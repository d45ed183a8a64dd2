"""What the documents say to type, so that tests can type it."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "finetune-operator" / "README.md"
DOCUMENTS = (ROOT / "README.md", CHART, *sorted((ROOT / "docs").rglob("*.md")))


def commands(document: Path) -> list[str]:
    """Lines of the ```sh blocks, without comments. A line that ends in a backslash goes on in the next."""
    blocks = re.findall(r"```sh\n(.*?)```", re.sub(r" *\\\n *", " ", document.read_text()), re.S)
    lines = [line.split("  #")[0].split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def other_manifests(document: Path) -> list[str]:
    """The ```yaml blocks of other kinds, for a cluster's administrators."""
    blocks = re.findall(r"```yaml\n(.*?)```", document.read_text(), re.S)
    return [block for block in blocks if "kind: " in block and "kind: FineTuneJob" not in block]


def alert_routing() -> str:
    """The ```yaml block that is Alertmanager's configuration."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.S)
    (block,) = (block for block in blocks if block.startswith("route:"))
    return block


def manifests(document: Path) -> list[str]:
    """The ```yaml blocks that are FineTuneJobs."""
    return [b for b in re.findall(r"```yaml\n(.*?)```", document.read_text(), re.S) if "kind: FineTuneJob" in b]
