"""Runs the unit tests where it should make no difference: other vector units, seeds or order, a busy machine,
threads that are held up.

    python tools/shake.py [VARIANT ...] [-- PYTEST ARGUMENTS]

A test that fails here depends on rounding, on a processor, on its neighbours or on a time. Prints the failed tests by
variant; the exit code is 1 if there are any. Each variant takes as long as the unit tests.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to run the same tests."""

    environment: dict[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    burners: int = 0  # other processes that use the machine meanwhile


VARIANTS = {
    "no-vectors": Variant(environment={"ATEN_CPU_CAPABILITY": "default"}),
    "avx2": Variant(environment={"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}),
    "onednn-avx2": Variant(environment={"ONEDNN_MAX_CPU_ISA": "AVX2"}),
    "seed": Variant(arguments=("--shake-seed", "1")),
    "order": Variant(arguments=("--shake-order", "1")),
    "load": Variant(burners=4),
    "threads": Variant(arguments=("--shake-threads", "1"), burners=1),
}
BURN = "while True: sum(range(100000))"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/shake.py", description=__doc__.partition("\n")[0])
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"of {', '.join(VARIANTS)}; by default all")
    words, rest = sys.argv[1:], ["tests/unit"]
    if "--" in words:
        words, rest = words[: words.index("--")], words[words.index("--") + 1 :]
    chosen = parser.parse_args(words)
    if unknown := set(chosen.variants) - set(VARIANTS):
        parser.error(f"no variant is called {', '.join(sorted(unknown))}; there are {', '.join(VARIANTS)}")
    red = {name: run(VARIANTS[name], rest) for name in chosen.variants or VARIANTS}
    for name, tests in red.items():
        print(f"{name}: {'passed' if not tests else f'{len(tests)} failed'}")
        print("".join(f"   {test}\n" for test in tests), end="")
    return 1 if any(red.values()) else 0


def run(variant: Variant, rest: list[str]) -> list[str]:
    """The tests that failed, by name."""
    burners = [
        subprocess.Popen([sys.executable, "-c", BURN], preexec_fn=lambda: os.nice(10)) for _ in range(variant.burners)
    ]
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadgroup", "-p", "tests.support.shuffled", "-rfE"]
    try:
        done = subprocess.run(
            [*command, *variant.arguments, *rest], cwd=ROOT, env={**os.environ, **variant.environment},
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    red = [line.split(" - ")[0] for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return red or ([f"pytest ended with {done.returncode}: {done.stdout[-500:]}"] if done.returncode else [])


if __name__ == "__main__":
    sys.exit(main())
