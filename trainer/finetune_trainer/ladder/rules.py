"""Which rungs are planned: the first rule whose conditions hold. Overridden by ladder.rungs.

    data                                       rungs
    fewer than 100 rows                        probe or prompt → lora
    100 million trained tokens an epoch        probe or prompt → lora → full
    10,000 rows, or 10 million tokens          probe or prompt → lora → partial → full
    fewer than 10,000 rows                     probe or prompt → lora
    unknown                                    probe or prompt → lora

Of the baselines, the probe is for labelled rows and the soft prompt for all others. The rule only plans; which rung is
taken is decided by tests between rungs. Sources: scaling laws of fine-tuning (2402.17193: the best method depends on
task and data, so start small and measure), and the rule of thumb that adapters suffice below 10,000 examples.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from finetune_api.spec import FineTuneJobSpec
from finetune_trainer.ladder.rungs import Rung, rung

PROBE_OF_LABELS, PROMPT_OF_OTHERS = "probe", "prompt"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known before the first run; None where it is not."""

    rows: int | None = None
    """Training rows."""
    tokens: int | None = None
    """Trained tokens per epoch."""
    labelled: bool = False
    """Rows are classifications."""
    fits: Collection[str] | None = None
    """Methods that fit into memory; None: not known, so all are tried."""
    chosen: Sequence[str] = ()
    """ladder.rungs of the manifest."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A row of the table. A condition that is None always holds, also where the fact is unknown."""

    name: str
    above: tuple[str, ...]
    """Methods above the baseline."""
    reason: str
    rows_below: int | None = None
    rows_from: int | None = None
    tokens_from: int | None = None

    def holds(self, facts: Facts) -> bool:
        """Large data may be shown by rows or by tokens."""
        if self.rows_below is not None:
            return facts.rows is not None and facts.rows < self.rows_below
        if self.rows_from is None and self.tokens_from is None:
            return True
        return _reaches(facts.rows, self.rows_from) or _reaches(facts.tokens, self.tokens_from)


def _reaches(value: int | None, bound: int | None) -> bool:
    return value is not None and bound is not None and value >= bound


RULES: tuple[Rule, ...] = (
    Rule(
        name="few rows",
        rows_below=100,
        above=("lora",),
        reason="fewer than 100 rows: a baseline can hardly overfit, and larger methods than lora would",
    ),
    Rule(
        name="many tokens",
        tokens_from=100_000_000,
        above=("lora", "full"),
        reason="at least 100 million trained tokens per epoch exceed the capacity of adapters",
    ),
    Rule(
        name="much data",
        rows_from=10_000,
        tokens_from=10_000_000,
        above=("lora", "partial", "full"),
        reason="at least 10,000 rows or 10 million trained tokens: enough data for partial or full fine-tuning, "
        "if lora leaves something to gain and the compute suffices; with regularization.replay against forgetting",
    ),
    Rule(
        name="fewer than 10,000 rows",
        rows_below=10_000,
        above=("lora",),
        reason="fewer than 10,000 rows: adapters, lora or prompts, a probe or prompt first",
    ),
    Rule(
        name="unknown size",
        above=("lora",),
        reason="the number of rows is not known before the run: adapters are the safe choice",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A rung that is left out, and why."""

    rung: Rung
    reason: str


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was planned for these facts."""

    rule: str
    reason: str
    rungs: tuple[Rung, ...]
    skipped: tuple[Skipped, ...] = ()


def choose(facts: Facts) -> Choice:
    """The rungs to climb, the cheapest first, and those that were left out."""
    if facts.chosen:
        planned, name, reason = tuple(facts.chosen), "ladder.rungs", "chosen in the manifest"
    else:
        rule = next(rule for rule in RULES if rule.holds(facts))
        baseline = PROBE_OF_LABELS if facts.labelled else PROMPT_OF_OTHERS
        planned, name, reason = (baseline, *rule.above), rule.name, rule.reason
    rungs: list[Rung] = []
    skipped: list[Skipped] = []
    for method in planned:
        if facts.fits is None or method in facts.fits:
            rungs.append(rung(method))
            continue
        instead = _THRIFTY.get(method)
        skipped.append(Skipped(rung=rung(method), reason="does not fit into memory"))
        if instead and not facts.chosen and instead in facts.fits and instead not in planned:
            rungs.append(rung(instead))
    return Choice(rule=name, reason=reason, rungs=tuple(rungs), skipped=tuple(skipped))


_THRIFTY = {"lora": "qlora"}
"""Taken in place of a method that does not fit."""

FEW_ROWS, FOLDS = range(20, 1000), 5
"""With so few training rows, decisions are cross-fitted with so many folds unless the manifest says otherwise. Below 20
rows nothing can be decided: see `statistics.differences`."""


def folds_of(spec: FineTuneJobSpec, rows: int | None) -> int:
    """Folds of the training rows that decide between rungs; 0: the select half of the validation rows does. rows:
    None where their number is not known."""
    if spec.data.validation is not None and spec.data.validation.uri:
        return 0
    if spec.ladder.folds is not None:
        return spec.ladder.folds
    return FOLDS if rows is not None and rows in FEW_ROWS else 0
