"""A wheel without the shared libraries that nobody there will load: slim.py WHEEL --keep NAME …"""

from __future__ import annotations

import argparse
import os
import sys
import zipfile
from pathlib import Path


def slim(wheel: Path, keep: set[str]) -> int:
    """Bytes that are left. Every library goes but those called `keep`, from the files and from their record."""
    new = wheel.with_name(wheel.name + ".new")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED) as made:
        gone = {name for name in old.namelist() if name.endswith(".so") and Path(name).name not in keep}
        kept = {Path(name).name for name in old.namelist() if name.endswith(".so") and name not in gone}
        if kept != keep:
            raise SystemExit(f"slim: {wheel.name} has no {', '.join(sorted(keep - kept))}")
        for entry in old.infolist():
            if entry.filename in gone:
                continue
            content = old.read(entry)
            if entry.filename.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                content = "".join(line for line in lines if line.partition(",")[0] not in gone).encode()
            made.writestr(entry, content)
    os.replace(new, wheel)
    return wheel.stat().st_size


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--keep", nargs="+", default=[])
    options = parser.parse_args()
    print(f"slim: {options.wheel.name}, {slim(options.wheel, set(options.keep)) / 2**20:.1f} MiB", file=sys.stderr)
