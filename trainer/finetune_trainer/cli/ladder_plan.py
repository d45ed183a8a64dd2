"""What is known of a ladder before its first run: the rule that applies, its rungs, and what each may cost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.methods import DEFAULT, TRAITS, Method
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.cli.text import table
from finetune_trainer.ladder.rules import Choice, Facts, choose
from finetune_trainer.planning.table import Planner, Workload

UPPER = 1.5
"""Times are estimated to about a third."""

STARTUP_SECONDS = 120.0
"""Of a rung: processes, model, data, and the end."""

MEASURING = 0.5
"""Evaluations of a run, as a share of its training."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    choice: Choice
    estimates: Mapping[str, float | None]
    """Upper estimates in GPU hours, by method; None where it is not known."""

    def to_json(self) -> dict[str, Any]:
        return {
            "rule": self.choice.rule,
            "reason": self.choice.reason,
            "rungs": [
                {"method": each.method, "reservedGpuHours": self.estimates.get(each.method), "why": each.why}
                for each in self.choice.rungs
            ],
            "skipped": [{"method": each.rung.method, "reason": each.reason} for each in self.choice.skipped],
        }

    def text(self) -> str:
        hours = [(each, self.estimates.get(each.method)) for each in self.choice.rungs]
        rows = [(each.method, "unknown" if cost is None else f"{cost:.3g}", each.why) for each, cost in hours]
        skipped = [f"{each.rung.method} is left out: it {each.reason}" for each in self.choice.skipped]
        head = f"ladder, by the rule {self.choice.rule!r}: {self.choice.reason}"
        return "\n".join([head, table(("rung", "reserved GPU hours", "why"), rows), *skipped])


def forecast(
    spec: FineTuneJobSpec, planner: Planner | None, workload: Workload, *, fits_only: bool = False
) -> Forecast:
    """planner: None where the model is not known yet. fits_only: times are not known for this device."""
    facts = Facts(
        rows=workload.rows,
        tokens=workload.tokens,
        labelled=is_labelled(spec),
        fits=None if planner is None else set(_fitting(planner)),
        chosen=spec.ladder.rungs,
    )
    choice = choose(facts)
    known = None if fits_only else planner
    return Forecast(choice=choice, estimates={each.method: _hours(known, each.method) for each in choice.rungs})


def with_method(spec: FineTuneJobSpec, method: str = DEFAULT) -> FineTuneJobSpec:
    return spec.model_copy(update={"method": Method.model_validate({"type": method})})


def is_labelled(spec: FineTuneJobSpec) -> bool:
    """Whether rows are classifications: by the manifest, else by the first row of a local file."""
    data = spec.data
    if data.format != "auto":
        return data.format == "classification"
    return data.classification is not None or _first_keys(data.train[0].uri) >= {"text", "label"}


def _first_keys(uri: str) -> set[str]:
    from finetune_trainer.data.read import ENDINGS
    from finetune_trainer.store.sources import local_paths

    if not uri.startswith("file:///"):
        return set()
    for path in local_paths(uri, endings=ENDINGS):
        if Path(path).suffix == ".jsonl":
            try:
                with Path(path).open("rb") as file:
                    row = json.loads(file.readline() or b"null")
            except (OSError, ValueError):  # the run says what is wrong with it
                return set()
            return set(row) if isinstance(row, dict) else set()
    return set()


def _fitting(planner: Planner) -> Iterator[str]:
    for name, traits in TRAITS.items():
        if traits.four_bits and (planner.device.kind == "cpu" or planner.shape.mostly_experts):
            continue
        method = Method.model_validate({"type": name})
        if planner.fits(method, planner.spread("ddp")) or (
            planner.spec.world_size > 1
            and "fsdp" in traits.shards
            and planner.fits(method, planner.spread("fsdp", method))
        ):
            yield name


def _hours(planner: Planner | None, method: str) -> float | None:
    if planner is None:
        return None
    seconds = planner.row(Method.model_validate({"type": method}), planner.spread("ddp")).seconds
    if seconds is None:
        return None
    return (UPPER * (1 + MEASURING) * seconds + STARTUP_SECONDS) * planner.spec.world_size / 3600
