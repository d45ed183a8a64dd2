"""The budget of a ladder, in GPU hours: an upper estimate is reserved before a rung starts, and the measured cost is
settled when it ends. A rung starts only if its reservation fits, so the budget is exceeded by no more than what one
rung cost beyond its reservation."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Ledger:
    budget: float | None = None
    """GPU hours; None: unlimited."""
    spent: float = 0.0
    reserved: float = 0.0
    """By the rung that runs now."""

    @property
    def left(self) -> float | None:
        """None: unlimited."""
        return None if self.budget is None else max(0.0, self.budget - self.spent - self.reserved)

    def affords(self, estimate: float | None) -> bool:
        """estimate: None where the cost is not known; then it takes all that is left, if anything is."""
        if self.left is None:
            return True
        return self.left > 0 if estimate is None else estimate <= self.left

    def reserve(self, estimate: float | None) -> Ledger:
        """ValueError for a second reservation, and for one that the budget does not allow."""
        if self.reserved:
            raise ValueError("another rung has a reservation")
        if not self.affords(estimate):
            raise ValueError(f"{estimate} does not fit into the budget")
        return replace(self, reserved=(self.left or 0.0) if estimate is None else estimate)

    def settle(self, cost: float) -> Ledger:
        """Replaces the reservation by what was measured. ValueError for a negative cost."""
        if cost < 0:
            raise ValueError(f"a cost of {cost}")
        return replace(self, spent=self.spent + cost, reserved=0.0)
