"""`make pictures`: the pictures of the README and the docs.

    docs/watch.svg   what `finetune watch tickets` shows while examples/tickets is trained on the packaged model
    docs/report.png  the top of the report of the last `make demo`, as Chromium shows it

A picture whose source is missing is skipped by name: Chromium is Debian's package `chromium`, or the program that
CHROMIUM names. Nothing is drawn by hand, and only the paths of this folder and the cache are left out of a picture.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.chromium import browser  # noqa: E402  # tools/ is not a package that could be installed

CACHE = Path(os.environ.get("FINETUNE_CACHE", Path.home() / ".cache" / "finetune-operator"))
REPORT, WATCH = ROOT / "docs" / "report.png", ROOT / "docs" / "watch.svg"
SIDE = 1000
"""Pixels of the report's picture."""
COLUMNS = 100
LINE, COLUMN, MARGIN = 19, 8.43, 16
"""Pixels of a terminal's line and column, and around all of them."""


def main() -> int:
    parser = argparse.ArgumentParser(description="The pictures of the README and the docs.")
    parser.add_argument("--demo", type=Path, default=ROOT / ".finetune" / "demo", help="folder of the demo")
    parser.add_argument("--only", choices=("report", "watch"), help="only this one")
    options = parser.parse_args()
    if options.only != "report":
        WATCH.write_text(svg(watched(ROOT / ".finetune" / "pictures"), title="finetune watch tickets"))
        print(f"pictures: {WATCH.relative_to(ROOT)}")
    if options.only != "watch":
        print(f"pictures: {REPORT.relative_to(ROOT)}{_report(options.demo / 'output' / 'report.html')}")
    return 0


def _report(page: Path) -> str:
    """Why there is no picture; empty where there is one."""
    if not page.exists():
        return f" skipped: {page} is missing; run `make demo` first"
    if (program := browser()) is None:
        return " skipped: there is no Chromium (apt-get install chromium)"
    photograph(program, page, REPORT)
    return ""


def watched(folder: Path) -> list[str]:
    """The last lines of the terminal that have a time left, of a run that this starts."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "examples" / "tickets", folder)
    subprocess.run([sys.executable, str(ROOT / "tools" / "models.py")], check=True)
    job = yaml.safe_load((folder / "job.yaml").read_text())
    job["spec"]["model"] = {"uri": (CACHE / "models" / "SmolLM2-135M-Instruct").as_uri()}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    finetune = str(Path(sys.executable).with_name("finetune"))
    run = subprocess.Popen([finetune, "run", "job.yaml"], cwd=folder, stdout=subprocess.DEVNULL)
    shown: list[str] = []
    while run.poll() is None:
        time.sleep(2)
        lines = _terminal([finetune, "watch", "tickets", "--once"], folder)
        if any(line.endswith(" left") for line in lines):
            shown = lines
    if run.returncode != 0 or not shown:
        raise SystemExit(f"pictures: the run ended with {run.returncode}; see `finetune logs tickets` in {folder}")
    return shown


def _terminal(command: Sequence[str], folder: Path) -> list[str]:
    """What a command prints on a terminal."""
    code = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    environment = {**os.environ, "COLUMNS": str(COLUMNS + 1), "LINES": "40"}
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=folder, env=environment, capture_output=True)
    return shortened(done.stdout.decode()).splitlines() if done.returncode == 0 else []


def shortened(text: str) -> str:
    """Without the paths of this checkout and of the cache, where the packaged model is."""
    for folder in (ROOT, CACHE):
        text = text.replace(f"{folder.as_uri()}/", "").replace(f"{folder}/", "")
    return text


def svg(lines: Sequence[str], *, title: str) -> str:
    """A terminal with these lines. It has no font of its own, so that a browser fetches nothing."""
    width = round(2 * MARGIN + COLUMN * max(map(len, [title, *lines])))
    height = 2 * MARGIN + LINE * (len(lines) + 1)
    rows = [f'<text x="{MARGIN}" y="{MARGIN + LINE - 5}" class="title">$ {escape(title)}</text>']
    for number, line in enumerate(lines, start=1):
        y = MARGIN + LINE * (number + 1) - 5
        rows.append(f'<text x="{MARGIN}" y="{y}" textLength="{COLUMN * len(line):.1f}">{escape(line)}</text>')
    style = "text{font:14px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#d8dee9;white-space:pre}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">\n'
        f"<title>{escape(title)}</title>\n<style>{style}.title{{fill:#88c0d0}}</style>\n"
        f'<rect width="{width}" height="{height}" rx="8" fill="#1f2430"/>\n' + "\n".join(rows) + "\n</svg>\n"
    )


def photograph(program: str, page: Path, picture: Path) -> None:
    """The top of a page, without this machine's paths in it."""
    with tempfile.TemporaryDirectory() as temporary:
        shown = Path(temporary) / "report.html"
        shown.write_text(shortened(page.read_text()))
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={temporary}/profile", f"--window-size={SIDE},{SIDE}", f"--screenshot={picture}"]
        subprocess.run([*command, shown.as_uri()], check=True, capture_output=True, timeout=300)


if __name__ == "__main__":
    sys.exit(main())
