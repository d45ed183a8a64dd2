"""`python -m tests.matrix [--only METHOD] [FAMILY…]`: trains all families, or those named.

With `--only` the results of the other methods stay as they are."""

from __future__ import annotations

import argparse
import datetime
import fcntl
import json
import sys
import time

import peft
import torch
import transformers

from tests.support.model_families import FAMILIES

from .cells import METHODS, Cell, cell
from .table import PAGE, RESULTS, page


def main(argv: list[str]) -> int:
    """1 where something fails that is not refused."""
    parser = argparse.ArgumentParser(prog="tests.matrix")
    parser.add_argument("families", nargs="*")
    parser.add_argument("--only", choices=METHODS)
    options = parser.parse_args(argv)
    chosen = [options.only] if options.only else list(METHODS)
    known = json.loads(RESULTS.read_text())["families"] if options.only else FAMILIES
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    failed = False
    for family in options.families or known:
        began = time.monotonic()
        cells = {name: cell(family, name) for name in chosen}
        print(f"{family}: {time.monotonic() - began:.0f} s", flush=True)
        for name, one in cells.items():
            failed |= one["result"] == "fails"
            if one["result"] != "works":
                print(f"    {name} {one['result']}: {one['why']}", flush=True)
        _keep(family, cells)
    return int(failed)


def _keep(family: str, cells: dict[str, Cell]) -> None:
    """Several of these commands may run at once."""
    with RESULTS.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        families = json.loads(file.read() or '{"families": {}}')["families"]
        merged = families.get(family, {}) | cells
        families[family] = {name: merged[name] for name in METHODS if name in merged}
        results = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "torch": torch.__version__.partition("+")[0],
            "families": dict(sorted(families.items())),
        }
        file.truncate(0)
        file.write(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
