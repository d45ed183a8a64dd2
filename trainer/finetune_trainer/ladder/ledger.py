"""The budget of a ladder, in GPU hours, in money, or in both: an upper estimate is reserved before a rung starts, and
the measured cost is settled when it ends. A rung starts only if its reservation fits, so the budget is exceeded by no
more than what one rung cost beyond its reservation.

Estimates are GPU hours. Money that is left is converted to hours at the present price; money that was spent stays what
it was, should the price change."""

from __future__ import annotations

from dataclasses import dataclass, replace

from finetune_api.ladder import LadderBudget, Price


@dataclass(frozen=True, kw_only=True)
class Ledger:
    budget: float | None = None
    """GPU hours; None: unlimited."""
    spent: float = 0.0
    reserved: float = 0.0
    """GPU hours, by the rung that runs now."""
    money: float | None = None
    """None: unlimited."""
    money_spent: float = 0.0
    price: float | None = None
    """Of a GPU hour; known where money is limited."""
    currency: str = ""

    def __post_init__(self) -> None:
        if self.money is not None and self.price is None:
            raise ValueError("a budget of money needs a price")

    @classmethod
    def of(cls, budget: LadderBudget | None, price: Price | None) -> Ledger:
        hours, money = (budget.gpu_hours, budget.money) if budget else (None, None)
        rate, currency = (price.per_hour, price.currency) if price else (None, "")
        return cls(budget=hours, money=money, price=rate, currency=currency)

    @property
    def left(self) -> float | None:
        """GPU hours, by the budget that has less left; None: unlimited."""
        limits = [each for each in (self._hours_left, self._hours_of_money_left) if each is not None]
        return max(0.0, min(limits) - self.reserved) if limits else None

    @property
    def short_of_money(self) -> bool:
        """Money is what limits the hours that are left."""
        hours, of_money = self._hours_left, self._hours_of_money_left
        return of_money is not None and (hours is None or of_money < hours)

    @property
    def _hours_left(self) -> float | None:
        return None if self.budget is None else self.budget - self.spent

    @property
    def _hours_of_money_left(self) -> float | None:
        """None where money limits nothing, as at a price of 0."""
        return (self.money - self.money_spent) / self.price if self.money is not None and self.price else None

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

    def settle(self, cost: float, *, money: float = 0.0) -> Ledger:
        """Replaces the reservation by what was measured. ValueError for a negative cost."""
        if cost < 0 or money < 0:
            raise ValueError(f"a cost of {cost} GPU hours and {money}")
        return replace(self, spent=self.spent + cost, money_spent=self.money_spent + money, reserved=0.0)
