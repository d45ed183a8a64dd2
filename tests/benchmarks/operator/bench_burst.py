"""A burst of jobs on this operator, on Kubeflow Trainer with JobSet, and on no operator at all, one after the other.

    python -m tests.benchmarks.operator.bench_burst [--sizes 100 500 1000] [--sides ours kubeflow bare] [--rounds 1]

Then 200 jobs run while pods fail, on both operators, and ours is started again among 5000 jobs, of which 200 run.

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
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.cluster.rig import Rig, build

from .api import Api
from .burst import burst
from .existing import existing
from .kubeflow import RESTARTING, Kubeflow
from .restarts import restarts
from .scale import wide_rig
from .sides import Bare, Ours, Side
from .table import print_bursts, print_existing, print_restarts

SIDES = ("kubeflow", "ours", "bare")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[100, 500, 1000], metavar="JOBS", help="of bursts")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--rounds", type=int, default=1, help="bursts of each size on each side")
    parser.add_argument("--running", type=int, default=200, metavar="JOBS", help="while pods fail, and at a restart")
    parser.add_argument("--failures", type=int, default=50, metavar="PODS", help="that fail in turn; 0: no such run")
    parser.add_argument("--existing", type=int, default=5000, metavar="JOBS", help="at a restart; 0: no such run")
    parser.add_argument("--out", type=Path, help="file to which every run's figures are added, a JSON line each")
    options = parser.parse_args()
    with (
        wide_rig(*(build.RIVAL if "kubeflow" in options.sides else ())) as rig,
        tempfile.TemporaryDirectory() as folder,
    ):
        asyncio.run(_run(rig, Path(folder), options))
    return 0


async def _run(rig: Rig, folder: Path, options: argparse.Namespace) -> None:
    ours = Ours(rig, folder)
    made: dict[str, Side] = {"ours": ours, "bare": Bare(), "kubeflow": Kubeflow(rig)}
    for name in options.sides:
        print(f"{name}: {made[name].versions()}", flush=True)
    print(f"Kubernetes {build.KUBERNETES}, etcd {build.BINARIES['etcd'].version}\n", flush=True)
    keep = Keeper(options.out)
    async with Api.of(rig) as api:
        for count in options.sizes:
            for round in range(options.rounds):
                for name in options.sides if round % 2 == 0 else reversed(options.sides):
                    keep("burst", await burst(api, rig, made[name], count=count))
        if keep.rows["burst"]:
            print_bursts(keep.rows["burst"])
        restarting: dict[str, Side] = {"ours": ours, "kubeflow": Kubeflow(rig, runtime=RESTARTING)}
        for name in options.sides if options.failures else ():
            if side := restarting.get(name):
                row = await restarts(api, rig, side, running=options.running, failures=options.failures)
                keep("restarts", row)
        if keep.rows["restarts"]:
            print_restarts(keep.rows["restarts"])
        if options.existing and "ours" in options.sides:
            running = min(options.running, options.existing)
            keep("existing", await existing(api, rig, ours, count=options.existing, running=running))
            print_existing(keep.rows["existing"])


class Keeper:
    """Every figure at once where it is safe: on stderr, and in a file."""

    def __init__(self, file: Path | None) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._file = file

    def __call__(self, what: str, row: dict[str, Any]) -> None:
        self.rows[what].append(row)
        line = json.dumps({"what": what, **row})
        print(line, file=sys.stderr, flush=True)
        if self._file:
            with self._file.open("a") as out:
                out.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
