"""docs/models.md from docs/models.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finetune_api.methods import TRAITS

ROOT = Path(__file__).resolve().parents[2]
RESULTS, PAGE = ROOT / "docs" / "models.json", ROOT / "docs" / "models.md"

_MARKS = {"works": "yes", "refused": "no", "fails": "**fails**"}

_OWN_LOADER = [t.name for t in TRAITS.values() if t.steps and (t.library == "finetune-operator" or t.four_bits)]
_MERGED = [t.name for t in TRAITS.values() if t.mergeable and not t.four_bits]


def _listed(names: list[str]) -> str:
    *others, last = [f"`{name}`" for name in names]
    return f"{', '.join(others)} and {last}" if others else last


def page(results: dict[str, Any]) -> str:
    families: dict[str, dict[str, dict[str, str]]] = results["families"]
    methods = list(next(iter(families.values())))
    own, merged = _listed(sorted(_OWN_LOADER)), _listed(_MERGED)
    why: dict[str, int] = {}
    lines = []
    for family, cells in families.items():
        packed = any(cell.get("rows") == "packed" for cell in cells.values())
        marks = [_mark(cell, why) for cell in cells.values()]
        lines.append(f"| `{family}` | {' | '.join(marks)} | {'yes' if packed else 'no'} |")
    head = " | ".join(f"`{method}`" for method in methods)
    works = sum(cell["result"] == "works" for cells in families.values() for cell in cells.values())
    return "\n".join([
        "# Which models",
        "",
        "Every family below was trained by every method, as a tiny random model in float32. *yes* means all of this:",
        "",
        "- it trains, and stopped and resumed it ends with the same weights to the bit;",
        f"- plain transformers or PEFT (for {own} our loader) load the artifact and compute the trained",
        f"  logits to 1e-5, and so does the merged model of {merged};",
        "- rows together have the loss of each row alone.",
        "",
        "*no* is refused before anything is held, by `finetune plan` and by a run in the same words, listed below",
        "the table. *Packed*: whether short documents share a row; elsewhere each has a row of its own, which computes",
        "the same and takes longer. For `probe` the features were compared with the states that transformers gives.",
        "Rows of 16 or 32 weights are these tiny models': on a CPU 4 bits need multiples of 64, which real ones have.",
        "",
        "A model of a family that is not here is tried in the same way when a job starts: what its class can do is",
        "found out, and what it cannot is refused by name. Code that comes with a model (`auto_map`) is never run.",
        "",
        f"transformers {results['transformers']}, peft {results['peft']}, torch {results['torch']}, {results['date']}: "
        f"{works} of {sum(map(len, families.values()))} combinations work.",
        "",
        "```sh",
        "make proof",
        "```",
        "",
        f"| `model_type` | {head} | packed |",
        f"|---|{'---|' * (len(methods) + 1)}",
        *lines,
        "",
        *(f"{number}. {text}" for text, number in why.items()),
        "",
    ])  # fmt: skip


def _mark(cell: dict[str, str], why: dict[str, int]) -> str:
    mark = _MARKS[cell["result"]]
    return f"{mark} [{why.setdefault(_general(cell['why']), len(why) + 1)}]" if "why" in cell else mark


def _general(text: str) -> str:
    """Without the class that one family has, so that one reason is one line; and nothing that Markdown takes for its
    own."""
    words = ["this class" if word.endswith(("ForCausalLM", "LMHeadModel")) else word for word in text.split()]
    return " ".join(words).replace("|", "/").replace("<", "‹").replace("*", "·")


def written() -> str:
    return page(json.loads(RESULTS.read_text()))
