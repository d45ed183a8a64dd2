"""Runs the benchmarks one after another, on a machine that does nothing else meanwhile. They decide nothing in CI."""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main() -> int:
    scripts = {script.stem.removeprefix("bench_"): script for script in sorted(HERE.glob("*/bench_*.py"))}
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all of them")
    parser.add_argument("--list", action="store_true", help="print the names and exit")
    parser.epilog = f"Names: {', '.join(scripts)}. All of them take hours."
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(scripts):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(scripts)}")
    if chosen.list:
        print("\n".join(scripts))
        return 0
    missed = 0
    for script in (scripts[name] for name in chosen.names or scripts):
        print(f"== {script.relative_to(ROOT)}", flush=True)
        module = ".".join(script.relative_to(ROOT).with_suffix("").parts)
        missed += subprocess.run([sys.executable, "-m", module], cwd=ROOT, check=False).returncode != 0
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
