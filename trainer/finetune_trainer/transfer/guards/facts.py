"""What guards judge, and what a guard is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.measurements import DataKind
from finetune_trainer.statistics.differences import FEWEST_ROWS, Difference
from finetune_trainer.statistics.diversity import Drop

from .judgement import Judgement, at_least, at_most, unknown


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A data set by one of its measures: tuned minus base. Slices: with the interval adjusted for their number."""

    name: str
    kind: DataKind
    value: float | None
    low: float | None
    high: float | None
    rows: int
    higher_is_better: bool
    reason: str = ""
    """Why there is no interval."""

    @classmethod
    def of(cls, name: str, kind: DataKind, found: Difference) -> Compared:
        return cls(
            name=name,
            kind=kind,
            value=found.difference,
            low=found.low,
            high=found.high,
            rows=found.rows,
            higher_is_better=found.measure.higher_is_better,
            reason=found.reason,
        )

    @property
    def improvement(self) -> tuple[float, float, float] | None:
        """(value, low, high), signed so that more is better."""
        if self.value is None or self.low is None or self.high is None:
            return None
        if self.higher_is_better:
            return self.value, self.low, self.high
        return -self.value, -self.high, -self.low


@dataclass(frozen=True, kw_only=True)
class Share:
    """How many generated texts of the tuned model are as they should be."""

    hits: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of one candidate. What was not measured is left out."""

    main: Compared | None = None
    """The main measure of test, else of validation."""
    general: Compared | None = None
    """Bits per byte of the general text."""
    slices: tuple[Compared, ...] = ()
    """By the main measure of each."""
    calibration: Compared | None = None
    drops: tuple[Drop, ...] = ()
    """Of each figure of the variety of generated text, with intervals adjusted for their number."""
    prompts: int = 0
    """That were answered."""
    stops: Share | None = None
    """Texts that ended by themselves."""
    json_valid: Share | None = None


@dataclass(frozen=True, kw_only=True)
class Guard:
    key: str
    """Below spec.guards, as users write it."""
    needs: str
    """What must be in the manifest besides."""
    says: str
    """One sentence for the report: `{value}` and `{bound}` are filled in."""
    judge: Callable[[Facts, float], Judgement]


def increase(name: str, compared: Compared | None, bound: float, *, missing: str) -> Judgement:
    """A guard on how much a figure rises."""
    if compared is None:
        return unknown(name, bound=bound, reason=missing)
    if compared.value is None or compared.low is None or compared.high is None:
        return lacking(name, compared, bound)
    return at_most(
        name,
        bound=bound,
        value=compared.value,
        low=compared.low,
        high=compared.high,
        rows=compared.rows,
        on=compared.name,
    )


def improvement(name: str, compared: Compared | None, bound: float, *, missing: str) -> Judgement:
    """A guard on how much a measure improves, whichever its better direction."""
    if compared is None:
        return unknown(name, bound=bound, reason=missing)
    found = compared.improvement
    if found is None:
        return lacking(name, compared, bound)
    value, low, high = found
    return at_least(name, bound=bound, value=value, low=low, high=high, rows=compared.rows, on=compared.name)


def lacking(name: str, compared: Compared, bound: float) -> Judgement:
    needed = FEWEST_ROWS if compared.rows < FEWEST_ROWS else None
    return unknown(name, bound=bound, reason=f"{compared.name}: {compared.reason}", rows=compared.rows, needed=needed)
