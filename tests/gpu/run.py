"""The trainer on the GPU of this machine: right, as large as planned, how fast, and where the time goes.

    python tests/gpu/run.py --out DIR [--budget 480] [--only right/numbers fast/1b-full …]
    python tests/gpu/run.py --out DIR --rehearsal        the same on CPUs, with tiny sizes and doubles for the rivals

DIR gets results.json, whole after every check, a log, and the table of docs/benchmarks.md. No part takes another one
along: each is a process with its own limit. Exits 1 where something is not right; a missed target is no error.
"""

from __future__ import annotations

import argparse
import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def find_packages() -> None:
    """Our packages from the tree. `tests` by name, for a package of that name may be installed here; and this folder is
    no place to import from, or its modules would hide others of their names."""
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [str(ROOT / "crds"), str(ROOT / "trainer"), *(path for path in sys.path if path != here)]
    package = types.ModuleType("tests")
    package.__path__ = [str(ROOT / "tests")]
    sys.modules["tests"] = package


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--budget", type=float, default=480, help="seconds for everything")
    parser.add_argument("--only", nargs="+", default=[], help="parts, by how their names begin")
    parser.add_argument("--rehearsal", action="store_true")
    parser.add_argument("--rivals", choices=["real", "doubles"], help="default: doubles in the rehearsal alone")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--notes", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    doubles = options.rivals == "doubles" if options.rivals else options.rehearsal
    if options.part:
        from tests.gpu.kit import work

        return work(options.part, options.notes, rehearsal=options.rehearsal, doubles=doubles, out=options.out)
    from tests.gpu.conduct import conduct

    return conduct(
        options.out.resolve(),
        budget=options.budget,
        only=options.only,
        doubles=doubles,
        begin=begin if options.rehearsal else None,
    )


def begin(arguments: list[str], environ: dict[str, str], folder: str, log: str) -> None:
    """A part in a process that was forked, see tests/gpu/nursery.py: as if this file were run with the arguments."""
    os.setsid()
    os.chdir(folder)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv[1:] = arguments
    find_packages()
    sys.exit(main())


if __name__ == "__main__":
    find_packages()
    sys.exit(main())
