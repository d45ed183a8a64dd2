"""What is known of a ladder before its first run: the rule that applies, its rungs, and what each may cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.ladder import Price
from finetune_api.methods import DEFAULT, TRAITS, Method
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.ladder import race
from finetune_trainer.ladder.rules import Choice, Facts, Skipped, choose
from finetune_trainer.ladder.rungs import rung
from finetune_trainer.planning import machine
from finetune_trainer.planning.devices import nameless, this_machine
from finetune_trainer.planning.model import ModelShape
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

    def to_json(self, price: Price | None = None) -> dict[str, Any]:
        return {
            "rule": self.choice.rule,
            "reason": self.choice.reason,
            "rungs": [
                {
                    "method": each.method,
                    "reservedGpuHours": (hours := self.estimates.get(each.method)),
                    "reservedMoney": None if hours is None or price is None else hours * price.per_hour,
                    "why": each.why,
                }
                for each in self.choice.rungs
            ],
            "skipped": [{"method": each.rung.method, "reason": each.reason} for each in self.choice.skipped],
        }

    @classmethod
    def of_json(cls, told: dict[str, Any]) -> Forecast:
        """What `to_json` wrote. KeyError or TypeError for anything else."""
        choice = Choice(
            rule=told["rule"],
            reason=told["reason"],
            rungs=tuple(rung(each["method"]) for each in told["rungs"]),
            skipped=tuple(Skipped(rung=rung(each["method"]), reason=each["reason"]) for each in told["skipped"]),
        )
        return cls(choice=choice, estimates={each["method"]: each["reservedGpuHours"] for each in told["rungs"]})


def forecast(
    spec: FineTuneJobSpec, planner: Planner | None, workload: Workload, *, labelled: bool, fits_only: bool = False
) -> Forecast:
    """planner: None where the model is not known yet. labelled: rows are classifications. fits_only: times are not
    known for this device."""
    facts = Facts(
        rows=workload.rows,
        tokens=workload.tokens,
        labelled=labelled,
        fits=None if planner is None else set(_fitting(planner)),
        chosen=spec.ladder.rungs,
    )
    choice = choose(facts)
    known = None if fits_only else planner
    return Forecast(choice=choice, estimates={each.method: _hours(known, each.method) for each in choice.rungs})


def here(spec: FineTuneJobSpec, shape: ModelShape, workload: Workload, *, labelled: bool) -> Forecast:
    """On this machine, or in this pod. Times are not known for its GPUs."""
    gpus = machine.gpu_memory()
    device = (
        nameless("cuda", memory=min(gpus))
        if gpus
        else this_machine(memory=machine.memory_limit(), processes=spec.world_size)
    )
    planner = Planner(spec=spec, shape=shape, device=device, workload=workload)
    return forecast(spec, planner, workload, labelled=labelled, fits_only=bool(gpus))


def with_method(spec: FineTuneJobSpec, method: str = DEFAULT) -> FineTuneJobSpec:
    return spec.model_copy(update={"method": Method.model_validate({"type": method})})


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
    rates = len(planner.spec.ladder.factors) if TRAITS[method].steps else 1
    longest = UPPER * (1 + MEASURING) * seconds * race.cost(rates) + STARTUP_SECONDS * race.runs(rates)
    return longest * planner.spec.world_size / 3600
