"""What is known of a ladder before its first run: the rule that applies, its rungs, and what each may cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from finetune_api import accelerators
from finetune_api.ladder import Price
from finetune_api.methods import DEFAULT, TRAITS, Method
from finetune_api.rung_pods import for_rung
from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.ladder import race
from finetune_trainer.ladder.rules import Choice, Facts, Skipped, choose, folds_of
from finetune_trainer.ladder.rungs import rung
from finetune_trainer.planning import machine
from finetune_trainer.planning.devices import THIS_MACHINE, nameless, this_machine
from finetune_trainer.planning.model import ModelShape
from finetune_trainer.planning.table import Planner, Workload

UPPER = 1.5
"""Times are estimated to about a third."""

STARTUP_SECONDS = 120.0
"""Of a rung: processes, model, data, and the end."""

MEASURING = 0.5
"""Evaluations of a run, as a share of its training."""


FEW_SHOT = MEASURING / 10
"""One pass of the base model over the rows that decide, for each document of a prompt with examples: of the ten
evaluations of a run."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    choice: Choice
    estimates: Mapping[str, float | None]
    """Upper estimates in GPU hours, by method; None where it is not known."""
    folds: int = 0
    """Of cross-fitting; see `rules.folds_of`."""

    def to_json(self, price: Price | None = None) -> dict[str, Any]:
        return {
            "rule": self.choice.rule,
            "reason": self.choice.reason,
            "folds": self.folds,
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
        estimates = {each["method"]: each["reservedGpuHours"] for each in told["rungs"]}
        return cls(choice=choice, estimates=estimates, folds=told["folds"])


def forecast(
    spec: FineTuneJobSpec,
    planner: Planner | None,
    workload: Workload,
    *,
    labelled: bool,
    fits_only: bool = False,
    elsewhere: Callable[[str], bool] = lambda _: False,
) -> Forecast:
    """planner: None where the model is not known yet. labelled: rows are classifications. fits_only: times are not
    known for this device. elsewhere: methods whose rung has other pods, of which nothing is known here; such a rung is
    tried."""
    planners = {} if planner is None else {name: _of_rung(planner, name) for name in TRAITS if not elsewhere(name)}
    fitting = {name for name, each in planners.items() if _fits(each, name)}
    facts = Facts(
        rows=workload.rows,
        tokens=workload.tokens,
        labelled=labelled,
        fits=None if planner is None else fitting | (TRAITS.keys() - planners.keys()),
        chosen=spec.ladder.rungs,
    )
    choice = choose(facts)
    known, folds = {} if fits_only else planners, folds_of(spec, workload.rows)
    estimates = {
        each.method: _hours(known.get(each.method), each.method, folds=folds, first=each is choice.rungs[0])
        for each in choice.rungs
    }
    return Forecast(choice=choice, estimates=estimates, folds=folds)


def here(
    spec: FineTuneJobSpec,
    shape: ModelShape,
    workload: Workload,
    *,
    labelled: bool,
    elsewhere: Callable[[str], bool] = lambda _: False,
) -> Forecast:
    """On this machine, or in this pod. Times are not known for its GPUs."""
    gpus = machine.gpu_memory()
    device = (
        nameless("cuda", memory=min(gpus))
        if gpus
        else this_machine(memory=machine.memory_limit(), processes=spec.world_size)
    )
    planner = Planner(spec=spec, shape=shape, device=device, workload=workload)
    return forecast(spec, planner, workload, labelled=labelled, fits_only=bool(gpus), elsewhere=elsewhere)


def on_other_devices(spec: FineTuneJobSpec, method: str) -> bool:
    """One of job and rung has accelerators, and the other has none: figures of one do not apply to the other."""
    job, rung = (accelerators.devices(each.resources.limits) for each in (spec, for_rung(spec, method)))
    return bool(job) != bool(rung)


def _of_rung(planner: Planner, method: str) -> Planner:
    """For the nodes and processes of a rung. Those of this machine share its cores and memory."""
    spec, device = for_rung(planner.spec, method), planner.device
    if device.name == THIS_MACHINE and spec.world_size != planner.spec.world_size:
        device = device.shared(planner.spec.world_size / spec.world_size)
    return planner if spec is planner.spec else replace(planner, spec=spec, device=device)


def with_method(spec: FineTuneJobSpec, method: str = DEFAULT) -> FineTuneJobSpec:
    return spec.model_copy(update={"method": Method.model_validate({"type": method})})


def _fits(planner: Planner, name: str) -> bool:
    traits, method = TRAITS[name], Method.model_validate({"type": name})
    if traits.four_bits and (planner.device.kind == "cpu" or planner.shape.mostly_experts):
        return False
    return planner.fits(method, planner.spread("ddp")) or (
        planner.spec.world_size > 1 and "fsdp" in traits.shards and planner.fits(method, planner.spread("fsdp", method))
    )


def _hours(planner: Planner | None, method: str, *, folds: int = 0, first: bool = False) -> float | None:
    """first: its runs also measure the base model with examples in its prompt."""
    if planner is None:
        return None
    seconds = planner.row(Method.model_validate({"type": method}), planner.spread("ddp")).seconds
    if seconds is None:
        return None
    rates = len(planner.spec.ladder.factors) if TRAITS[method].steps else 1
    trainings, starts = race.cost(rates) + folds, race.runs(rates) + folds
    ladder = planner.spec.ladder
    measuring = MEASURING + (FEW_SHOT * (1 + ladder.few_shot) if first and ladder.few_shot else 0.0)
    longest = UPPER * (1 + measuring) * seconds * trainings + STARTUP_SECONDS * starts
    return longest * planner.spec.world_size / 3600
