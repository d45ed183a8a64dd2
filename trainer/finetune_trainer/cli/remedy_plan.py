"""guards.maxAttempts in `finetune plan`: the runs that may follow the first one, and the most that all of them cost."""

from __future__ import annotations

from typing import Any

from finetune_api.ladder import Price
from finetune_trainer.cli.text import table
from finetune_trainer.planning.remedies import Foreseen


def remedies_json(found: Foreseen, price: Price | None) -> dict[str, Any]:
    return {
        "runs": [{"name": each.name, "settings": each.settings, "gpuHours": each.hours} for each in found.runs],
        "skipped": [{"name": each.name, "reason": each.reason} for each in found.skipped],
        "gpuHours": found.hours,
        "cost": _paid(found.hours, price),
    }


def remedies_text(found: Foreseen, price: Price | None) -> str:
    rows = [(each.name, _number(each.hours), each.settings or "the manifest as it is") for each in found.runs]
    paid = _paid(found.hours, price)
    costs = f", {paid:,.2f} {price.currency}" if price is not None and paid is not None else ""
    total = "an unknown number of GPU hours" if found.hours is None else f"at most {found.hours:.3g} GPU hours{costs}"
    head = (
        f"guards.maxAttempts: up to {len(found.runs)} runs, {total} together; each run after the first one starts only "
        "if a guard is violated at every scale of the adapter"
    )
    skipped = [f"no run with {each.name}: {each.reason}" for each in found.skipped]
    return "\n".join([head, table(("run", "GPU hours, at most", "what differs"), rows), *skipped])


def _number(hours: float | None) -> str:
    return "unknown" if hours is None else f"{hours:.3g}"


def _paid(hours: float | None, price: Price | None) -> float | None:
    return None if hours is None or price is None else hours * price.per_hour
