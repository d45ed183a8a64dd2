"""`make bench`: every benchmark in turn, on a machine that does nothing else meanwhile. They decide nothing in CI."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

missed = 0
for script in sorted(HERE.glob("*/bench_*.py")):
    print(f"== {script.relative_to(HERE.parents[1])}", flush=True)
    module = ".".join(script.relative_to(HERE.parents[1]).with_suffix("").parts)
    missed += subprocess.run([sys.executable, "-m", module], cwd=HERE.parents[1], check=False).returncode != 0
sys.exit(1 if missed else 0)
