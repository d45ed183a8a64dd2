"""What the facts of all parts come to: verdicts, as a pure function of results.json."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from tests.gpu.arithmetic import apart, off
from tests.gpu.notes import Check, at_least, at_most

FIRST_STEP, ALL_STEPS, LOW_PRECISION = 1e-5, 1e-4, 2e-2
"""Relative, of losses beside those of a CPU in float32."""
METHOD_STEPS = 5e-2
"""Of methods that begin with random numbers of their own, which another device draws otherwise."""
PLAN = 0.10
FASTER_THAN_TRL, MEMORY_OF_TRL, MFU = 1.10, 0.90, 0.45
SAME_TASK = 2e-2
"""Of mean losses: a rival that has others does not compute the same thing, and its row is void."""

Parts = Mapping[str, Mapping[str, Any]]
Row = dict[str, Any]


def judge(parts: Parts) -> list[Check]:
    return [*_numbers(parts), *_methods(parts), *_compiled(parts), *_fits(parts), *_fast(parts), *_timeline(parts)]


def facts(parts: Parts, name: str) -> dict[str, Any]:
    return dict(parts.get(name, {}).get("facts", {}))


def _numbers(parts: Parts) -> Iterator[Check]:
    right, found = facts(parts, "right/reference"), facts(parts, "right/numbers")
    for method in ("full", "lora"):
        mine, wanted = found.get(f"{method}/float32"), right.get(method)
        if mine and wanted:
            yield at_most(f"{method}, float32 beside a CPU, first step", apart(mine[:1], wanted[:1]), FIRST_STEP)
            yield at_most(f"{method}, float32 beside a CPU, {len(mine)} steps", apart(mine, wanted), ALL_STEPS)
        if mine and (unpacked := found.get(f"{method}/unpacked")):
            yield at_most(f"{method}, packed beside unpacked", apart(unpacked, mine), ALL_STEPS)
        if wanted and (low := found.get(f"{method}/bfloat16")):
            yield at_most(f"{method}, bfloat16 beside a CPU in float32", apart(low, wanted), LOW_PRECISION)


def _methods(parts: Parts) -> Iterator[Check]:
    right, found = facts(parts, "right/reference"), facts(parts, "right/methods")
    for name, wanted in right.items():
        if name.endswith("/few") and (mine := found.get(name)):
            method = name.partition("/")[0]
            first = LOW_PRECISION if method != "qlora" else METHOD_STEPS
            yield at_most(f"{method} beside a CPU, first step", apart(mine[:1], wanted[:1]), first)
            yield at_most(f"{method} beside a CPU, {len(mine)} steps", apart(mine, wanted), METHOD_STEPS)


def _compiled(parts: Parts) -> Iterator[Check]:
    found = facts(parts, "right/compiled")
    for precision, limit in (("float32", ALL_STEPS), ("bfloat16", LOW_PRECISION)):
        if (mine := found.get(f"{precision}/compiled")) and (plain := found.get(f"{precision}/plain")):
            yield at_most(f"compiled beside plain, {precision}", apart(mine, plain), limit)


def _fits(parts: Parts) -> Iterator[Check]:
    for name in parts:
        found = facts(parts, name)
        if name.startswith("fits/") and found.get("reserved"):
            distance = off(found["reserved"], found["planned"])
            words = f"planned {found['planned'] / 2**30:.1f} GiB, reserved {found['reserved'] / 2**30:.1f}"
            yield at_most(f"plan of {found['title']}", abs(distance), PLAN, miss="missed", words=words)


def rows(parts: Parts) -> list[Row]:
    """Of the comparison: a load and a side, all its turns in one."""
    turns: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name in parts:
        if name.startswith("fast/") and (found := facts(parts, name)).get("seconds"):
            turns.setdefault((found["title"], found["side"]), []).append(found)
    return [_row(title, side, its) for (title, side), its in turns.items()]


def _row(title: str, side: str, turns: list[dict[str, Any]]) -> Row:
    """The median of turns, and the largest of their peaks."""
    speed = statistics.median(turn["tokens"] * turn["steps"] / turn["seconds"] for turn in turns)
    return {
        "title": title,
        "side": side,
        "turns": len(turns),
        "speed": speed,
        "spread": max(t["tokens"] * t["steps"] / t["seconds"] for t in turns) / speed - 1,
        "mfu": speed * turns[0]["operations"] / turns[0]["peak_operations"] if turns[0]["peak_operations"] else None,
        "peak": max(turn["reserved"] for turn in turns),
        "allocated": max(turn["allocated"] for turn in turns),
        "loss": statistics.fmean(turns[0]["losses"]),
        "trainable": turns[0]["trainable"],
        "versions": turns[0]["versions"],
        "setting": turns[0].get("setting", ""),
        "computed": turns[0].get("computed", ""),
        "double": turns[0].get("double", False),
    }


def _fast(parts: Parts) -> Iterator[Check]:
    by_title: dict[str, dict[str, Row]] = {}
    for row in rows(parts):
        by_title.setdefault(row["title"], {})[row["side"]] = row
    for title, sides in by_title.items():
        best = max((row for side, row in sides.items() if side.startswith("ours")), key=_speed, default=None)
        ours = sides.get("ours")
        if ours is None or best is None:
            continue
        for side in ("trl", "hf"):
            if (theirs := sides.get(side)) is None:
                continue
            limit = SAME_TASK * abs(ours["loss"])
            same = abs(ours["loss"] - theirs["loss"]) <= limit and ours["trainable"] == theirs["trainable"]
            if not same and not theirs["double"]:
                words = f"loss {theirs['loss']:.4f} beside {ours['loss']:.4f}, {theirs['trainable']:,} trained weights"
                words += f" beside {ours['trainable']:,}: {side}'s row is void"
                yield Check(f"{title}: {side} computes the same", "missed", words=words)
                continue
            wanted = FASTER_THAN_TRL if side == "trl" else 1.0
            name = f"{title}: tokens/s, {best['side']} over {side}"
            yield at_least(name, best["speed"] / theirs["speed"], wanted)
            name = f"{title}: peak memory, ours over {side}"
            yield at_most(name, ours["peak"] / theirs["peak"], MEMORY_OF_TRL, miss="missed")
        if title == "1B, full" and best["mfu"] is not None:
            yield at_least(f"{title}: MFU of {best['side']}", best["mfu"], MFU)


def _speed(row: Row) -> float:
    return float(row["speed"])


def _timeline(parts: Parts) -> Iterator[Check]:
    for name in parts:
        found = facts(parts, name)
        if name.startswith("time/") and "syncs_a_step" in found:
            yield at_most(f"{found['title']}: waits for the GPU, a step", found["syncs_a_step"], 0, miss="missed")
