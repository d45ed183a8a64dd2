"""The runs that guards.maxAttempts allows, and what each may cost, before the first one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from finetune_trainer.ladder.remedies import Skipped, regularization_with, walk
from finetune_trainer.planning.forecast import MEASURING, STARTUP_SECONDS, UPPER
from finetune_trainer.planning.table import Planner


@dataclass(frozen=True, kw_only=True)
class Run:
    name: str
    settings: str
    """What differs from the manifest."""
    hours: float | None
    """Upper estimate, times the number of processes; None where it is not known."""


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    runs: tuple[Run, ...]
    """The job as it is written, and those that may follow it."""
    skipped: tuple[Skipped, ...]

    @property
    def hours(self) -> float | None:
        """Of all runs."""
        known = [each.hours for each in self.runs if each.hours is not None]
        return sum(known) if len(known) == len(self.runs) else None


def foreseen(planner: Planner) -> Foreseen | None:
    """None for a job without guards.maxAttempts."""
    spec = planner.spec
    if not spec.guards.max_attempts:
        return None
    found = walk(spec)
    first = Run(name="asWritten", settings="", hours=_hours(planner))
    others = (
        Run(
            name=step.name,
            settings=step.settings,
            hours=_hours(replace(planner, spec=regularization_with(spec, step))),
        )
        for step in found.steps
    )
    return Foreseen(runs=(first, *others), skipped=found.skipped)


def _hours(planner: Planner) -> float | None:
    """With evaluation and startup, as for a rung of a ladder."""
    kind = planner.spec.strategy.type
    seconds = planner.row(planner.spec.method, planner.spread("ddp" if kind == "auto" else kind)).seconds
    if seconds is None:
        return None
    return (UPPER * (1 + MEASURING) * seconds + STARTUP_SECONDS) * planner.spec.world_size / 3600
