"""Copies of an adapter with one fault each, all of which a server must refuse and keep serving."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from .files import CONFIG, WEIGHTS, Adapter


def copies(adapter: Adapter, folder: Path, *, largest_rank: int) -> Iterator[Adapter]:
    """One after another, each below `folder` and named after its fault."""
    faults: dict[str, Callable[[Path], None]] = {
        "of another base": lambda copy: _set(copy, base_model_name_or_path="another/model"),
        f"of rank {largest_rank + 1}": lambda copy: _set(copy, r=largest_rank + 1),
        "with truncated weights": _truncate,
        "without weights": lambda copy: (copy / WEIGHTS).unlink(),
    }
    for number, (fault, damage) in enumerate(faults.items()):
        copy = folder / f"damaged-{number}"
        copy.mkdir()
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(adapter.folder / name, copy / name)
        damage(copy)
        yield replace(adapter, name=f"{adapter.name} {fault}", folder=copy)


def _set(copy: Path, **values: object) -> None:
    config = json.loads((copy / CONFIG).read_bytes())
    (copy / CONFIG).write_text(json.dumps(config | values))


def _truncate(copy: Path) -> None:
    with (copy / WEIGHTS).open("r+b") as weights:
        weights.truncate((copy / WEIGHTS).stat().st_size - 1)
