"""`make demo`, on fewer rows: a real model on real text by two processes, and no port beyond loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.real_model, pytest.mark.timeout(600)]


def open_ports(process: psutil.Process) -> set[str]:
    """Addresses on which the process or a descendant listens, now."""
    found: set[str] = set()
    for one in [process, *process.children(recursive=True)]:
        try:
            found |= {c.laddr.ip for c in one.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue
    return found


def test_the_demo_tunes_measures_and_reports(tmp_path: Path) -> None:
    command = [
        sys.executable,
        ROOT / "tools" / "demo.py",
        "--folder",
        tmp_path,
        "--rows",
        "32",
        "--heldout",
        "6",
        "--general",
        "3",
    ]
    with (tmp_path / "log").open("w+") as log:
        process = psutil.Popen(command, cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT)
        listening: set[str] = set()
        while process.poll() is None:
            listening |= open_ports(process)
            time.sleep(0.5)
        log.seek(0)
        said = log.read()

    assert process.returncode == 0, said[-4000:]
    assert listening, "two nodes meet somewhere"
    assert all(address.startswith("127.") or address == "::1" for address in listening), listening
    for word in ("test", "general", "tweets", "amazon", "nyt", "report.html"):
        assert word in said
    record = json.loads((tmp_path / "output" / "run.json").read_text())
    assert record["plan"]["worldSize"] == 2
    assert (tmp_path / "output" / "adapter_model.safetensors").exists()
    assert (tmp_path / "output" / "manifest.json").exists()
    assert "<svg" in (tmp_path / "output" / "report.html").read_text()
