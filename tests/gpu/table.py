"""The section "On a GPU" of docs/benchmarks.md, from the results of a run: python -m tests.gpu.table results.json

Without a file it says that no run was made. What the document has between the two marks is replaced, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.gpu import judge
from tests.gpu.judge import Row, facts
from tests.gpu.notes import Check

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- gpu: begin -->", "<!-- gpu: end -->"
TITLE = "## On a GPU"
COMMAND = "```sh\npython tests/gpu/run.py --out results --budget 480\n```"

Results = Mapping[str, Any]


def section(results: Results | None) -> str:
    """In Markdown, from its title to its last line."""
    if results is None:
        return "\n\n".join((TITLE, COMMAND, _NOT_RUN))
    parts = results["parts"]
    blocks = [TITLE, COMMAND, _where(results), _right(parts), _fits(parts), _fast(parts), _timeline(parts)]
    return "\n\n".join(block for block in [*blocks, _missed(results)] if block)


_NOT_RUN = """Not measured: no run on a GPU has been made yet. The command above proves the trainer on a card (losses
next to a CPU's, kernels, every method and strategy, checkpoints to the bit, running out of memory), compares a plan of
memory with the allocator's peak, times it next to TRL and the Trainer with PEFT, and profiles it. Then
`python -m tests.gpu.table results/results.json` writes this section. `make gpu-rehearsal` runs all of it on CPUs with
tiny models, and says nothing about speed. How to run it: [tests/gpu](../tests/gpu/README.md)."""


def _where(results: Results) -> str:
    found = facts(results["parts"], "right/machine")
    smi, packages = found.get("smi") or {}, found.get("versions") or {}
    card = found.get("device") or "no device was seen"
    driver = f", driver {smi['driver']}" if smi.get("driver") else ""
    cuda = f", CUDA {found['cuda']}" if found.get("cuda") else ""
    known = ", ".join(f"{name} {packages[name]}" for name in packages)
    kind = "\n\n**A rehearsal on CPUs: its times say nothing.**" if results["rehearsal"] else ""
    return (
        f"{card}{driver}{cuda}, Python {results['host']['python']}, {results['date']}; `{results['command']}`, "
        f"{results['seconds']:.0f} seconds. {known}.{kind}"
    )


def _right(parts: Mapping[str, Any]) -> str:
    checks = [Check(**c) for name, part in parts.items() if name.startswith("right/") for c in part["checks"]]
    checks += [c for c in judge.judge(parts) if c.limit is not None and not _is_target(c)]
    if not checks:
        return ""
    lines = ["| what has to be right | | value | limit |", "|---|---|---|---|"]
    lines += [
        f"| {check.name} | {_verdict(check)} | {_number(check.value)} | {_number(check.limit)} |" for check in checks
    ]
    return "\n".join(lines)


def _fits(parts: Mapping[str, Any]) -> str:
    lines = [
        "| memory, GiB | tokens | planned | reserved | allocated | plan over reserved |",
        "|---|---|---|---|---|---|",
    ]
    for name in parts:
        found = facts(parts, name)
        if name.startswith("fits/") and found.get("reserved"):
            ratio = found["planned"] / found["reserved"]
            sizes = " | ".join(_gib(found[key]) for key in ("planned", "reserved", "allocated"))
            lines.append(f"| {found['title']} | {found['tokens']:,} | {sizes} | {ratio:.2f} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _fast(parts: Mapping[str, Any]) -> str:
    rows = judge.rows(parts)
    if not rows:
        return ""
    lines = ["| load | side | tokens/s | MFU | reserved, GiB | turns | setting |", "|---|---|---|---|---|---|---|"]
    lines += [_line(row) for row in rows]
    known = dict.fromkeys(f"{row['side']}: {row['versions']}" for row in rows)
    kernels = dict.fromkeys(f"{row['title']}, {row['side']}: {row['computed']}" for row in rows if row["computed"])
    return "\n".join(lines) + "\n\n" + "\n".join(f"- {line}" for line in [*known, *kernels])


def _line(row: Row) -> str:
    side = row["side"] + (" (a double)" if row["double"] else "")
    mfu = f"{row['mfu']:.3f}" if row["mfu"] is not None else "–"
    speed = f"{row['speed']:,.0f}" + (f" (turns within {row['spread']:.1%})" if row["turns"] > 1 else "")
    return f"| {row['title']} | {side} | {speed} | {mfu} | {_gib(row['peak'])} | {row['turns']} | {row['setting']} |"


def _timeline(parts: Mapping[str, Any]) -> str:
    for name in parts:
        found = facts(parts, name)
        if not name.startswith("time/") or not found.get("kernels"):
            continue
        lines = [
            f"Where a step of {found['title']} goes: {1000 * found['seconds_a_step']:.0f} ms, of which the GPU does "
            f"nothing for {found['idle_share']:.1%}; {found['launches_a_step']:.0f} kernels and "
            f"{found['syncs_a_step']:.1f} waits of the host a step.",
            "",
            "| kernel | share | ms | calls |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| `{_plain(k['name'])}` | {k['share']:.1%} | {k['milliseconds']:.1f} | {k['calls']} |"
            for k in found["kernels"]
        ]
        gaps = [
            f"- {g['microseconds']:.0f} µs between `{_plain(g['after'])}` and `{_plain(g['before'])}`"
            for g in found["gaps"]
        ]
        return "\n".join([*lines, "", "The longest gaps:", "", *gaps] if gaps else lines)
    return ""


def _missed(results: Results) -> str:
    """Every target that was missed, and every part that was not run."""
    checks = [Check(**check) for check in results["verdicts"]]
    targets = [check for check in checks if _is_target(check)]
    lines = [
        f"- {check.name}: {_number(check.value)} (target {_number(check.limit)}){_how(check)}" for check in targets
    ]
    own = [Check(**check) for part in results["parts"].values() for check in part["checks"]]
    lines += [
        f"- **failed**: {check.name} ({check.words or _number(check.value)})"
        for check in [*own, *checks]
        if check.verdict == "failed"
    ]
    lines += [f"- not run: {check.name} ({check.words})" for check in own if check.verdict == "skipped"]
    return "\n".join(["Targets, and what was not run:", "", *lines]) if lines else ""


def _is_target(check: Check) -> bool:
    return any(
        word in check.name for word in ("tokens/s", "peak memory", "MFU", "plan of", "waits for", "computes the same")
    )


def _how(check: Check) -> str:
    words = f" {check.words}" if check.words else ""
    return f"{words} **missed**" if check.verdict == "missed" else words


def _verdict(check: Check) -> str:
    return (
        check.verdict
        if check.verdict == "passed"
        else f"**{check.verdict}**{': ' + check.words if check.words else ''}"
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f}"


def _plain(name: str) -> str:
    return name.replace("|", "/").replace("`", "'")[:90]


def written(document: str, text: str) -> str:
    """The document with `text` between its marks. ValueError where it has none."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"there is no {BEGIN} … {END} in the document")
    return f"{before}{BEGIN}\n{text.strip()}\n{END}{after}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", help="results.json of a run")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    options = parser.parse_args(argv)
    results = json.loads(options.results.read_text()) if options.results else None
    if results is not None and results["rehearsal"]:
        print("a rehearsal's figures are of no card: they do not go into the document", file=sys.stderr)
        return 64
    options.document.write_text(written(options.document.read_text(), section(results)))
    print(f'{options.document}: section "On a GPU" written')
    return 0


if __name__ == "__main__":
    sys.exit(main())
