"""A burst of jobs on this operator, on Kubeflow Trainer with JobSet, and on no operator at all, one after the other.

    python -m tests.benchmarks.operator.bench_burst [--sizes 100 500 1000] [--sides ours kubeflow bare] [--rounds 1]

Each job is a gang of two pods on nodes that KWOK plays, so that nothing but the control plane works. All sides meet the
same API server in one run and take turns; a side's controllers run only during its own burst, as processes of this
machine, with the settings that they ship with. Prints a table and, with --out, writes every figure as JSON lines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.cluster.rig import Rig, build

from .api import Api
from .burst import burst
from .kubeflow import Kubeflow
from .scale import wide_rig
from .sides import Bare, Ours, Side
from .table import print_bursts

SIDES = ("kubeflow", "ours", "bare")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 500, 1000], metavar="JOBS")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--rounds", type=int, default=1, help="bursts of each size on each side")
    parser.add_argument("--out", type=Path, help="file to which every burst's figures are added, a JSON line each")
    options = parser.parse_args()
    with (
        wide_rig(*(build.RIVAL if "kubeflow" in options.sides else ())) as rig,
        tempfile.TemporaryDirectory() as folder,
    ):
        made: dict[str, Side] = {"ours": Ours(rig, Path(folder)), "bare": Bare(), "kubeflow": Kubeflow(rig)}
        sides = [made[name] for name in options.sides]
        for side in sides:
            print(f"{side.name}: {side.versions()}", flush=True)
        print(f"Kubernetes {build.KUBERNETES}, etcd {build.BINARIES['etcd'].version}", flush=True)
        rows = asyncio.run(_bursts(rig, sides, options))
    print_bursts(rows)
    return 0


async def _bursts(rig: Rig, sides: list[Side], options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    async with Api.of(rig) as api:
        for count in options.sizes:
            for round in range(options.rounds):
                for side in sides if round % 2 == 0 else reversed(sides):
                    row = await burst(api, rig, side, count=count)
                    rows.append(row)
                    print(json.dumps(row), file=sys.stderr, flush=True)
                    if options.out:
                        with options.out.open("a") as out:
                            out.write(json.dumps(row) + "\n")
    return rows


if __name__ == "__main__":
    sys.exit(main())
